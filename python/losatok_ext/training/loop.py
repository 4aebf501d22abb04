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
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from losatok_ext.errors import CheckpointError, TrainingError
from losatok_ext.training.checkpoint import Checkpoint, CheckpointStore, capture_random, restore_random
from losatok_ext.training.config import TrainConfig
from losatok_ext.training.data import Batch, CropSource
from losatok_ext.training.log import TrainingLog
from losatok_ext.training.schedule import learning_rate


class Stage(Protocol):
    """What a stage adds to the loop: a model of which it lets some parameters take gradients, and its losses."""

    @property
    def name(self) -> str:
        """Of the stage, as the command line has it."""

    @property
    def model(self) -> nn.Module:
        """The whole model; its parameters that take gradients are trained."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Loss name -> its weight in the total."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Unweighted scalar losses by name, at least those of :attr:`weights`; called under the run's autocast."""


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
        self.parameters = {name: p for name, p in stage.model.named_parameters() if p.requires_grad}
        self.optimizer = self._make_optimizer()
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0

    def _make_optimizer(self) -> torch.optim.AdamW:
        options = self.config.optimizer
        matrices = [p for p in self.parameters.values() if p.dim() >= 2]
        vectors = [p for p in self.parameters.values() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=options.lr, betas=options.betas, eps=options.eps, fused=True
        )

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
        moments: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            moments.update({f"{name}/{key}": value for key, value in self.optimizer.state.get(parameter, {}).items()})
        random_tensors, random_values = capture_random(self.device)
        tensors = {"model": self._changing_state(), "optimizer": moments, "random": random_tensors}
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
        own = self._changing_state()
        for name, value in own.items():
            found = tensors["model"].get(name)
            if found is None or found.shape != value.shape:
                shape = "is missing" if found is None else f"has shape {list(found.shape)}"
                raise CheckpointError(f"{checkpoint.path}: {name} {shape}, the model wants {list(value.shape)}")
        self.stage.model.load_state_dict(tensors["model"], strict=False)
        for name, parameter in self.parameters.items():
            prefix = f"{name}/"
            state = {key.removeprefix(prefix): t for key, t in tensors["optimizer"].items() if key.startswith(prefix)}
            if state:
                self.optimizer.state[parameter] = {key: t.to(self.device) for key, t in state.items()}
        values = checkpoint.state
        self.step, self.skipped, self.skipped_in_a_row = checkpoint.step, values["skipped"], values["skipped_in_a_row"]
        restore_random(tensors["random"], values["random"], self.device)

    def _train_step(self, batch: Batch, lr: float) -> tuple[dict[str, float], float, float]:
        """One step: losses, total and gradient norm. Nothing is changed when one of them is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        mixed = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext():
            losses = self.stage.losses(batch.to(self.device))
        weighted = [weight * losses[name].float() for name, weight in self.stage.weights.items() if weight]
        total = torch.stack(weighted).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        clip = self.config.optimizer.clip_norm
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), math.inf if clip is None else clip)
        # The one wait for the device in a step: everything the guard, the log and the caller want, at once.
        *values, total_value, norm_value = torch.stack(
            [*(loss.detach().float() for loss in losses.values()), total.detach(), norm]
        ).tolist()
        if math.isfinite(total_value) and math.isfinite(norm_value):
            self.optimizer.step()
        return dict(zip(losses, values, strict=True)), total_value, norm_value

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
                lr = learning_rate(
                    self.step,
                    peak=self.config.optimizer.lr,
                    steps=self.steps,
                    warmup_steps=self.config.optimizer.warmup_steps,
                    final=self.config.optimizer.final_lr,
                )
                losses, total, norm = self._train_step(batch, lr)
                finite = math.isfinite(total) and math.isfinite(norm)
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
                    losses=losses,
                    total=total,
                    grad_norm=norm,
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
