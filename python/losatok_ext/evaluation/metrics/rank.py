"""How many dimensions features use: their covariance, effective rank and explained variance."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Count, mean and covariance of frames that are added block by block, in float64.

    Args:
        width: D, of a frame.
    """

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0
        self._shift: Tensor | None = None
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._outer = torch.zeros(width, width, dtype=torch.float64)

    def add(self, frames: Tensor) -> None:
        """Add ``frames`` [N, D].

        Raises:
            ValueError: ``frames`` is not [N, D], or has values that are not finite.
        """
        if frames.dim() != 2 or frames.shape[1] != self.width:
            raise ValueError(f"frames should have shape [N, {self.width}], got {list(frames.shape)}")
        if not torch.isfinite(frames).all():
            raise ValueError("frames should be finite, got NaN or infinity")
        if not len(frames):
            return
        x = frames.double().cpu()
        if self._shift is None:  # shifted values are small, so the sums of their squares keep their precision
            self._shift = x.mean(0)
        x = x - self._shift
        self.count += len(x)
        self._sum += x.sum(0)
        self._outer += x.t() @ x

    @property
    def mean(self) -> Tensor:
        """[D] float64."""
        assert self._shift is not None, "no frame was added"
        return self._shift + self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """[D, D] float64, divided by the count (not by one less)."""
        centre = self._sum / self.count
        return self._outer / self.count - torch.outer(centre, centre)

    def variances(self) -> Tensor:
        """Variances along the principal axes, the eigenvalues of the covariance: [D] float64, falling, at least 0."""
        return torch.linalg.eigvalsh(self.covariance).flip(0).clamp(min=0)


def effective_rank(variances: Tensor) -> float:
    """The effective rank of centred features: the exponential of the entropy of their singular values' shares.

    ``exp(-sum p_i ln p_i)`` with ``p_i = s_i / sum s``; the singular values s of the matrix of frames are the roots of
    ``variances`` [D], up to a factor. From 1 to D; 0 where nothing varies. Source: Roy and Vetterli 2007, "The
    effective rank: a measure of effective dimensionality".
    """
    singular = variances.double().clamp(min=0).sqrt()
    if not bool(singular.sum() > 0):
        return 0.0
    shares = singular / singular.sum()
    return float(torch.special.entr(shares).sum().exp())


def participation_ratio(variances: Tensor) -> float:
    """``(sum v)^2 / sum v^2`` of ``variances`` [D]: D for equal ones, 1 for a single one, 0 where nothing varies.

    Source: Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".
    """
    values = variances.double().clamp(min=0)
    squared = float(values.square().sum())
    return float(values.sum()) ** 2 / squared if squared > 0 else 0.0


def explained_variance(variances: Tensor) -> Tensor:
    """Share of the variance that the first 1 .. D principal axes hold: [D] float64 from falling ``variances`` [D]."""
    values = variances.double().clamp(min=0)
    total = values.sum()
    return values.cumsum(0) / total if bool(total > 0) else torch.ones_like(values)


def dimensions_for(variances: Tensor, share: float) -> int:
    """The fewest principal axes that hold ``share`` (0 to 1) of the variance."""
    return int((explained_variance(variances) < share - 1e-12).sum()) + 1
