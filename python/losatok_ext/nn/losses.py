"""The tokenizer's losses on features and latents; each is a mean over the valid frames of the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(per_frame: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean of ``per_frame`` [B, T] over the frames below ``lengths`` [B] (None: all); 0 where there is none.

    A float32 (float64) scalar. What lies past a length never reaches it, even NaN, and takes no gradient.
    """
    per_frame = per_frame if per_frame.dtype == torch.float64 else per_frame.float()
    if lengths is None:
        return per_frame.sum() / max(per_frame.numel(), 1)
    valid = torch.arange(per_frame.shape[1], device=per_frame.device) < lengths[:, None]
    return torch.where(valid, per_frame, 0.0).sum() / valid.sum().clamp(min=1)


def masked_mse(x: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean squared difference of ``x`` and ``target`` [B, T, C] over valid frames; no gradient to ``target``."""
    return masked_mean((x.float() - target.detach().float()).square().mean(-1), lengths)


def kl_divergence(mu: Tensor, logvar: Tensor, lengths: Tensor | None = None, clamp: float = 0.0) -> Tensor:
    """KL divergence in nats of ``N(mu, exp(logvar))`` from ``N(0, 1)``, summed over dimensions, mean over valid frames.

    Args:
        mu: [B, T, d].
        logvar: [B, T, d].
        lengths: [B] int64 tokens (None: all valid).
        clamp: each dimension of each frame counts at least this many nats, and below it takes no gradient.

    Formula: ``(mu^2 + exp(logvar) - 1 - logvar) / 2`` (Kingma and Welling 2014, appendix B).
    """
    mu, logvar = mu.float(), logvar.float()
    nats = 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar)
    return masked_mean(nats.clamp(min=clamp).sum(-1), lengths)


def logvar_energy(logvar: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Squared log variance [B, T, d], summed over dimensions, mean over valid frames: holds the variances near 1."""
    return masked_mean(logvar.float().square().sum(-1), lengths)
