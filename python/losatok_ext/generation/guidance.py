"""Classifier-free guidance: the prediction is moved away from that without conditions.

Sources: Ho and Salimans 2022 (arXiv 2207.12598); a limited interval: Kynkaanniemi et al. 2024 (arXiv 2404.07724);
rescaling: Lin et al. 2023 (arXiv 2305.08891, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from losatok_ext.configuration import Configuration, NonNegative, Share
from losatok_ext.generation.solvers import Velocity
from losatok_ext.masks import keep_valid


@dataclass(frozen=True)
class Guidance(Configuration):
    """How strongly a sample follows its conditions: ``v = v_without + scale (v_with - v_without)``.

    Raises:
        ConfigError: a value out of its range.
    """

    scale: NonNegative = 3.0
    """1: the conditional model as it is (and half the work); 0: the unconditional one. Code that calls
    ``v_with + s (v_with - v_without)`` a scale of s means s + 1 here."""
    interval: tuple[Share, Share] = (0.0, 1.0)
    """Noise levels within which guidance acts; outside, the conditional model alone is asked."""
    rescale: Share = 0.0
    """0..1: how far the guided velocity's spread is drawn back to the conditional one's, against over-saturation."""

    def _check_fit(self) -> None:
        low, high = self.interval
        self._require(low <= high, "interval", "two noise levels, the lower first")

    def acts_at(self, level: float) -> bool:
        """Whether guidance changes anything at this noise level."""
        return self.scale != 1 and self.interval[0] <= level <= self.interval[1]

    def combine(self, conditional: Tensor, unconditional: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The guided velocity [B, T, d] of both predictions; spreads are measured per item, below ``lengths`` [B]."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if not self.rescale:
            return guided
        ratio = _spread(conditional, lengths) / _spread(guided, lengths).clamp(min=1e-12)
        factor = self.rescale * ratio + (1 - self.rescale)
        return guided * factor[:, None, None].to(guided.dtype)


def _spread(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Standard deviation [B] of each item's valid values, float32 (float64)."""
    x = keep_valid(x if x.dtype == torch.float64 else x.float(), lengths)
    tokens = torch.full_like(x[:, 0, 0], x.shape[1]) if lengths is None else lengths.to(x)
    count = (tokens * x.shape[2]).clamp(min=1)
    mean = x.sum((1, 2)) / count
    deviation = keep_valid(x - mean[:, None, None], lengths)
    return (deviation.square().sum((1, 2)) / count).sqrt()


def guided_velocity(
    conditional: Velocity,
    joint: Velocity,
    guidance: Guidance,
    level_at: Callable[[float], float],
    lengths: Tensor | None = None,
) -> Velocity:
    """The velocity that a guided sampler integrates.

    Args:
        conditional: the model with its conditions.
        joint: the model on [2B, T, d], with conditions in the first half and without in the second.
        guidance: how to combine them.
        level_at: the noise level at a time (:meth:`FlowMatching.time_at`).
        lengths: [B], number of tokens of each item.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        if not guidance.acts_at(level_at(t)):
            return conditional(x, t)
        both = joint(torch.cat([x, x]), t)
        with_, without = both.chunk(2)
        return guidance.combine(with_, without, lengths)

    return velocity
