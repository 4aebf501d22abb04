"""k-means on the rows of the first batch, for the starting values of codebooks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext import ops
from losatok_ext.ops.quantize import sums_by_code

ROUNDS = 8
"""Number of rounds in which the first centres are drawn."""


def kmeans(
    rows: Tensor, valid: Tensor, size: int, iterations: int, noise: Tensor, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm. A centre that no row chooses moves to the row that is farthest from its centre.

    The first centres are drawn in a few rounds, each row with a probability proportional to its squared distance from
    the centres drawn before, as in k-means|| (Bahmani et al. 2012); drawing one centre per round would be k-means++
    (Arthur and Vassilvitskii 2007). The device is not waited for, and equal arguments give equal bits.

    Args:
        rows: [n, d] float32 or float64, n >= 1.
        valid: int64 scalar, number of rows (the first ones) that are used.
        size: K, number of centres; if there are fewer rows, some centres are equal.
        iterations: number of assignments and means.
        noise: [K] within 0..1, the random numbers.
        cosine: centres have length 1; rows should too.

    Returns:
        centres [K, d] and the number of rows that chose each, [K] in the dtype of ``rows``.
    """
    batch, lengths = rows.unsqueeze(0), valid.view(1)
    centres = first_centres(rows, valid, size, noise)
    for _ in range(iterations):
        codes, distance = ops.vq_nearest(batch, centres, lengths)
        chosen = usable(codes, distance)
        counts, sums = count_and_sum(batch, chosen, size)
        means = sums / counts.clamp(min=1).unsqueeze(-1)
        if cosine:
            means = F.normalize(means, dim=-1)
        # Stable, so that unused rows do not change the order of rows at equal distance.
        far = torch.where(chosen >= 0, distance, -1.0).view(-1).argsort(descending=True, stable=True)
        empty = counts == 0
        turn = empty.cumsum(0) - 1
        found = turn < (chosen >= 0).sum()
        moved = torch.where(found.unsqueeze(-1), rows[far[turn.clamp(0, len(rows) - 1)]], centres)
        centres = torch.where(empty.unsqueeze(-1), moved, means)
    codes, distance = ops.vq_nearest(batch, centres, lengths)
    return centres, count_and_sum(batch, usable(codes, distance), size)[0]


def first_centres(rows: Tensor, valid: Tensor, size: int, noise: Tensor) -> Tensor:
    """The first centres [size, d]; see :func:`kmeans`."""
    counted = (torch.arange(len(rows), device=rows.device) < valid) & torch.isfinite(rows).all(-1)
    weight = counted.double()
    centres = rows[:0]
    noise = noise.double().clamp(max=1 - 2**-24)
    ends = [size * (number + 1) // ROUNDS for number in range(ROUNDS)]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        if begin == end:
            continue
        if begin:
            distance = ops.vq_nearest(rows.unsqueeze(0), centres, valid.view(1))[1][0]
            weight = torch.where(counted, distance.double(), 0.0)
            weight = torch.where(weight.sum() > 0, weight, counted.double())
        # One draw from each of several equal parts of the total weight.
        mass = weight.cumsum(0)
        part = torch.arange(end - begin, device=rows.device) + noise[begin:end]
        drawn = torch.searchsorted(mass, part * (mass[-1] / (end - begin)), right=True)
        centres = torch.cat((centres, rows[drawn.clamp(max=len(rows) - 1)]))
    return centres


def usable(codes: Tensor, distance: Tensor) -> Tensor:
    """``codes`` with -1 for rows that are not finite, which would make the means not finite."""
    return torch.where(torch.isfinite(distance), codes, -1)


def count_and_sum(x: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The number of rows of ``x`` [B, T, d] that chose each code, [size], and their sums [size, d]. Rows chose none
    where ``codes`` [B, T] are -1."""
    flat, chosen = x.flatten(0, 1), codes.flatten()
    ones = flat.new_ones((1, 1)).expand(len(chosen), 1)
    return sums_by_code(ones, chosen, size)[:, 0], sums_by_code(flat, chosen, size)
