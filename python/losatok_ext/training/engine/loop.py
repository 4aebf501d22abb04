"""The loop that every stage shares: batches, weighted losses, AdamW, guard, log, checkpoints, exact resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from losatok_ext.errors import TrainingError
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.crops import Batch, CropSource
from losatok_ext.training.engine.checkpoint import Checkpoint, CheckpointStore
from losatok_ext.training.engine.distributed import Processes, whole
from losatok_ext.training.engine.ema import MovingAverage
from losatok_ext.training.engine.log import TrainingLog
from losatok_ext.training.engine.optimizer import Learner
from losatok_ext.training.engine.parts import TRAINING, Part, cut, rows_of_process
from losatok_ext.training.engine.reports import Best, OnStep, Progress, StepReport, Taken, Validation
from losatok_ext.training.engine.state import changing_state
from losatok_ext.training.engine.stopping import stop_requests
from losatok_ext.training.engine.validation import Validator
from losatok_ext.training.stages.base import AdversarialStage, Stage

T = TypeVar("T")


class Objective(nn.Module):
    """Runs what is computed with ``model``: data parallelism and sharding wrap a module's forward, and a stage's work
    is more than that of its model.

    Args:
        model: whose parameters are used.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], T]) -> T:
        """``work()``."""
        return work()


