"""A training run from data to model folder: new, or continued exactly where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from losatok_ext.models.storage.folders import MODEL
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.engine.checkpoint import CheckpointStore, keep_random
from losatok_ext.training.engine.distributed import open_processes
from losatok_ext.training.engine.log import TrainingLog
from losatok_ext.training.engine.prepared_run import PreparedRun, RunStage, RunStart
from losatok_ext.training.engine.reports import Best, OnStep, StepReport
from losatok_ext.training.stages.generator import GeneratorStage
from losatok_ext.training.stages.sembo import SemBoStage
from losatok_ext.training.stages.teacher import TeacherStage
from losatok_ext.training.stages.tokenizer import TokenizerStage


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

    ``config.init`` names the folder that :func:`train_sembo` wrote. ``data`` may be shards of teacher features with
    their audio (``losatok precompute features --audio``); the teacher does not run then. All else is as there.
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

    ``config.generator.tokenizer`` names the tokenizer's folder, None the bundled one; latent files do without. All else
    is as for :func:`train_sembo`.

    Args:
        data: folder, manifest or shards of recordings or of latents; texts come from the manifest (``"text"``, else
            ``"label"``, else ``"labels"``), or from the names of the folders that files lie in.
        output: the run's folder.
        config: the run's configuration.
        on_start: called once, before the first step.
        on_step: called after every step.
    """
    return train(lambda device: GeneratorStage(data, config, device), output, config, on_start, on_step)


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
        run = PreparedRun(stage, store, config, processes)
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
