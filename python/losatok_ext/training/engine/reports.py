"""What the loop tells of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Validation:
    """What a validation found."""

    step: int
    """Steps done."""
    losses: dict[str, float]
    """Unweighted losses by name."""
    total: float
    """Their weighted sum."""
    statistics: dict[str, float]
    """Of the latents, where the stage has any: :meth:`LatentStatistics.scalars`."""
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
    """Norm of the whole gradient before clipping."""
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
    """Whether this step was taken."""
    validation: Validation | None = None
    """What was found where the step was validated."""


OnStep = Callable[[StepReport], None]


@dataclass(frozen=True)
class Best:
    """The validation with the lowest total."""

    step: int
    total: float


@dataclass(frozen=True)
class Progress:
    """Where training stopped."""

    step: int
    skipped: int
    last: StepReport | None
    """The last step's report; None when there was nothing left to do."""
    best: Best | None
    """The best validation; None without any."""


@dataclass(frozen=True)
class Taken:
    """The numbers of a step, of all processes together."""

    losses: dict[str, float]
    total: float
    grad_norm: float
    critic_total: float | None
    critic_grad_norm: float | None

    @property
    def finite(self) -> bool:
        """Whether both sides may learn from it."""
        numbers = (self.total, self.grad_norm, self.critic_total, self.critic_grad_norm)
        return all(number is None or math.isfinite(number) for number in numbers)
