"""How the losses of a stage are computed, in the same way by training and by validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.batches import Batch
from losatok_ext.training.engine.distributed import Processes
from losatok_ext.training.engine.parts import Part, cut
from losatok_ext.training.stages.base import AdversarialStage, Stage

T = TypeVar("T")


class _Forward(nn.Module):
    """A module whose forward runs any function with ``model``. Data parallelism and sharding hook into a module's
    forward, and a stage computes more than the forward of its model.

    Args:
        model: whose parameters are used.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], T]) -> T:
        return work()


class Objective:
    """The losses of a stage on the parts of a batch, in the precision of the run and over its processes.

    Args:
        stage: whose model and critic are on the device.
        config: of the run.
        processes: this one, and those that train with it.
        optimizer: of the model; it follows the weights where these are sharded.
        multiple: batches are padded to a multiple of this length, in the unit of their lengths.
    """

    def __init__(
        self,
        stage: Stage,
        config: TrainConfig,
        processes: Processes,
        optimizer: torch.optim.Optimizer,
        multiple: int,
    ) -> None:
        self.stage, self.config, self.processes = stage, config, processes
        self.multiple = multiple
        self.critic = stage.critic if isinstance(stage, AdversarialStage) else None
        self._module = processes.prepare(_Forward(stage.model), optimizer)

    def parts(self, batch: Batch) -> Iterator[Part]:
        """This process's rows ``batch`` of a step, in the parts that are computed one after another."""
        return cut(batch, self.processes, self.config.optimizer.accumulate, self.multiple)

    def compute(self, work: Callable[[], T]) -> T:
        """``work()``, in which the model may be used: weights that are sharded are complete inside."""
        return self._module(work)

    def backward_of(self, part: Part) -> AbstractContextManager[Any]:
        """A context for the backward pass of ``part``: gradients stay in this process until the last part of a step."""
        return nullcontext() if part.last else self.processes.waiting(self._module)

    def losses(self, part: Part, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``part`` adds to the losses of the whole batch.

        Args:
            part: of the batch.
            step: steps done before this one.

        Returns:
            (weighted total, unweighted losses by name): float32 scalars with gradients.
        """

        def work() -> tuple[Tensor, dict[str, Tensor]]:
            losses = self._shares_of(part, lambda: self.stage.losses(part.batch, step))
            return _weighted(losses, self.stage.weights), losses

        return self.compute(work)

    def critic_losses(self, part: Part) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The same of the critic's losses, after :meth:`losses` of the same part; None where it has none."""
        stage = self.stage
        assert isinstance(stage, AdversarialStage)
        losses = self._shares_of(part, stage.critic_losses)
        return (_weighted(losses, stage.critic_weights), losses) if losses else None

    def _shares_of(self, part: Part, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses that ``compute`` gives for ``part``, under autocast, each weighted by its share of the batch."""
        mixed = self.config.precision == "bfloat16"
        with torch.autocast(self.processes.device.type, torch.bfloat16) if mixed else nullcontext():
            found = compute()
        shares = part.shares(self.stage)
        return {name: shares.of(name) * loss.float() for name, loss in found.items()}


def _weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of the losses that are there."""
    return torch.stack([w * losses[name] for name, w in weights.items() if w and name in losses]).sum()
