"""Reductions that a semantic bottleneck is compared with: principal components and channel merging."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.rank import Moments


class LinearReduction:
    """A linear map from D to d dimensions, and the affine map back with the least squared error.

    Args:
        dims: d, at least 1.
    """

    name = ""

    def __init__(self, dims: int) -> None:
        if dims < 1:
            raise ValueError(f"dims should be at least 1, got {dims}")
        self.dims = dims
        self._mean: Tensor | None = None
        self._down: Tensor | None = None
        self._up: Tensor | None = None

    def fit(self, frames: Tensor | Iterable[Tensor] | Moments):
        """Fit to frames [N, D], to blocks of frames, or to their moments; returns itself.

        Raises:
            UserError: the frames have fewer than d dimensions, or there is no frame.
            ValueError: the frames differ in D, or have values that are not finite.
        """
        moments = frames if isinstance(frames, Moments) else take_moments(frames)
        if self.dims > moments.width:
            raise UserError(
                f"{self.name}:{self.dims} needs as many dimensions, and these features have {moments.width}"
            )
        self._mean = moments.mean
        self._down, self._up = self._maps(moments)
        return self

    def transform(self, frames: Tensor) -> Tensor:
        """``frames`` [..., D] in d dimensions: [..., d] in their dtype.

        The mean is not subtracted: a probe does not depend on it, but angles between frames do.
        """
        _, down, _ = self._fitted()
        return (frames.double() @ down).to(frames.dtype)

    def restore(self, reduced: Tensor) -> Tensor:
        """``reduced`` [..., d] back in D dimensions: [..., D] in its dtype."""
        mean, down, up = self._fitted()
        return ((reduced.double() - mean @ down) @ up + mean).to(reduced.dtype)

    def explained(self, moments: Moments) -> float:
        """Share of the variance of frames with these ``moments`` that :meth:`restore` explains.

        1 minus the mean squared error divided by the variance; below 0 where the mean alone would have less error.
        """
        mean, down, up = self._fitted()
        rest = torch.eye(moments.width, dtype=torch.float64) - down @ up
        shift = (moments.mean - mean) @ rest
        error = float(torch.einsum("ij,jk,ik->", rest.t(), moments.covariance, rest.t())) + float(shift @ shift)
        total = float(moments.covariance.trace())
        return 1 - error / total if total > 0 else 1.0

    def _maps(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """The maps down [D, d] and up [d, D]."""
        raise NotImplementedError

    def _fitted(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._mean is None or self._down is None or self._up is None:
            raise RuntimeError(f"{type(self).__name__} was not fitted; call fit first")
        return self._mean, self._down, self._up


class PCA(LinearReduction):
    """The first d principal components, which have the least squared error of all linear maps to d dimensions.

    The sign of each component is chosen so that its largest entry is positive; equal data then give equal features.
    """

    name = "pca"

    def _maps(self, moments: Moments) -> tuple[Tensor, Tensor]:
        _, axes = torch.linalg.eigh(moments.covariance)
        axes = axes.flip(1)[:, : self.dims]
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        axes = axes * torch.where(largest < 0, -1.0, 1.0)
        return axes, axes.t()


class ChannelMerge(LinearReduction):
    """Means of d groups of neighbouring channels, whose sizes differ by at most one.

    Group ``i`` holds the channels from ``round(i D / d)`` up to ``round((i + 1) D / d)``; each is restored to its
    group's mean.
    """

    name = "merge"

    def _maps(self, moments: Moments) -> tuple[Tensor, Tensor]:
        edges = [round(i * moments.width / self.dims) for i in range(self.dims + 1)]
        up = torch.zeros(self.dims, moments.width, dtype=torch.float64)
        for group, (low, high) in enumerate(itertools.pairwise(edges)):
            up[group, low:high] = 1
        return (up / up.sum(1, keepdim=True)).t().contiguous(), up


BASELINES: dict[str, type[LinearReduction]] = {PCA.name: PCA, ChannelMerge.name: ChannelMerge}


def take_moments(frames: Tensor | Iterable[Tensor]) -> Moments:
    """Moments of frames [N, D], or of blocks of frames.

    Raises:
        UserError: there is no frame.
        ValueError: the frames differ in D, or have values that are not finite.
    """
    moments: Moments | None = None
    for block in [frames] if isinstance(frames, Tensor) else frames:
        moments = Moments(block.shape[-1]) if moments is None else moments
        moments.add(block)
    if moments is None or not moments.count:
        raise UserError("there are no frames to fit to")
    return moments
