"""A training run from data to model folder: new, or continued exactly where it stopped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from losatok_ext.errors import TrainingError
from losatok_ext.training.balance import DomainShare
from losatok_ext.training.checkpoint import CheckpointStore, keep_random
from losatok_ext.training.config import TrainConfig, differences
from losatok_ext.training.corpus import Corpus
from losatok_ext.training.data import CropSource
from losatok_ext.training.distributed import Processes, is_sharded, open_processes, whole
from losatok_ext.training.folders import MODEL
from losatok_ext.training.generator import GeneratorStage
from losatok_ext.training.log import TrainingLog
from losatok_ext.training.loop import Trainer
from losatok_ext.training.parts import rows_of_process
from losatok_ext.training.reports import Best, OnStep, StepReport
from losatok_ext.training.sembo import SemBoStage
from losatok_ext.training.stage import AdversarialStage, Stage
from losatok_ext.training.state import frozen_state, load_changing, load_frozen
from losatok_ext.training.teacher import TeacherStage
from losatok_ext.training.tokenizer import TokenizerStage
from losatok_ext.training.validation import Validator, hold_out


@dataclass(frozen=True)
class RunStart:
    """What ``on_start`` receives once everything is ready."""

    stage: str
    corpus: Corpus
    device: torch.device
    processes: int
    """So many train together."""
    steps: int
    start: int
    """Steps already done; 0 in a new run."""
    epochs: float
    """How often the whole run visits every clip."""
    trained_parameters: int
    parameters: int
    domains: tuple[DomainShare, ...] = ()
    """The corpus by domain, with the share of each in the crops."""
    crops: int = 0
    """In the whole run."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves."""

    model: Path
    """The model folder, for ``LoSATok.from_pretrained`` and ``losatok encode --model``; of a generator for
    ``Generator.from_pretrained`` and ``losatok generate --generator``."""
    steps: int
    skipped: int
    """Steps that were skipped because a loss or the gradient was not finite."""
    last: StepReport | None
    """The last step; None when the run was complete already."""
    best: Best | None
    """The validation with the lowest total; None without any."""
    unreadable: tuple[str, ...]
    """One sentence per file that was found unreadable on the way, and replaced by another."""


OnStart = Callable[[RunStart], None]


