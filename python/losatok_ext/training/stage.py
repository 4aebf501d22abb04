"""What a stage of training adds to the loop that all share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from losatok_ext.training.data import Batch


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
