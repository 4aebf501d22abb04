"""The loop that all stages share: steps of AdamW, skipped where not finite, with log, checkpoints and exact resume."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from losatok_ext.errors import TrainingError
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.batches import Batch
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.engine.checkpoint import Checkpoint, CheckpointStore
from losatok_ext.training.engine.distributed import Processes, gathered
from losatok_ext.training.engine.ema import MovingAverage
from losatok_ext.training.engine.log import TrainingLog
from losatok_ext.training.engine.objective import Objective
from losatok_ext.training.engine.optimizer import Learner
from losatok_ext.training.engine.parts import TRAINING, rows_of_process
from losatok_ext.training.engine.reports import Best, OnStep, StepReport, StepResult, Validation
from losatok_ext.training.engine.state import changing_state
from losatok_ext.training.engine.stopping import stop_requests
from losatok_ext.training.engine.validation import Validator
from losatok_ext.training.stages.base import Stage


class Trainer:
    """Trains one stage to its last step, from the beginning or from a checkpoint.

    The random numbers of a step are a function of the run's seed and the step, so that no state of random generators
    has to be kept, and what happens between two steps does not matter.

    Args:
        stage: the stage; its model (and critic) is on the device already, with its weights.
        source: of batches.
        config: of the run.
        steps: length of the run.
        store: of checkpoints.
        processes: this one, and those that train with it.
        validator: of the run; None where nothing is validated.

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
        self.objective = Objective(stage, config, processes, self.learner.optimizer, source.multiple)
        self.learner.follow(stage.model)
        self.average = None if options.ema_decay is None else MovingAverage(self.learner.parameters, options.ema_decay)
        self.critic = self.objective.critic
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
        tensors = {part: {name: gathered(t) for name, t in named.items()} for part, named in tensors.items()}
        state = {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "ema_updates": 0 if self.average is None else self.average.updates,
            "best": None if self.best is None else {"step": self.best.step, "total": self.best.total},
            "position": {"next_crop": self.step * self.source.batch_size},
        }
        self.processes.agree(lambda: self.store.write(self.step, tensors, state))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``, exactly (on the CPU bit for bit); the model has its weights already."""
        tensors, values = checkpoint.tensors, checkpoint.state
        self.learner.restore(tensors["optimizer"])
        if self.average is not None:
            self.average.restore(tensors["ema"], values["ema_updates"])
        if self.critic_learner is not None:
            self.critic_learner.restore(tensors["critic_optimizer"])
        self.step, self.skipped, self.skipped_in_a_row = checkpoint.step, values["skipped"], values["skipped_in_a_row"]
        best = values.get("best")
        self.best = None if best is None else Best(**best)

    def _train_step(self, batch: Batch, stop: bool) -> tuple[StepResult, bool]:
        """One step, and whether any process was asked to stop. Nothing is changed when a loss or a gradient, of the
        model or the critic, is not finite."""
        processes, objective, learner = self.processes, self.objective, self.learner
        critic, critic_learner = self.critic, self.critic_learner
        sums = _Sums()
        learner.zero()
        if critic_learner is not None:
            critic_learner.zero()
        critic_learns = False
        for part in objective.parts(batch):
            with part.random(self.config.seed, TRAINING, self.step), objective.backward_of(part):
                if critic is not None:
                    critic.requires_grad_(False)
                total, losses = objective.losses(part, self.step)
                # Accelerate leaves the mean of the processes' gradients, and the parts are to be added up.
                (total * processes.count).backward()
                sums.add(losses, total=total)
                if critic is not None:
                    critic.requires_grad_(True)
                    found = objective.critic_losses(part)
                    if found is not None:
                        critic_total, critic_losses = found
                        critic_total.backward()
                        sums.add(critic_losses, critic_total=critic_total)
                        critic_learns = True
        norms = [learner.clip()]
        if critic_learns and critic_learner is not None:
            processes.add_gradients(list(critic_learner.parameters.values()))
            norms.append(critic_learner.clip())
        # The one wait for the device in a step: everything the guard, the log and the caller want, at once.
        flag = torch.tensor(float(stop), device=processes.device)
        values = torch.cat([processes.total(torch.stack([*sums.values(), flag])), torch.stack(norms).float()]).tolist()
        result = sums.result(values, critic_learns)
        if result.finite:
            learner.take(self.step)
            if critic_learns and critic_learner is not None:
                critic_learner.take(self.step)
            if self.average is not None:
                self.average.update()
        return result, values[len(sums.values())] > 0

    def _failure(self, report: StepReport, batch: Batch) -> TrainingError:
        losses = ", ".join(f"{name} {value:g}" for name, value in report.losses.items())
        return TrainingError(
            f"training of {self.stage.name} stopped at step {report.step}: {self.skipped_in_a_row} steps in a row were "
            f"skipped because losses or gradients were not finite (the last: {losses}, gradient {report.grad_norm:g}, "
            f"clips {', '.join(batch.names[:3])}, ...); the state before them is kept in {self.store.root}; look at "
            "those clips, or start in another folder with a lower optimizer.lr"
        )

    def _validate(self, log: TrainingLog | None) -> Validation | None:
        """The validation after this step; None where none is due."""
        every = self.config.validation.every
        if self.validator is None or (self.step % every and self.step != self.steps):
            return None
        with nullcontext() if self.average is None else self.average.applied():
            found = self.validator.run(self.objective, self.step, self.best, log)
        if found.best:
            self.best = Best(found.step, found.total)
        return found

    def run(self, log: TrainingLog | None, on_step: OnStep | None = None) -> StepReport | None:
        """Train until the last step; checkpoints are written as configured, and after the last step.

        On SIGINT, SIGTERM or SIGHUP a step is finished and a checkpoint written before KeyboardInterrupt is raised.

        Args:
            log: of the run; None: another process writes it.
            on_step: called after every step.

        Returns:
            The report of the last step; None where all steps were done before.

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
                result, stopping = self._train_step(batch, stop_requested())
                self.step += 1
                self.skipped += not result.finite
                self.skipped_in_a_row = 0 if result.finite else self.skipped_in_a_row + 1
                seconds = batch.seconds * self.processes.count
                now = time.perf_counter()
                speed = seconds / (now - began)
                rate = speed if rate == 0.0 else 0.9 * rate + 0.1 * speed
                validation = self._validate(log)
                report = StepReport(
                    stage=self.stage.name,
                    step=self.step,
                    steps=self.steps,
                    losses=result.losses,
                    total=result.total,
                    grad_norm=result.grad_norm,
                    critic_grad_norm=result.critic_grad_norm,
                    lr=lr,
                    audio_seconds=seconds,
                    audio_rate=rate,
                    skipped=self.skipped,
                    finite=result.finite,
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
        return report


class _Sums:
    """The losses of a step added up over its parts, on the device."""

    def __init__(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._totals: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, Tensor], **total: Tensor) -> None:
        """Add the losses of a part and its weighted ``total`` or ``critic_total``."""
        for sums, values in ((self._losses, losses), (self._totals, total)):
            for name, value in values.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()

    def values(self) -> list[Tensor]:
        """All sums, in the order that :meth:`result` takes them in."""
        return [*self._losses.values(), *self._totals.values()]

    def result(self, values: list[float], critic_learns: bool) -> StepResult:
        """The numbers of the step, out of those of :meth:`values`, one more, and the norms of the gradients."""
        losses = dict(zip(self._losses, values, strict=False))
        totals = dict(zip(self._totals, values[len(losses) :], strict=False))
        norms = values[len(losses) + len(totals) + 1 :]
        critic_norm = norms[1] if critic_learns else None
        return StepResult(losses, totals["total"], norms[0], totals.get("critic_total"), critic_norm)
