"""``losatok train teacher``, ``losatok train sembo``, ``losatok train tokenizer`` and ``losatok train generator``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.progress import TrainingProgress
from losatok_ext.cli.training_options import ConfigOption, Data, configured
from losatok_ext.models.teachers.registry import KINDS
from losatok_ext.pretrained import DEFAULT, is_bundled, resolve
from losatok_ext.training import TrainConfig, TrainResult, train_generator, train_sembo, train_teacher, train_tokenizer
from losatok_ext.training.data.latent_corpus import holds_latents
from losatok_ext.training.run import Resume

app = typer.Typer(
    no_args_is_help=True,
    help="Train a model: a `teacher` where you have none, `sembo`, then `tokenizer`, then a `generator`.",
)

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Folder of the run: model/, checkpoints/, log.jsonl. The same command again goes on from there.",
        show_default=False,
    ),
]
From = Annotated[
    Resume,
    typer.Option(
        "--from",
        help="The checkpoint to go on from: the newest, or previous, the one before it, where the newest is damaged.",
    ),
]
ClipsWithText = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help='Folder of audio or latent files, JSONL manifest of {"path": ..., "text": ...} lines, or shards.',
        show_default=False,
    ),
]


def _validation(text: str) -> dict[str, Any]:
    """The share to hold out where ``text`` is a number, else the folder or manifest to validate on."""
    try:
        return {"validation": {"share": float(text)}}
    except ValueError:
        return {"validation": {"data": text}}


PRESET = ConfigOption("preset", unset="base")
INIT = ConfigOption("init")
COMMON = (
    ConfigOption("steps", unset="the paper's"),
    ConfigOption("batch_size"),
    ConfigOption("optimizer.lr"),
    ConfigOption("seed"),
    ConfigOption("device"),
    ConfigOption("log.tensorboard"),
    ConfigOption("precision"),
    ConfigOption("optimizer.accumulate"),
    ConfigOption("optimizer.ema_decay", ("--ema",), unset="no mean"),
    ConfigOption(
        "validation.data",
        ("--validation",),
        unset="nothing",
        help="Folder or manifest to validate on, or a share of the data to hold out, such as 0.02.",
        read=_validation,
    ),
)


@app.command()
@reads_recordings
@configured(PRESET, INIT, *COMMON)
def teacher(data: Data, output: Output, config: TrainConfig, resume: From = "newest") -> None:
    """Train a semantic encoder on unlabelled recordings, as a masked autoencoder; then `train sembo --init OUTPUT`."""
    _run(train_teacher, data, output, config, resume)


@app.command()
@reads_recordings
@configured(
    PRESET,
    ConfigOption("teacher", unset="a frozen encoder with seeded random weights", help=f"The teacher: {KINDS}."),
    INIT,
    *COMMON,
)
def sembo(data: Data, output: Output, config: TrainConfig, resume: From = "newest") -> None:
    """Train the semantic bottleneck (SemBo) under a frozen teacher."""
    _run(train_sembo, data, output, config, resume)


@app.command()
@reads_recordings
@configured(INIT, *COMMON)
def tokenizer(data: Data, output: Output, config: TrainConfig, resume: From = "newest") -> None:
    """Train acoustic encoder, latent and decoder; the semantic branch stays frozen.

    It needs --init, here or in the configuration file. On shards of `losatok precompute features --audio` its teacher
    never runs.
    """
    _run(train_tokenizer, data, output, config, resume)


@app.command()
@reads_recordings
@configured(
    ConfigOption(
        "generator.tokenizer",
        ("--model", "-m"),
        unset=f"{DEFAULT}, which is bundled; latent files need none",
        envvar="LOSATOK_MODEL",
    ),
    PRESET,
    INIT,
    *COMMON,
)
def generator(data: ClipsWithText, output: Output, config: TrainConfig, resume: From = "newest") -> None:
    """Train a generator of a tokenizer's latents from text; the tokenizer stays frozen.

    A clip's text is "text" in the manifest, else "label", else "labels"; in a folder it is the name of the folder that
    the file is in.
    """
    _run(train_generator, data, output, config, resume, _tokenizer_note(data, config.generator.tokenizer))


def _tokenizer_note(data: Path, tokenizer: str | None) -> str | None:
    """A line that names the tokenizer that encodes ``data``; None where ``data`` are latents.

    Raises:
        TrainingError: ``data`` holds both recordings and latents.
    """
    if holds_latents(data):
        return None
    name = tokenizer or DEFAULT
    return f"tokenizer: {name}{', which is bundled' if is_bundled(resolve(name)) else ''}"


def _run(
    train: Callable[..., TrainResult],
    data: Path,
    output: Path,
    config: TrainConfig,
    resume: Resume,
    note: str | None = None,
) -> None:
    # Of several processes only the first one reports starts and steps; the bars of the others stay empty.
    try:
        with TrainingProgress(note=note) as progress:
            result = train(data, output, config, on_start=progress.on_start, on_step=progress.on_step, resume=resume)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on from the last checkpoint in {output}", err=True)
        raise typer.Exit(130) from None
    for reason in result.unreadable:
        typer.echo(f"unreadable on the way, replaced by another clip: {reason}", err=True)
    skipped = f", {result.skipped} of them skipped as not finite" if result.skipped else ""
    best = f"; best validation {result.best.total:.4g} at step {result.best.step}" if result.best else ""
    if int(os.environ.get("RANK", "0")) == 0:
        typer.echo(f"{result.model}: trained for {result.steps} steps{skipped}{best}")
