"""Nested latents: the first k dimensions of a latent are usable alone, for several k (Matryoshka representations).

Source of the idea: Kusupati et al. 2022 (arXiv 2205.13147). The bottleneck learns to restore the semantic encoder's
features from each prefix of its low-dimensional ones; the tokenizer learns to decode each prefix of its latents, with
zeros in the other dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.errors import UserError
from losatok_ext.masks import keep_valid, valid_mask
from losatok_ext.models.tokenizer.config import LoSATokConfig
from losatok_ext.models.tokenizer.latents import Latents
from losatok_ext.models.tokenizer.quantization import quantizer_name
from losatok_ext.nn.bottleneck import Bottleneck


def prefix_errors(bottleneck: Bottleneck, features: Tensor, low: Tensor, dims: Sequence[int]) -> Tensor:
    """How far the features restored from each prefix of the low-dimensional ones are from the features.

    Args:
        bottleneck: restores features.
        features: [..., D] of the semantic encoder.
        low: [..., d], ``bottleneck.down(features)``.
        dims: sizes of the P prefixes.

    Returns:
        [..., P] float32: ``1 - cosine``.
    """
    target = F.normalize(features.float(), dim=-1)
    restored = (F.normalize(bottleneck.restore(low[..., :size]).float(), dim=-1) for size in dims)
    return torch.stack([1.0 - (x * target).sum(-1) for x in restored], dim=-1)


def require_nested(config: LoSATokConfig, argument: str) -> tuple[int, ...]:
    """The sizes to which latents of a model of ``config`` can be cut.

    Args:
        config: of the model.
        argument: that asks for a cut; the message begins with it.

    Raises:
        UserError: the model was not trained for prefixes, or has a quantizer.
    """
    if not config.nested_dims:
        raise UserError(
            f"{argument}: this model was not trained for prefixes of its latents; train one with "
            "`losatok train sembo --set sembo.prefixes=[16,32,64]` and the tokenizer on it"
        )
    if config.quantizer is not None:
        raise UserError(
            f"{argument}: this model has a quantizer ({quantizer_name(config.quantizer)}), whose codes stand for all "
            "dimensions of a latent; use the model without it"
        )
    return config.nested_dims


def choose_dims(config: LoSATokConfig, dims: int | Sequence[int] | Tensor, clips: int) -> Tensor:
    """The dimensions to keep of each clip's latents, [B] int64 on the CPU.

    Args:
        config: of the model.
        dims: one size for all clips, or one for each.
        clips: B.

    Raises:
        UserError: the model has no nested latents.
        ValueError: another number of sizes than of clips, or a size that was not trained.
    """
    trained = require_nested(config, "dims")
    sizes = [dims] * clips if isinstance(dims, int) else [int(size) for size in dims]
    if len(sizes) != clips:
        raise ValueError(f"dims should be one number, or one for each of the {clips} clips, got {len(sizes)}")
    for size in sizes:
        if size not in trained:
            raise ValueError(f"dims should be one of {', '.join(map(str, trained))} (what was trained), got {size}")
    return torch.tensor(sizes, dtype=torch.int64)


def least_dims(errors: Tensor, lengths: Tensor, dims: Sequence[int], target: float) -> Tensor:
    """The fewest dimensions of each clip whose mean error is at most ``target``, [B] int64; all where none is enough.

    Args:
        errors: [B, T, P], ``1 - cosine`` of each frame restored from each prefix.
        lengths: [B] int64 frames.
        dims: sizes of the P prefixes, ascending.
        target: 0 (the direction of the features exactly) to 2.
    """
    means = keep_valid(errors.float(), lengths).sum(1) / lengths.clamp(min=1)[:, None]
    enough = means <= target
    enough[:, -1] = True
    return torch.tensor(dims, dtype=torch.int64, device=errors.device)[enough.int().argmax(1)]


def truncate(latents: Latents, dims: Tensor) -> Latents:
    """``latents`` with zeros from dimension ``dims`` [B] on in ``z``, ``mu`` and ``logvar``.

    Zeros in ``mu`` and ``logvar`` are the prior: the posterior of these dimensions holds no information.
    """
    kept = valid_mask(dims, latents.z.shape[-1])[:, None]
    parts = {name: torch.where(kept, getattr(latents, name), 0.0) for name in ("z", "mu", "logvar")}
    return dataclasses.replace(latents, dims=dims, **parts)