def train_teacher(
    data: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train a semantic encoder as a masked autoencoder on the recordings of ``data``, without labels, and leave a model
    folder ``output/model``.

    Of that model the semantic encoder is trained and all else new: :func:`train_sembo` takes it as ``config.init``. All
    else is as there.
    """
    config = config or TrainConfig()
    return train(lambda device: TeacherStage(data, config), output, config, on_start, on_step)


def train_sembo(
    data: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train the semantic bottleneck on the recordings of ``data``, and leave a model folder ``output/model``.

    The same call again goes on from the last checkpoint in ``output``: on the CPU the weights come out bit for bit as
    from a run that was never interrupted. A finished run returns at once. Global random generators are left as they
    were found.

    Args:
        data: folder of audio files (searched through), JSONL manifest, or shards; the shards may hold features of the
            teacher (``losatok precompute features``) instead of recordings.
        output: the run's folder: ``model``, ``checkpoints``, ``log.jsonl``, ``tensorboard``.
        config: the run's configuration; None takes the defaults (the published model, the paper's settings).
        on_start: called once, before the first step.
        on_step: called after every step.

    Raises:
        ConfigError, TrainingError, CheckpointError: what cannot be used, in one sentence.
        KeyboardInterrupt: after SIGINT or SIGTERM, when the step was finished and a checkpoint written.
    """
    config = config or TrainConfig()
    return train(lambda device: SemBoStage(data, config), output, config, on_start, on_step)


def train_tokenizer(
    data: str | Path,
    output: str | Path,
    config: TrainConfig,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train acoustic encoder, latent and decoder on the recordings of ``data``, and leave a model folder
    ``output/model``.

    ``config.init`` names the folder that :func:`train_sembo` wrote. All else is as there.
    """
    return train(lambda device: TokenizerStage(data, config), output, config, on_start, on_step)


def train_generator(
    data: str | Path,
    output: str | Path,
    config: TrainConfig,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train a generator on recordings, or on latent files that ``losatok encode`` wrote, and leave a generator folder
    ``output/model``.

    ``config.generator.tokenizer`` names the tokenizer's folder; latent files do without. All else is as for
    :func:`train_sembo`.

    Args:
        data: folder, manifest or shards of recordings or of latents; texts come from the manifest (``"text"``, else
            ``"label"``, else ``"labels"``), or from the names of the folders that files lie in.
        output: the run's folder.
        config: the run's configuration.
        on_start: called once, before the first step.
        on_step: called after every step.
    """
    return train(lambda device: GeneratorStage(data, config, device), output, config, on_start, on_step)


class RunStage(Stage, Protocol):
    """A stage, and how its model and data come about."""

    data: Any
    """Folder or manifest."""
    paper_steps: int
    """Steps of a run whose configuration does not say."""

    def model_config(self) -> Any:
        """What :meth:`build` will build."""

    def facts(self) -> dict[str, Any]:
        """What must be the same when a run goes on, besides configuration and corpus."""

    def digest(self, corpus: Corpus) -> str:
        """Of what is learned from a corpus."""

    def read_config(self, values: dict[str, Any]) -> Any:
        """The configuration that a run wrote down."""

    def blank(self, config: Any) -> Any:
        """A model whose weights a checkpoint will replace."""

    def open_data(self, model: Any) -> tuple[Corpus, CropSource]:
        """The corpus and its batches."""

    def build(self, corpus: Corpus) -> Any:
        """The model that training begins with."""

    def start(self, model: Any) -> None:
        """Train ``model``, which is on the device."""


def train(
    make: Callable[[torch.device], RunStage],
    output: str | Path,
    config: TrainConfig,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train any stage; see :func:`train_sembo`.

    Where a launcher started several processes, all of them call this with the same arguments, and the first one alone
    writes and calls ``on_start`` and ``on_step``.

    Args:
        make: the stage, for the device that this process trains on.
        output: the run's folder, on a file system that all processes see.
        config: the run's configuration.
        on_start: called once, before the first step.
        on_step: called after every step.
    """
    output = Path(output)
    with open_processes(config) as processes, keep_random(processes.device), ExitStack() as stack:
        stage, store = make(processes.device), CheckpointStore(output, config.checkpoint.keep)
        processes.agree(lambda: stack.enter_context(store))
        run = _Run(stage, store, config, processes)
        log = None
        if processes.first:
            log = stack.enter_context(TrainingLog(output, config.log, run.trainer.step))
            if on_start is not None:
                on_start(run.described())
        progress = run.trainer.run(log, on_step if processes.first else None)
        run.save_model(output / MODEL)
        unreadable = tuple(run.source.unreadable.values())
        del run  # before the connection to other processes ends
    return TrainResult(output / MODEL, progress.step, progress.skipped, progress.last, progress.best, unreadable)


class _Run:
    """A run that is ready to train, from its beginning or from its last checkpoint."""

    def __init__(self, stage: RunStage, store: CheckpointStore, config: TrainConfig, processes: Processes) -> None:
        self.stage, self.processes = stage, processes
        rows_of_process(config.batch_size, processes, config.optimizer.accumulate)  # said before anything is written
        self.steps = config.steps or stage.paper_steps
        checkpoint = store.latest()
        facts: dict[str, Any] = {"stage": stage.name, "config": config.to_dict()}
        if checkpoint is None:
            model_config = stage.model_config()
        else:
            _check_same_run(store, facts)
            model_config = stage.read_config(store.read_run()["model"])
        other = copy.copy(stage)
        self.corpus, self.source = stage.open_data(model_config)  # before the model, which may take minutes to build
        everything = self.corpus
        validated = self._hold_out(other, model_config, config)
        model = stage.build(self.corpus) if checkpoint is None else stage.blank(model_config)
        facts |= {"model": model_config.to_dict(), "corpus": stage.digest(everything), **stage.facts()}
        self.model_config = model_config
        stage.start(model.to(processes.device))
        critic = stage.critic if isinstance(stage, AdversarialStage) else None
        if critic is not None:
            critic.to(processes.device)
        if checkpoint is None:
            processes.agree(lambda: store.write_run(facts, frozen_state(stage.model)))
        else:
            _check_same_data(stage.data, store, facts)
            load_frozen(stage.model, store.read_frozen(), str(store.root / "frozen.safetensors"))
            load_changing(stage.model, checkpoint, "model")
            if critic is not None:
                load_changing(critic.requires_grad_(True), checkpoint, "critic")
        self.trained = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
        self.parameters = sum(p.numel() for p in stage.model.parameters())
        validator = None
        if validated is not None:
            validator = Validator(validated, config.validation.clips, config.validation.shown)
        self.trainer = Trainer(stage, self.source, config, self.steps, store, processes, validator)
        if checkpoint is not None:
            self.trainer.restore(checkpoint)

    def _hold_out(self, other: RunStage, model_config: Any, config: TrainConfig) -> CropSource | None:
        """What to validate on; a share of the data is taken away from training."""
        options = config.validation
        if options.data is not None:
            other.data = Path(options.data)
            corpus, source = other.open_data(model_config)
            return source.over(corpus, augmented=False)
        if not options.share:
            return None
        self.corpus, held = hold_out(self.corpus, options.share, self.stage.data)
        validated = self.source.over(held, augmented=False)
        self.source = self.source.over(self.corpus, augmented=True)
        return validated

    def described(self) -> RunStart:
        """What begins."""
        epochs = self.steps / self.source.steps_per_epoch
        return RunStart(
            stage=self.stage.name,
            corpus=self.corpus,
            device=self.processes.device,
            processes=self.processes.count,
            steps=self.steps,
            start=self.trainer.step,
            epochs=epochs,
            trained_parameters=self.trained,
            parameters=self.parameters,
            domains=self.source.domains,
            crops=self.steps * self.source.batch_size,
        )

    def save_model(self, folder: Path) -> None:
        """Write the model folder, of the weights' moving mean where there is one.

        Raises:
            TrainingError: it cannot be written.
        """
        average = self.trainer.average
        with nullcontext() if average is None else average.applied():
            self.processes.agree(self._writer(self.stage.model, folder))

    def _writer(self, model: Any, folder: Path) -> Callable[[], None]:
        if any(is_sharded(p) for p in model.parameters()):
            state = {name: whole(value) for name, value in model.state_dict().items()}
            model = self.stage.blank(getattr(model, "config", self.model_config)) if self.processes.first else None
            if model is not None:
                model.load_state_dict(state)

        def write() -> None:
            try:
                model.save_pretrained(folder)
            except (OSError, SafetensorError) as error:
                raise TrainingError(
                    f"{folder}: the model cannot be written ({error}); the last checkpoint is intact: make room, then "
                    "the same command again writes it"
                ) from None

        return write


def _check_same_run(store: CheckpointStore, facts: dict[str, Any]) -> None:
    then, output = store.read_run(), store.root.parent
    if then["stage"] != facts["stage"]:
        raise TrainingError(
            f"{output} holds a run of train {then['stage']}; choose another folder for train {facts['stage']}"
        )
    # A run of an older release knows fewer keys; it used what is their default now.
    changed = differences(TrainConfig.from_dict(then["config"], str(store.root)).to_dict(), facts["config"])
    if changed:
        raise TrainingError(
            f"{output} holds a run with another configuration ({'; '.join(changed)}); use the same to go on with it, "
            "or choose another folder"
        )


def _check_same_data(data: str | Path, store: CheckpointStore, facts: dict[str, Any]) -> None:
    then, output = store.read_run(), store.root.parent
    if facts["corpus"] != then["corpus"]:
        raise TrainingError(
            f"{data}: the recordings are not those that the run in {output} began with; bring them back, or "
            "choose another folder"
        )
    if facts.get("tokenizer") != then.get("tokenizer"):
        raise TrainingError(
            f"{data}: the latents are of the tokenizer {facts['tokenizer']}, and the run in {output} began with those "
            f"of {then['tokenizer']}; use that one, or choose another folder"
        )
