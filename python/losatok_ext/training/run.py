"""A training run from data to model folder: new, or continued exactly where it stopped."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from losatok_ext.errors import CheckpointError, TrainingError
from losatok_ext.training.balance import DomainShare
from losatok_ext.training.checkpoint import Checkpoint, CheckpointStore, keep_random
from losatok_ext.training.config import TrainConfig, differences
from losatok_ext.training.corpus import Corpus
from losatok_ext.training.data import CropSource
from losatok_ext.training.folders import MODEL
from losatok_ext.training.generator import GeneratorStage
from losatok_ext.training.log import TrainingLog
from losatok_ext.training.loop import OnStep, Stage, StepReport, Trainer
from losatok_ext.training.sembo import SemBoStage
from losatok_ext.training.teacher import TeacherStage
from losatok_ext.training.tokenizer import TokenizerStage


@dataclass(frozen=True)
class RunStart:
    """What ``on_start`` receives once everything is ready."""

    stage: str
    corpus: Corpus
    device: torch.device
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
    return _train(TeacherStage(data, config), data, output, config, config.torch_device(), on_start, on_step)


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
    device = config.torch_device()
    return _train(SemBoStage(data, config), data, output, config, device, on_start, on_step)


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
    device = config.torch_device()
    return _train(TokenizerStage(data, config), data, output, config, device, on_start, on_step)


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
    device = config.torch_device()
    return _train(GeneratorStage(data, config, device), data, output, config, device, on_start, on_step)


class _Run(Stage, Protocol):
    """A stage, and how its model and data come about."""

    paper_steps: int

    def model_config(self) -> Any: ...

    def facts(self) -> dict[str, Any]: ...

    def digest(self, corpus: Corpus) -> str: ...

    def read_config(self, values: dict[str, Any]) -> Any: ...

    def blank(self, config: Any) -> Any: ...

    def open_data(self, model: Any) -> tuple[Corpus, CropSource]: ...

    def build(self, corpus: Corpus) -> Any: ...

    def start(self, model: Any) -> None: ...


def _train(
    stage: _Run,
    data: str | Path,
    output: str | Path,
    config: TrainConfig,
    device: torch.device,
    on_start: OnStart | None,
    on_step: OnStep | None,
) -> TrainResult:
    steps, output = config.steps or stage.paper_steps, Path(output)
    with CheckpointStore(output, config.checkpoint.keep) as store, keep_random(device):
        checkpoint = store.latest()
        facts: dict[str, Any] = {"stage": stage.name, "config": config.to_dict()}
        if checkpoint is None:
            model_config = stage.model_config()
        else:
            _check_same_run(store, facts)
            model_config = stage.read_config(store.read_run()["model"])
        corpus, source = stage.open_data(model_config)  # before the model, which may take minutes to build
        model = stage.build(corpus) if checkpoint is None else stage.blank(model_config)
        facts |= {"model": model_config.to_dict(), "corpus": stage.digest(corpus), **stage.facts()}
        stage.start(model.to(device))
        trainer = Trainer(stage, source, config, steps, store, device)
        if checkpoint is None:
            store.write_run(facts, trainer.frozen_state())
            _seed(config.seed)
        else:
            _check_same_data(data, store, facts)
            _restore(trainer, store, checkpoint)
        with TrainingLog(output, config.log, trainer.step) as log:
            if on_start is not None:
                trained = sum(p.numel() for p in trainer.parameters.values())
                total = sum(p.numel() for p in model.parameters())
                epochs = steps / source.steps_per_epoch
                counts = (steps, trainer.step, epochs, trained, total)
                crops = steps * config.batch_size
                on_start(RunStart(stage.name, corpus, device, *counts, domains=source.domains, crops=crops))
            progress = trainer.run(log, on_step)
        model.save_pretrained(output / MODEL)
    return TrainResult(
        output / MODEL, progress.step, progress.skipped, progress.last, tuple(source.unreadable.values())
    )


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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


def _restore(trainer: Trainer, store: CheckpointStore, checkpoint: Checkpoint) -> None:
    frozen, wanted = store.read_frozen(), trainer.frozen_state()
    for name, parameter in wanted.items():
        if name not in frozen or frozen[name].shape != parameter.shape:
            raise CheckpointError(
                f"{store.root / 'frozen.safetensors'}: {name} is missing or has another shape; start in another folder"
            )
        parameter.data.copy_(frozen[name])
    trainer.restore(checkpoint)
