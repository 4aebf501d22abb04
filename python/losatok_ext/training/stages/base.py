"""What a stage of training adds to the loop that all share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from losatok_ext.training.data.crops import Batch


class Stage(Protocol):
    """A model of which the stage lets some parameters take gradients, and its losses."""

    @property
    def name(self) -> str:
        """Of the stage, as the command line has it."""

    @property
    def model(self) -> nn.Module:
        """The whole model; its parameters that take gradients are trained."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Loss name -> its weight in the total. Losses that a step does not return are left out of it."""

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Unweighted scalar losses by name, under the run's autocast; called once per step and micro-batch.

        Args:
            batch: on the run's device.
            step: steps done before this one.
        """


@runtime_checkable
class AdversarialStage(Protocol):
    """What a stage with discriminators has beside the rest of :class:`Stage`.

    In a step the critic's parameters take no gradient while :meth:`Stage.losses` runs and is propagated back, then take
    them for :meth:`critic_losses`. The critic has its own AdamW, gradient clipping and place in checkpoints.
    """

    @property
    def critic(self) -> nn.Module | None:
        """The discriminators; None: the stage trains without."""

    @property
    def critic_weights(self) -> Mapping[str, float]:
        """Name of a critic's loss -> its weight in the critic's total."""

    def critic_losses(self) -> dict[str, Tensor]:
        """The critic's unweighted losses for the batch that :meth:`Stage.losses` saw last, of whose audio the stage
        kept a detached copy; empty where the critic is not trained yet."""


@runtime_checkable
class CountingStage(Protocol):
    """A stage that knows what its losses are means over.

    Where a batch is cut into parts (gradient accumulation, several processes) the loss of the whole is the mean of the
    parts' weighted by what each counts. A loss that is not named counts samples (tokens of a corpus of latents).
    """

    def counts(self, batch: Batch, lengths: Tensor) -> Mapping[str, Tensor | None]:
        """Loss name -> what it counts in each clip, [B], for clips of ``lengths`` [B] int64 in the unit of ``batch``,
        which they are part of or hold. None: the loss of a batch with :attr:`Batch.whole` is weighed already."""


class ClipLatents(NamedTuple):
    """The latents of a batch: ``mean`` [B, T, d], ``logvar`` [B, T, d] or None, ``lengths`` [B] int64 tokens."""

    mean: Tensor
    logvar: Tensor | None
    lengths: Tensor


class Shown(NamedTuple):
    """What a listener compares: a clip as it was given, and what the model makes of it; [N] float32 each."""

    name: str
    given: Tensor
    made: Tensor
    sample_rate: int


@runtime_checkable
class ShownStage(Protocol):
    """A stage that validation can look into. Both are called without gradients, in eval mode, with the weights' moving
    mean where there is one."""

    def latents(self, batch: Batch) -> ClipLatents | None:
        """The latents of a batch; None: the stage has none of its own."""

    def show(self, batch: Batch) -> list[Shown]:
        """What to hear of each clip of a batch; empty where the stage makes no audio."""
