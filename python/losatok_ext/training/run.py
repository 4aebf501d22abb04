"""A training run from data to model folder: new, or continued exactly where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from losatok_ext.models.storage.folders import MODEL
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.engine.checkpoint import CheckpointStore, keep_random
from losatok_ext.training.engine.distributed import open_processes
from losatok_ext.training.engine.log import TrainingLog
from losatok_ext.training.engine.prepared_run import PreparedRun, RunStart
from losatok_ext.training.engine.reports import Best, OnStep, StepReport
from losatok_ext.training.stages.base import Stage
from losatok_ext.training.stages.generator import GeneratorStage
from losatok_ext.training.stages.sembo import SemBoStage
from losatok_ext.training.stages.teacher import TeacherStage
from losatok_ext.training.stages.tokenizer import TokenizerStage


@dataclass(frozen=True)
class TrainResult:
    """The results of a finished run."""

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
    """One sentence per file that could not be read during training; the crop was taken from another clip instead."""


OnStart = Callable[[RunStart], None]

Resume = Literal["newest", "previous"]
"""The checkpoint that a run goes on from: the newest, or the one before it."""


StageClass = Callable[[str | Path, TrainConfig, torch.device], Stage]

STAGES: dict[str, StageClass] = {
    stage.name: stage for stage in (TeacherStage, SemBoStage, TokenizerStage, GeneratorStage)
}
"""The stages by name, in the order in which a model goes through them."""


def train(
    stage: str | StageClass,
    data: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    resume: Resume = "newest",
) -> TrainResult:
    """Train one stage on ``data``, and leave a model folder ``output/model``.

    The same call again goes on from the last checkpoint in ``output``: on the CPU the weights come out bit for bit as
    from a run that was never interrupted. A finished run returns at once. Global random generators are left as they
    were found.

    Where a launcher started several processes, all of them call this with the same arguments; only the first one
    writes files and calls ``on_start`` and ``on_step``.

    Args:
        stage: a name in :data:`STAGES`, or the class of a stage.
        data: folder of audio files (searched through), JSONL manifest, or shards; what the stage can learn from.
        output: the run's folder, on a file system that all processes see: ``model``, ``checkpoints``, ``log.jsonl``,
            ``tensorboard``.
        config: the run's configuration; None takes the defaults (the published model, the paper's settings).
        on_start: called once, before the first step.
        on_step: called after every step.
        resume: ``"previous"`` goes on from the checkpoint before the newest, for example since that one is damaged, and
            removes the newest.

    Raises:
        ValueError: ``resume`` is something else.
        ConfigError: the configuration does not fit the stage, the model or the data.
        TrainingError: the data cannot be used, another process trains in ``output``, it holds another run, or it cannot
            be written; or too many steps in a row were not finite.
        CheckpointError: a model or checkpoint cannot be read, is damaged or, with ``resume="previous"``, missing.
        KeyboardInterrupt: after SIGINT, SIGTERM or SIGHUP, when the step was finished and a checkpoint written.
    """
    if resume not in get_args(Resume):
        raise ValueError(f"resume should be one of {', '.join(get_args(Resume))}, got {resume!r}")
    output, config = Path(output), config or TrainConfig()
    make = STAGES[stage] if isinstance(stage, str) else stage
    with open_processes(config) as processes, keep_random(processes.device), ExitStack() as stack:
        opened, store = make(data, config, processes.device), CheckpointStore(output, config.checkpoint.keep)
        processes.agree(lambda: stack.enter_context(store))
        run = PreparedRun(opened, store, config, processes, resume == "previous")
        log = None
        if processes.first:
            log = stack.enter_context(TrainingLog(output, config.log, run.trainer.step))
            if on_start is not None:
                on_start(run.described())
        last = run.trainer.run(log, on_step if processes.first else None)
        run.save_model(output / MODEL)
        result = TrainResult(
            model=output / MODEL,
            steps=run.trainer.step,
            skipped=run.trainer.skipped,
            last=last,
            best=run.trainer.best,
            unreadable=tuple(run.source.unreadable.values()),
        )
        del run  # before the connection to other processes ends
    return result


def train_teacher(
    data: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    resume: Resume = "newest",
) -> TrainResult:
    """Train a semantic encoder on recordings without labels, as a masked autoencoder; see :func:`train`.

    Only the semantic encoder of the model in ``output/model`` is trained. :func:`train_sembo` takes it as
    ``config.init``.
    """
    return train("teacher", data, output, config, on_start=on_start, on_step=on_step, resume=resume)


def train_sembo(
    data: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    resume: Resume = "newest",
) -> TrainResult:
    """Train the semantic bottleneck (SemBo) under a frozen teacher; see :func:`train`.

    ``data`` may be shards of the teacher's features (``losatok precompute features``) in place of recordings.
    """
    return train("sembo", data, output, config, on_start=on_start, on_step=on_step, resume=resume)


def train_tokenizer(
    data: str | Path,
    output: str | Path,
    config: TrainConfig,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    resume: Resume = "newest",
) -> TrainResult:
    """Train the acoustic encoder, the latent and the decoder; see :func:`train`.

    ``config.init`` names the folder that :func:`train_sembo` wrote. ``data`` may be shards of the teacher's features
    with their audio (``losatok precompute features --audio``); the teacher does not run then.
    """
    return train("tokenizer", data, output, config, on_start=on_start, on_step=on_step, resume=resume)


def train_generator(
    data: str | Path,
    output: str | Path,
    config: TrainConfig,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    resume: Resume = "newest",
) -> TrainResult:
    """Train a generator of a frozen tokenizer's latents; see :func:`train`.

    ``data`` is recordings or latents: files that ``losatok encode`` wrote, or shards of ``losatok precompute latents``.
    ``config.generator.tokenizer`` names the tokenizer's folder; None takes the bundled one for recordings, and none for
    latents. The text of a clip is ``"text"`` in the manifest, else ``"label"``, else ``"labels"``; in a folder the name
    of the folder that the file lies in.
    """
    return train("generator", data, output, config, on_start=on_start, on_step=on_step, resume=resume)
