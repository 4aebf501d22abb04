"""What the loop reports of its steps and validations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Validation:
    """The results of a validation."""

    step: int
    """Steps done."""
    losses: dict[str, float]
    """Unweighted losses by name."""
    total: float
    """Their weighted sum."""
    statistics: dict[str, float]
    """Of the latents, where the stage has any: :meth:`DimensionStatistics.scalars`."""
    best: bool
    """Whether no validation before had a lower total."""


@dataclass(frozen=True)
class StepReport:
    """What ``on_step`` receives after every step."""

    stage: str
    step: int
    """Steps done, this one included."""
    steps: int
    losses: dict[str, float]
    """Unweighted losses by name."""
    total: float
    """Their weighted sum."""
    grad_norm: float
    """Norm of the gradient of all parameters, before clipping."""
    critic_grad_norm: float | None
    """The same of the critic; None where it was not trained in this step."""
    lr: float
    audio_seconds: float
    """Seconds of audio in the batch."""
    audio_rate: float
    """Seconds of audio per second of training, a running mean."""
    skipped: int
    """Steps so far that were skipped because a loss or the gradient was not finite."""
    finite: bool
    """Whether losses and gradients were finite; else the weights did not change."""
    validation: Validation | None = None
    """Of the model after this step; None where none was due."""


OnStep = Callable[[StepReport], None]


@dataclass(frozen=True)
class Best:
    """The validation with the lowest total."""

    step: int
    total: float


@dataclass(frozen=True)
class StepResult:
    """The numbers of a step, of all processes together."""

    losses: dict[str, float]
    """Unweighted losses by name, those of a critic included."""
    total: float
    """The weighted sum of the model's losses."""
    grad_norm: float
    critic_total: float | None
    """The weighted sum of the critic's losses; None where it was not trained in this step."""
    critic_grad_norm: float | None

    @property
    def finite(self) -> bool:
        """Whether all of them are finite, so that model and critic may take the step."""
        numbers = (self.total, self.grad_norm, self.critic_total, self.critic_grad_norm)
        return all(number is None or math.isfinite(number) for number in numbers)
