"""Statistics of each dimension of the latents, over the frames of many clips: which dimensions carry information."""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.masks import valid_mask
from losatok_ext.training.stages.base import ClipLatents

ACTIVE_VARIANCE = 0.01
"""A dimension whose mean varies more than this over the frames is active (Burda et al. 2016, arXiv 1509.00519)."""


class DimensionStatistics:
    """Sums over frames, and the statistics that follow from them.

    The sums are float64 and can be added up over processes (:attr:`sums`).
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        """[3, d + 1] float64: of means, of their squares and of the KL divergence; the last column counts frames."""
        self._posterior = False

    @torch.no_grad()
    def update(self, latents: ClipLatents) -> None:
        """Add the frames of a batch."""
        inside = valid_mask(latents.lengths.to(latents.mean.device), latents.mean.shape[1])
        mean = latents.mean[inside].double().cpu()
        nats = torch.zeros_like(mean)
        if latents.logvar is not None:
            self._posterior = True
            logvar = latents.logvar[inside].double().cpu()
            nats = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)  # as nn.losses.kl_divergence, by dimension
        sums = torch.stack([mean.sum(0), mean.square().sum(0), nats.sum(0)])
        sums = torch.cat([sums, torch.full((3, 1), float(len(mean)), dtype=torch.float64)], dim=1)
        self.sums = sums if self.sums is None else self.sums + sums

    def dimensions(self) -> dict[str, Tensor]:
        """By dimension [d], float32: ``mean``, ``std``, and ``kl`` in nats where there is a posterior."""
        if self.sums is None:
            return {}
        frames = self.sums[:, -1:].clamp(min=1)
        mean, square, nats = (self.sums[:, :-1] / frames).unbind()
        found = {"mean": mean, "std": (square - mean.square()).clamp(min=0).sqrt()}
        if self._posterior:
            found["kl"] = nats
        return {name: values.float() for name, values in found.items()}

    def scalars(self) -> dict[str, float]:
        """``latent_mean`` and ``latent_std``: the root mean square of the means, the mean of the deviations;
        ``active_dims``: how many vary (:data:`ACTIVE_VARIANCE`); ``latent_kl``: nats per frame, where there is a
        posterior."""
        by_dimension = self.dimensions()
        if not by_dimension:
            return {}
        mean, std = by_dimension["mean"], by_dimension["std"]
        found = {
            "latent_mean": float(mean.square().mean().sqrt()),
            "latent_std": float(std.mean()),
            "active_dims": float((std.square() > ACTIVE_VARIANCE).sum()),
        }
        if "kl" in by_dimension:
            found["latent_kl"] = float(by_dimension["kl"].sum())
        return found