class Trainer:
    """Trains one stage to its last step, from the beginning or from a checkpoint.

    What is drawn at random in a step is a function of the run's seed and the step: there is no state of random
    generators to keep, and nothing between two steps can disturb it.

    Args:
        stage: the stage; its model (and critic) is on the device already, with its weights.
        source: of batches.
        config: of the run.
        steps: length of the run.
        store: where checkpoints go.
        processes: this one, and those that train with it.
        validator: of the run; None: nothing is validated.

    Raises:
        ConfigError: the batch cannot be cut evenly into the parts asked for.
    """

    def __init__(
        self,
        stage: Stage,
        source: CropSource,
        config: TrainConfig,
        steps: int,
        store: CheckpointStore,
        processes: Processes,
        validator: Validator | None = None,
    ) -> None:
        self.stage, self.source, self.config, self.steps = stage, source, config, steps
        self.store, self.processes, self.validator = store, processes, validator
        options = config.optimizer
        self.rows = rows_of_process(config.batch_size, processes, options.accumulate)
        self.learner = Learner(stage.model, options, steps)
        self.objective = processes.prepare(Objective(stage.model), self.learner.optimizer)
        self.learner.follow(stage.model)
        self.average = None if options.ema_decay is None else MovingAverage(self.learner.parameters, options.ema_decay)
        self.critic = stage.critic if isinstance(stage, AdversarialStage) else None
        self.critic_learner: Learner | None = None
        if self.critic is not None:
            self.critic_learner = Learner(self.critic.requires_grad_(True), options, steps, critic=True)
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.best: Best | None = None

    def save(self) -> None:
        """Write a checkpoint of the state after :attr:`step` steps.

        Raises:
            TrainingError: it cannot be written; those before it are intact.
        """
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": changing_state(self.stage.model),
            "optimizer": self.learner.state(),
        }
        if self.average is not None:
            tensors["ema"] = self.average.means
        if self.critic is not None and self.critic_learner is not None:
            tensors |= {"critic": self.critic.state_dict(), "critic_optimizer": self.critic_learner.state()}
        tensors = {part: {name: whole(t) for name, t in named.items()} for part, named in tensors.items()}
        state = {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "ema_updates": 0 if self.average is None else self.average.updates,
            "best": None if self.best is None else {"step": self.best.step, "total": self.best.total},
            "position": {"next_crop": self.step * self.source.batch_size},
        }
        self.processes.agree(lambda: self.store.write(self.step, tensors, state))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``, exactly (on the CPU bit for bit), whose weights the model has already."""
        tensors, values = checkpoint.tensors, checkpoint.state
        self.learner.restore(tensors["optimizer"])
        if self.average is not None:
            self.average.restore(tensors["ema"], values["ema_updates"])
        if self.critic_learner is not None:
            self.critic_learner.restore(tensors["critic_optimizer"])
        self.step, self.skipped, self.skipped_in_a_row = checkpoint.step, values["skipped"], values["skipped_in_a_row"]
        best = values.get("best")
        self.best = None if best is None else Best(**best)

    def autocast(self) -> Any:
        """The run's precision, as a context."""
        mixed = self.config.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16) if mixed else nullcontext()

    def part_losses(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """What a part adds to the total and to each loss of the whole batch."""
        with self.autocast():
            losses = self.stage.losses(part.batch, self.step)
        shares = part.shares(self.stage)
        losses = {name: shares.of(name) * loss.float() for name, loss in losses.items()}
        return _weighted(losses, self.stage.weights), losses

    def _critic_losses(self, part: Part) -> tuple[Tensor, dict[str, Tensor]] | None:
        stage = self.stage
        assert isinstance(stage, AdversarialStage)
        with self.autocast():
            losses = stage.critic_losses()
        shares = part.shares(self.stage)
        losses = {name: shares.of(name) * loss.float() for name, loss in losses.items()}
        return (_weighted(losses, stage.critic_weights), losses) if losses else None

    def _train_step(self, batch: Batch, stop: bool) -> tuple[Taken, bool]:
        """One step, and whether any process was asked to stop. Nothing is changed when a loss or a gradient, of the
        model or the critic, is not finite."""
        sums: dict[str, Tensor] = {}

        def add(named: Mapping[str, Tensor]) -> None:
            for name, value in named.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()

        processes, critic, learner, critic_learner = self.processes, self.critic, self.learner, self.critic_learner
        learner.zero()
        if critic_learner is not None:
            critic_learner.zero()
        names: dict[str, None] = {}
        played = False
        for part in cut(batch, processes, self.config.optimizer.accumulate, self.source.multiple):
            waiting = nullcontext() if part.last else processes.waiting(self.objective)
            with part.random(self.config.seed, TRAINING, self.step), waiting:
                if critic is not None:
                    critic.requires_grad_(False)
                total, losses = self.objective(lambda part=part: self.part_losses(part))
                # The engines leave the mean over processes, and the parts are to be added up.
                (total * processes.count).backward()
                add({".total": total, **losses})
                names |= dict.fromkeys(losses)
                if critic is not None:
                    critic.requires_grad_(True)
                    opinion = self._critic_losses(part)
                    if opinion is not None:
                        opinion[0].backward()
                        add({".critic_total": opinion[0], **opinion[1]})
                        names |= dict.fromkeys(opinion[1])
                        played = True
        norms = [learner.clip()]
        if played and critic_learner is not None:
            processes.add_gradients(list(critic_learner.parameters.values()))
            norms.append(critic_learner.clip())
        # The one wait for the device in a step: everything the guard, the log and the caller want, at once.
        flag = torch.tensor(float(stop), device=processes.device)
        found = torch.cat([processes.total(torch.stack([*sums.values(), flag])), torch.stack(norms).float()]).tolist()
        values = dict(zip(sums, found, strict=False))
        taken = Taken(
            {name: values[name] for name in names},
            values[".total"],
            found[len(sums) + 1],
            values.get(".critic_total"),
            found[len(sums) + 2] if played else None,
        )
        if taken.finite:
            learner.take(self.step)
            if played and critic_learner is not None:
                critic_learner.take(self.step)
            if self.average is not None:
                self.average.update()
        return taken, found[len(sums)] > 0

    def _failure(self, report: StepReport, batch: Batch) -> TrainingError:
        losses = ", ".join(f"{name} {value:g}" for name, value in report.losses.items())
        return TrainingError(
            f"training of {self.stage.name} stopped at step {report.step}: {self.skipped_in_a_row} steps in a row were "
            f"skipped because losses or gradients were not finite (the last: {losses}, gradient {report.grad_norm:g}, "
            f"clips {', '.join(batch.names[:3])}, ...); the state before them is kept in {self.store.root}; look at "
            "those clips, or start in another folder with a lower optimizer.lr"
        )

    def _validate(self, log: TrainingLog | None) -> Validation | None:
        """What the validator finds at this step; None where it is not its turn."""
        every = self.config.validation.every
        if self.validator is None or (self.step % every and self.step != self.steps):
            return None
        with nullcontext() if self.average is None else self.average.applied():
            found = self.validator.run(self, log)
        if found.best:
            self.best = Best(found.step, found.total)
        return found

    def run(self, log: TrainingLog | None, on_step: OnStep | None = None) -> Progress:
        """Train until the last step; checkpoints are written as configured, and after the last step.

        On SIGINT or SIGTERM the step is finished and a checkpoint written before KeyboardInterrupt is raised.

        Args:
            log: of the run; None: another process writes it.
            on_step: called after every step.

        Raises:
            TrainingError: too many steps in a row were not finite (a checkpoint is written first), no audio can be
                read, or the disk is full.
            KeyboardInterrupt: asked to stop.
        """
        report = None
        rate = 0.0
        began = time.perf_counter()
        with stop_requests() as stop_requested:
            for batch in self.source.batches(self.step, self.steps, self.rows):
                lr = self.learner.rate(self.step)
                taken, stopping = self._train_step(batch, stop_requested())
                self.step += 1
                self.skipped += not taken.finite
                self.skipped_in_a_row = 0 if taken.finite else self.skipped_in_a_row + 1
                seconds = batch.seconds * self.processes.count
                now = time.perf_counter()
                speed = seconds / (now - began)
                rate = speed if rate == 0.0 else 0.9 * rate + 0.1 * speed
                validation = self._validate(log)
                report = StepReport(
                    stage=self.stage.name,
                    step=self.step,
                    steps=self.steps,
                    losses=taken.losses,
                    total=taken.total,
                    grad_norm=taken.grad_norm,
                    critic_grad_norm=taken.critic_grad_norm,
                    lr=lr,
                    audio_seconds=seconds,
                    audio_rate=rate,
                    skipped=self.skipped,
                    finite=taken.finite,
                    validation=validation,
                )
                if log is not None:
                    log.write(report)
                failing = self.skipped_in_a_row >= self.config.max_skipped
                if failing or stopping or self.step % self.config.checkpoint.every == 0 or self.step == self.steps:
                    self.save()
                if failing:
                    raise self._failure(report, batch)
                if on_step is not None:
                    on_step(report)
                if stopping and self.step < self.steps:
                    raise KeyboardInterrupt
                began = time.perf_counter()
        return Progress(self.step, self.skipped, report, self.best)


def _weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of the losses that are there."""
    return torch.stack([w * losses[name] for name, w in weights.items() if w and name in losses]).sum()
