"""Nested latents: of one model, the first k dimensions for several k, each usable (Matryoshka representations).

Source of the idea: Kusupati et al. 2022 (arXiv 2205.13147). SemBo learns to restore the teacher's features from each
prefix of its low-dimensional ones; the tokenizer learns to decode each prefix of its latents, the rest zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext.errors import UserError
from losatok_ext.masks import keep_valid
from losatok_ext.models.tokenizer.latents import Latents
from losatok_ext.nn.bottleneck import Bottleneck

if TYPE_CHECKING:
    from losatok_ext.models.tokenizer.losatok import LoSATok


class PrefixErrors(nn.Module):
    """Teacher features to low-dimensional ones and, for each prefix of them, how badly it restores each frame.

    Args:
        bottleneck: SemBo.
        dims: sizes of the prefixes.
    """

    def __init__(self, bottleneck: Bottleneck, dims: Sequence[int]) -> None:
        super().__init__()
        self.bottleneck, self.dims = bottleneck, tuple(dims)

    def forward(self, features: Tensor) -> Tensor:
        """features [..., D] to [..., d + P] float32: low-dimensional features, then ``1 - cosine`` of each of P
        prefixes."""
        low = self.bottleneck.down(features)
        theirs = F.normalize(features.float(), dim=-1)
        errors = [
            1.0 - (F.normalize(self.bottleneck.restore(low[..., :k]).float(), dim=-1) * theirs).sum(-1)
            for k in self.dims
        ]
        return torch.cat([low.float(), torch.stack(errors, dim=-1)], dim=-1)


def require_nested(model: LoSATok, asked: str) -> tuple[int, ...]:
    """The sizes that latents of ``model`` may be cut to.

    Raises:
        UserError: there are none, for which ``asked`` begins the message.
    """
    if not model.config.nested_dims:
        raise UserError(
            f"{asked}: this model was not trained for prefixes of its latents; train one with "
            "`losatok train sembo --set sembo.prefixes=[16,32,64]` and the tokenizer on it"
        )
    if model.quantizer is not None:
        raise UserError(
            f"{asked}: this model has a quantizer ({model.quantizer_name}), whose codes stand for all dimensions of a "
            "latent; use the model without it"
        )
    return model.config.nested_dims


def choose_dims(model: LoSATok, dims: int | Sequence[int] | Tensor, clips: int) -> Tensor:
    """[B] int64 dimensions to keep of each clip, on the model's device.

    Raises:
        UserError: the model has no nested latents.
        ValueError: another number of sizes than of clips, or a size that was not trained.
    """
    nested = require_nested(model, "dims")
    sizes = [dims] * clips if isinstance(dims, int) else [int(size) for size in dims]
    if len(sizes) != clips:
        raise ValueError(f"dims should be one number, or one for each of the {clips} clips, got {len(sizes)}")
    for size in sizes:
        if size not in nested:
            raise ValueError(f"dims should be one of {', '.join(map(str, nested))} (what was trained), got {size}")
    return torch.tensor(sizes, dtype=torch.int64, device=model.device)


def least_dims(errors: Tensor, lengths: Tensor, dims: Sequence[int], target: float) -> Tensor:
    """[B] int64: of each clip the fewest dimensions whose mean error is at most ``target``; all where none is.

    Args:
        errors: [B, T, P], ``1 - cosine`` of each frame restored from each prefix.
        lengths: [B] int64 frames.
        dims: sizes of the P prefixes, ascending.
        target: 0 (exactly the teacher's direction) to 2.
    """
    means = keep_valid(errors.float(), lengths).sum(1) / lengths.clamp(min=1)[:, None]
    enough = means <= target
    enough[:, -1] = True
    return torch.tensor(dims, dtype=torch.int64, device=errors.device)[enough.int().argmax(1)]


def truncate(latents: Latents, dims: Tensor) -> Latents:
    """``latents`` with zeros from dimension ``dims`` [B] on in ``z``, ``mu`` and ``logvar``.

    There the posterior says no more than the prior does.
    """
    kept = (torch.arange(latents.z.shape[-1], device=dims.device) < dims[:, None])[:, None]
    parts = {name: torch.where(kept, getattr(latents, name), 0.0) for name in ("z", "mu", "logvar")}
    return dataclasses.replace(latents, dims=dims, **parts)
