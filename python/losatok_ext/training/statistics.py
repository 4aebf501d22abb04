"""Mean and standard deviation of latents that are seen a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningMoments:
    """Mean and standard deviation of each dimension of vectors, in one pass and float64.

    Batches are merged by the update of Chan, Golub and LeVeque 1983 (equations 1.5), which does not cancel where the
    mean is large against the deviation, as sums of squares would.

    Args:
        dim: of the vectors.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._squares = torch.zeros(dim, dtype=torch.float64)

    def update(self, vectors: Tensor) -> None:
        """Count ``vectors`` [N, dim] in."""
        if len(vectors) == 0:
            return
        vectors = vectors.detach().to("cpu", torch.float64)
        mean = vectors.mean(0)
        squares = (vectors - mean).square().sum(0)
        away = mean - self._mean
        total = self.count + len(vectors)
        self._squares += squares + away.square() * (self.count * len(vectors) / total)
        self._mean += away * (len(vectors) / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """[dim] float32."""
        return self._mean.float()

    @property
    def std(self) -> Tensor:
        """[dim] float32, of the vectors as a whole population; 1 in a dimension that never changes."""
        deviation = (self._squares / max(self.count, 1)).sqrt().float()
        return torch.where(deviation > 0, deviation, 1.0)
