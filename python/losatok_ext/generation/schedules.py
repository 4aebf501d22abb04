"""The noise levels at which a sampler evaluates the model, from noise to data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from losatok_ext.configuration import Configuration, Positive, Range
from losatok_ext.nn.flow_matching import shift_noise_level

ScheduleName = Literal["uniform", "sway", "shifted"]


@dataclass(frozen=True)
class Schedule(Configuration):
    """Noise levels of a sampler's steps, the same in both directions of flow matching.

    ``uniform``: equal steps. ``sway`` (F5-TTS, Chen et al. 2024, arXiv 2410.06885, equation 7): progress u = 1 - s
    becomes ``u + sway (cos(pi u / 2) - 1 + u)``; -1 takes small steps near noise. ``shifted`` (Stable Diffusion 3,
    Esser et al. 2024, arXiv 2403.03206, section 5.3.2): levels move towards noise with ``shift`` > 1.

    Raises:
        ConfigError: a value out of its range.
    """

    name: ScheduleName = "uniform"
    sway: Annotated[float, Range(-1, 2 / (math.pi - 2))] = -1.0
    """Of ``sway``: within -1 .. 2 / (pi - 2), where steps go one way."""
    shift: Positive = 3.0
    """Of ``shifted``: positive."""

    def noise_levels(self, steps: int) -> list[float]:
        """``steps + 1`` falling noise levels, from 1 (noise) to 0 (data) exactly.

        Raises:
            ValueError: ``steps`` is not positive.
        """
        if steps < 1:
            raise ValueError(f"steps should be at least 1, got {steps}")
        progress = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        if self.name == "sway":
            progress = progress + self.sway * ((math.pi / 2 * progress).cos() - 1 + progress)
        levels = 1 - progress
        if self.name == "shifted":
            levels = shift_noise_level(levels, self.shift)
        return [1.0, *levels[1:-1].tolist(), 0.0]
