"""The loop that every stage shares: batches, weighted losses, AdamW, guard, log, checkpoints, exact resume."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losatok_ext.errors import CheckpointError, TrainingError
from losatok_ext.training.checkpoint import Checkpoint, CheckpointStore, capture_random, restore_random
from losatok_ext.training.config import TrainConfig
from losatok_ext.training.data import Batch, CropSource
from losatok_ext.training.log import TrainingLog
from losatok_ext.training.optimizer import Learner
from losatok_ext.training.stage import AdversarialStage, Stage


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


OnStep = Callable[[StepReport], None]


@dataclass(frozen=True)
class Progress:
    """Where training stopped."""

    step: int
    skipped: int
    last: StepReport | None
    """The last step's report; None when there was nothing left to do."""


@dataclass(frozen=True)
class _Taken:
    """The numbers of a step."""

    losses: dict[str, float]
    total: float
    grad_norm: float
    critic_total: float | None
    critic_grad_norm: float | None

    @property
    def finite(self) -> bool:
        numbers = (self.total, self.grad_norm, self.critic_total, self.critic_grad_norm)
        return all(number is None or math.isfinite(number) for number in numbers)


class Trainer:
    """Trains one stage to its last step, from the beginning or from a checkpoint.

    Args:
        stage: the stage; its model is on ``device`` already.
        source: of batches.
        config: of the run.
        steps: length of the run.
        store: where checkpoints go.
        device: to train on.
    """

    def __init__(
        self,
        stage: Stage,
        source: CropSource,
        config: TrainConfig,
        steps: int,
        store: CheckpointStore,
        device: torch.device,
    ) -> None:
        self.stage = stage
        self.source = source
        self.config = config
        self.steps = steps
        self.store = store
        self.device = device
        self.learner = Learner(stage.model, config.optimizer, steps)
        self.critic = stage.critic if isinstance(stage, AdversarialStage) else None
        self.critic_learner: Learner | None = None
        if self.critic is not None:
            self.critic.to(device).requires_grad_(True)
            self.critic_learner = Learner(self.critic, config.optimizer, steps, critic=True)
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained of the model, by name."""
        return self.learner.parameters

    def frozen_state(self) -> dict[str, Tensor]:
        """The model's parameters that this stage leaves alone, by name."""
        return {name: p for name, p in self.stage.model.named_parameters() if name not in self.parameters}

    def _changing_state(self) -> dict[str, Tensor]:
        """What this stage may change: its parameters, and the model's buffers (few and small)."""
        state = self.stage.model.state_dict()
        parameters = dict(self.stage.model.named_parameters())
        return {name: value for name, value in state.items() if name in self.parameters or name not in parameters}

    def save(self) -> Path:
        """Write a checkpoint of the state after :attr:`step` steps."""
        random_tensors, random_values = capture_random(self.device)
        tensors = {"model": self._changing_state(), "optimizer": self.learner.state(), "random": random_tensors}
        if self.critic is not None and self.critic_learner is not None:
            tensors |= {"critic": self.critic.state_dict(), "critic_optimizer": self.critic_learner.state()}
        state = {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "random": random_values,
            "position": {"next_crop": self.step * self.source.batch_size},
        }
        return self.store.write(self.step, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``, exactly (on the CPU bit for bit).

        Raises:
            CheckpointError: it does not fit the model.
        """
        tensors = checkpoint.tensors
        _check_fits(checkpoint, "model", self._changing_state())
        self.stage.model.load_state_dict(tensors["model"], strict=False)
        self.learner.restore(tensors["optimizer"])
        if self.critic is not None and self.critic_learner is not None:
            _check_fits(checkpoint, "critic", self.critic.state_dict())
            self.critic.load_state_dict(tensors["critic"])
            self.critic_learner.restore(tensors["critic_optimizer"])
        values = checkpoint.state
        self.step, self.skipped, self.skipped_in_a_row = checkpoint.step, values["skipped"], values["skipped_in_a_row"]
        restore_random(tensors["random"], values["random"], self.device)

    def _autocast(self) -> Any:
        mixed = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()

    def _train_step(self, batch: Batch) -> _Taken:
        """One step. Nothing is changed when a loss or a gradient, of the model or the critic, is not finite."""
        stage, critic = self.stage, self.critic
        if critic is not None:
            critic.requires_grad_(False)
        with self._autocast():
            losses = stage.losses(batch.to(self.device), self.step)
        total = _weighted(losses, stage.weights)
        self.learner.zero()
        total.backward()
        numbers = {"total": total, "grad_norm": self.learner.clip()}
        if critic is not None and self.critic_learner is not None:
            assert isinstance(stage, AdversarialStage)
            critic.requires_grad_(True)
            with self._autocast():
                critic_losses = stage.critic_losses()
            if critic_losses:
                critic_total = _weighted(critic_losses, stage.critic_weights)
                self.critic_learner.zero()
                critic_total.backward()
                losses = losses | critic_losses
                numbers |= {"critic_total": critic_total, "critic_grad_norm": self.critic_learner.clip()}
        # The one wait for the device in a step: everything the guard, the log and the caller want, at once.
        both = [*losses.values(), *numbers.values()]
        values = torch.stack([value.detach().float() for value in both]).tolist()
        found = dict(zip(numbers, values[len(losses) :], strict=True))
        taken = _Taken(
            dict(zip(losses, values[: len(losses)], strict=True)),
            found["total"],
            found["grad_norm"],
            found.get("critic_total"),
            found.get("critic_grad_norm"),
        )
        if taken.finite:
            self.learner.take(self.step)
            if taken.critic_grad_norm is not None and self.critic_learner is not None:
                self.critic_learner.take(self.step)
        return taken

    def _failure(self, report: StepReport, batch: Batch) -> TrainingError:
        losses = ", ".join(f"{name} {value:g}" for name, value in report.losses.items())
        return TrainingError(
            f"training of {self.stage.name} stopped at step {report.step}: {self.skipped_in_a_row} steps in a row were "
            f"skipped because losses or gradients were not finite (the last: {losses}, gradient {report.grad_norm:g}, "
            f"clips {', '.join(batch.names[:3])}, ...); the state before them is kept in {self.store.root}; look at "
            "those clips, or start in another folder with a lower optimizer.lr"
        )

    def run(self, log: TrainingLog, on_step: OnStep | None = None) -> Progress:
        """Train until the last step; checkpoints are written as configured, and after the last step.

        On SIGINT or SIGTERM the step is finished and a checkpoint written before KeyboardInterrupt is raised.

        Raises:
            TrainingError: too many steps in a row were not finite (a checkpoint is written first), or no audio can be
                read.
            KeyboardInterrupt: asked to stop.
        """
        report = None
        rate = 0.0
        began = time.perf_counter()
        with _stop_requests() as stop_requested:
            for batch in self.source.batches(self.step, self.steps):
                lr = self.learner.rate(self.step)
                taken = self._train_step(batch)
                finite = taken.finite
                self.step += 1
                self.skipped += not finite
                self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
                now = time.perf_counter()
                speed = batch.seconds / (now - began)
                began = now
                rate = speed if rate == 0.0 else 0.9 * rate + 0.1 * speed
                report = StepReport(
                    stage=self.stage.name,
                    step=self.step,
                    steps=self.steps,
                    losses=taken.losses,
                    total=taken.total,
                    grad_norm=taken.grad_norm,
                    critic_grad_norm=taken.critic_grad_norm,
                    lr=lr,
                    audio_seconds=batch.seconds,
                    audio_rate=rate,
                    skipped=self.skipped,
                    finite=finite,
                )
                log.write(report)
                failing = self.skipped_in_a_row >= self.config.max_skipped
                stopping = stop_requested()
                if failing or stopping or self.step % self.config.checkpoint.every == 0 or self.step == self.steps:
                    self.save()
                if failing:
                    raise self._failure(report, batch)
                if on_step is not None:
                    on_step(report)
                if stopping and self.step < self.steps:
                    raise KeyboardInterrupt
        return Progress(self.step, self.skipped, report)


def _weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of the losses that are there, in float32."""
    return torch.stack([w * losses[name].float() for name, w in weights.items() if w and name in losses]).sum()


def _check_fits(checkpoint: Checkpoint, part: str, own: Mapping[str, Tensor]) -> None:
    found = checkpoint.tensors.get(part, {})
    for name, value in own.items():
        there = found.get(name)
        if there is None or there.shape != value.shape:
            shape = "is missing" if there is None else f"has shape {list(there.shape)}"
            raise CheckpointError(f"{checkpoint.path}: {name} {shape}, the {part} wants {list(value.shape)}")


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back until the step is done; a second one takes its usual course.

    Outside the main thread signals cannot be held, and take their usual course.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        for which, handler in before.items():
            signal.signal(which, handler)

    for which in (signal.SIGINT, signal.SIGTERM):
        before[which] = signal.signal(which, note)
    try:
        yield lambda: asked
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
