"""The time-relation loss in plain PyTorch: the definition, and the oracle of every test of the op.

It runs in the dtype of its inputs, with float32 (float64) norms and sums, and stores full [B, T, T] matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from losatok_ext.masks import keep_valid, valid_frames
from losatok_ext.ops.checks import wide


def valid_pairs(x: Tensor, lengths: Tensor | None, window: int | None) -> Tensor:
    """Which pairs (i, j) of frames of ``x`` [B, T, *] count: both valid and |i - j| <= window; bool [B, T, T]."""
    frames = valid_frames(x, lengths)
    pairs = frames[:, :, None] & frames[:, None, :]
    if window is not None:
        time = torch.arange(x.shape[1], device=x.device)
        pairs = pairs & ((time[:, None] - time[None, :]).abs() <= window)
    return pairs


def normalized_rows(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Rows of ``x`` [B, T, C] over max(their L2 norm, 1e-12), zero past ``lengths``.

    The norm is taken in float32 (float64): in float16, 1e-12 is 0.
    """
    x = keep_valid(x, lengths)
    return normalize(x.to(wide(x)), dim=-1, eps=1e-12).to(x.dtype)


def time_relation_loss(low: Tensor, high: Tensor, lengths: Tensor | None = None, window: int | None = None) -> Tensor:
    """Mean over valid pairs (i, j) of (l_i.l_j - h_i.h_j)^2; l, h: the L2-normalised rows of ``low`` and ``high``.

    Args:
        low: [B, T, d].
        high: [B, T, D], same dtype; no gradient flows to it.
        lengths: [B] int64, valid frames per clip, or None.
        window: keep pairs with |i - j| <= window, or None for all.

    Returns:
        [] in the dtype of ``low``; 0 when no pair is valid. The mean is over all pairs of the batch, so that a
        longer clip weighs more.
    """
    low, high = normalized_rows(low, lengths), normalized_rows(high.detach(), lengths)
    pairs = valid_pairs(low, lengths, window)
    difference = (low @ low.mT - high @ high.mT).masked_fill(~pairs, 0)
    total = difference.to(wide(low)).square().sum()
    return (total / pairs.sum().clamp(min=1)).to(low.dtype)


def gram_energy(high: Tensor, lengths: Tensor | None = None, window: int | None = None) -> Tensor:
    """Per clip, the sum over valid pairs (i, j) of (h_i.h_j)^2, h being the L2-normalised rows of ``high`` [B, T, D].

    Returns:
        [B], float32 (float64 for float64).
    """
    high = normalized_rows(high, lengths)
    products = (high @ high.mT).masked_fill(~valid_pairs(high, lengths, window), 0)
    return products.to(wide(high)).square().sum(dim=(1, 2))
