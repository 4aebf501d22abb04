"""Distances between two sets of features (Frechet and kernel), with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from losatok_ext.errors import UserError

_BLOCK = 2048  # rows of a kernel matrix at once


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance between the normal distributions with the moments of ``x`` [n, D] and ``y`` [m, D].

    ``|mx - my|^2 + tr Cx + tr Cy - 2 tr (Cx Cy)^(1/2)``, covariances over n - 1 and m - 1, in float64. The last trace
    is the sum of the singular values of ``Ax Ay^T`` for any factors ``C = A^T A``, such as the centred rows over
    ``sqrt(n - 1)``. No matrix root is computed, so covariances need not have full rank.

    Source: Dowson and Landau 1982; Heusel et al. 2017 (FID); Kilgour et al. 2019 (FAD).

    Raises:
        UserError: a set has fewer than two rows.
        ValueError: a set is not [n, D], the sets differ in D, or have values that are not finite.
    """
    _check(x, y)
    factors, traces = [], 0.0
    for values in (x, y):
        rows = values.double()
        centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
        traces += float(centred.square().sum())
        # For many rows, the triangular factor of the QR decomposition is a smaller factor of the same covariance.
        factors.append(centred if len(rows) <= rows.shape[1] else torch.linalg.qr(centred, mode="r").R)
    mean = float((x.double().mean(0) - y.double().mean(0)).square().sum())
    cross = float(torch.linalg.svdvals(factors[0] @ factors[1].t()).sum())
    return max(mean + traces - 2 * cross, 0.0)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy of ``x`` [n, D] and ``y`` [m, D] with the kernel ``(a b / D + 1)^3``, unbiased.

    Its mean is 0 for sets of the same distribution, so it can be below 0. Unlike the Frechet distance it does not
    become larger for smaller sets. Source: Binkowski et al. 2018, "Demystifying MMD GANs" (KID).

    Raises:
        UserError: a set has fewer than two rows.
        ValueError: a set is not [n, D], the sets differ in D, or have values that are not finite.
    """
    _check(x, y)
    a, b = x.double(), y.double()
    return _within(a) + _within(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    return sum(float((rows @ b.t() / a.shape[1] + 1).pow(3).sum()) for rows in a.split(_BLOCK))


def _within(a: Tensor) -> float:
    own = (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()
    return (_kernel_sum(a, a) - float(own)) / (len(a) * (len(a) - 1))


class Interval(NamedTuple):
    """A figure with its 95 % bootstrap interval.

    Attributes:
        value: of the complete sets.
        low, high: the middle 95 % of the figure over bootstrap samples, shifted so that their mean is ``value``,
            because resampling alone makes both distances larger.
        spread: standard deviation over the samples.
    """

    value: float
    low: float
    high: float
    spread: float


def bootstrap(
    distance: Callable[[Tensor, Tensor], float],
    x: list[Tensor],
    y: list[Tensor],
    samples: int = 100,
    seed: int = 0,
) -> Interval:
    """``distance`` of the rows of clips ``x`` and ``y``, and its spread over samples of clips with replacement.

    Complete clips are drawn, because frames of one clip are not independent.

    Args:
        distance: of two sets of rows [n, D].
        x: rows [n_i, D] of each clip.
        y: rows [n_i, D] of each clip.
        samples: number of bootstrap samples, at least 2.
        seed: of the random draws.

    Raises:
        UserError, ValueError: whatever ``distance`` raises.
    """
    generator = torch.Generator().manual_seed(seed)
    value = distance(torch.cat(x), torch.cat(y))
    found = []
    for _ in range(samples):
        drawn = [[clips[i] for i in torch.randint(len(clips), (len(clips),), generator=generator)] for clips in (x, y)]
        found.append(distance(torch.cat(drawn[0]), torch.cat(drawn[1])))
    values = torch.tensor(found, dtype=torch.float64)
    low, high = torch.quantile(values - values.mean(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value, value + low, value + high, float(values.std()))


def extrapolated_frechet(x: list[Tensor], y: list[Tensor], sizes: int = 8, seed: int = 0) -> float:
    """The Frechet distance extrapolated to infinitely many generated clips.

    The bias of the distance is proportional to 1 / clips. A line over 1 / clips is fitted to the distances of ``x`` to
    random parts of ``y``, from a third of its clips to all; its value at 0 is returned and may be negative. This
    removes the bias that comes from ``y``; the bias from ``x`` stays. Source: Chong and
    Forsyth 2020, "Effectively unbiased FID"; Gui et al. 2024 for audio.

    Args:
        x: rows [n_i, D] of each reference clip.
        y: of each generated clip.
        sizes: number of parts that the line is fitted to.
        seed: of the random parts.

    Raises:
        UserError: fewer than 9 generated clips.
    """
    if len(y) < 9:
        raise UserError(f"extrapolating needs at least 9 generated clips, got {len(y)}")
    generator = torch.Generator().manual_seed(seed)
    reference = torch.cat(x)
    counts = sorted({round(n) for n in torch.linspace(len(y) / 3, len(y), sizes).tolist()})
    values = []
    for count in counts:
        part = torch.randperm(len(y), generator=generator)[:count]
        values.append(frechet_distance(reference, torch.cat([y[i] for i in part])))
    inverse = 1 / torch.tensor(counts, dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], 1)
    return float(torch.linalg.lstsq(design, torch.tensor(values, dtype=torch.float64)[:, None]).solution[0])


def _check(x: Tensor, y: Tensor) -> None:
    for name, values in (("x", x), ("y", y)):
        if values.dim() != 2 or values.shape[1] != x.shape[1]:
            raise ValueError(f"{name} should have shape [n, D = {x.shape[-1]}], got {list(values.shape)}")
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} should be finite, got NaN or infinity")
        if len(values) < 2:
            raise UserError(f"a distance between sets needs 2 rows of each, got {len(values)}; give more clips")
