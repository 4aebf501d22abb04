"""k-means on the rows of a first batch: where codebooks start from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext import ops
from losatok_ext.nn.quantizers.pool import spread
from losatok_ext.ops.quantize import sums_by_code


def kmeans(
    rows: Tensor, valid: Tensor, size: int, iterations: int, noise: Tensor, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from rows at random; a centre that nobody chooses moves to a row far from its own.

    Nothing waits for the device, and equal arguments give equal bits.

    Args:
        rows: [n, d] float32 or float64, n >= 1.
        valid: int64 scalar: the first so many rows count.
        size: K, centres; those beyond the number of rows repeat others.
        iterations: of assignment and mean.
        noise: [K] within 0..1: which rows are the first centres.
        cosine: centres have length 1, as the rows should.

    Returns:
        centres [K, d] and how many rows chose each, [K] in the dtype of ``rows``.
    """
    batch, lengths = rows.unsqueeze(0), valid.view(1)
    first = spread(valid.clamp(max=size).clamp(min=1), valid, size, noise)
    # With fewer rows than centres, the rows again from the beginning.
    centres = rows[torch.where(first < valid, first, first % valid.clamp(min=1))]
    spare = min(size, len(rows))
    for _ in range(iterations):
        codes, distance = ops.vq_nearest(batch, centres, lengths)
        chosen = usable(codes, distance)
        counts, sums = count_and_sum(batch, chosen, size)
        means = sums / counts.clamp(min=1).unsqueeze(-1)
        if cosine:
            means = F.normalize(means, dim=-1)
        far = torch.where(chosen >= 0, distance, -1.0).view(-1).topk(spare).indices
        empty = counts == 0
        turn = empty.cumsum(0) - 1
        found = turn < torch.minimum((chosen >= 0).sum(), valid.clamp(max=spare))
        moved = torch.where(found.unsqueeze(-1), rows[far[turn.clamp(0, spare - 1)]], centres)
        centres = torch.where(empty.unsqueeze(-1), moved, means)
    codes, distance = ops.vq_nearest(batch, centres, lengths)
    return centres, count_and_sum(batch, usable(codes, distance), size)[0]


def usable(codes: Tensor, distance: Tensor) -> Tensor:
    """``codes`` with -1 for rows that are not finite: they would spoil every mean they enter."""
    return torch.where(torch.isfinite(distance), codes, -1)


def count_and_sum(x: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many rows of ``x`` [B, T, d] chose each code, [size], and their sums [size, d]; ``codes`` [B, T], -1 none."""
    flat, chosen = x.flatten(0, 1), codes.flatten()
    ones = flat.new_ones((1, 1)).expand(len(chosen), 1)
    return sums_by_code(ones, chosen, size)[:, 0], sums_by_code(flat, chosen, size)
