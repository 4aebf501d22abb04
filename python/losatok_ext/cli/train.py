"""``losatok train teacher``, ``losatok train sembo``, ``losatok train tokenizer`` and ``losatok train generator``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from losatok_ext.cli.progress import TrainingProgress
from losatok_ext.models.teachers.registry import KINDS
from losatok_ext.pretrained import DEFAULT, is_bundled, resolve
from losatok_ext.training import TrainConfig, TrainResult, train_generator, train_sembo, train_teacher, train_tokenizer
from losatok_ext.training.data.latent_corpus import holds_latents

app = typer.Typer(
    no_args_is_help=True,
    help="Train a model: a `teacher` where you have none, `sembo`, then `tokenizer`, then a `generator`.",
)

Data = Annotated[
    Path,
    typer.Argument(
        help='Folder of audio files (searched through), JSONL manifest of {"path": ...} lines, or shards (.tar).',
        show_default=False,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Folder of the run: model/, checkpoints/, log.jsonl. The same command again goes on from there.",
        show_default=False,
    ),
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of configuration keys.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="KEY=VALUE, such as optimizer.lr=1e-3 or data.crop_seconds=2; may be given more than once.",
        show_default=False,
    ),
]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="the paper's")]
BatchSize = Annotated[int | None, typer.Option(help="Crops per step.", show_default="16")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.", show_default="1e-4")]
Seed = Annotated[int | None, typer.Option(help="Of new weights, order, crops and noise.", show_default="0")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="a GPU if there is one")]
Tensorboard = Annotated[
    bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Write TensorBoard scalars.", show_default="no")
]

Precision = Annotated[
    str | None, typer.Option(help="float32, or bfloat16: the network under autocast.", show_default="float32")
]
Accumulate = Annotated[
    int | None, typer.Option(help="Compute a step's batch in so many parts, in less memory.", show_default="1")
]
Ema = Annotated[
    float | None,
    typer.Option(help="Decay of a moving mean of the weights, such as 0.999.", show_default="none is kept"),
]
ValidationData = Annotated[
    str | None,
    typer.Option(
        "--validation",
        help="Folder or manifest to validate on, or a share of the data to hold out, such as 0.02.",
        show_default="nothing",
    ),
]


Preset = Annotated[str | None, typer.Option(help="Size of the model: tiny or base.", show_default="base")]
Init = Annotated[str | None, typer.Option(help="Model folder to start from, instead of a preset.", show_default=False)]


@app.command()
def teacher(
    data: Data,
    output: Output,
    config: Config = None,
    assignments: Set = None,
    preset: Preset = None,
    init: Init = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    device: Device = None,
    tensorboard: Tensorboard = None,
    precision: Precision = None,
    accumulate: Accumulate = None,
    ema: Ema = None,
    validation: ValidationData = None,
) -> None:
    """Train a semantic encoder on unlabelled recordings, as a masked autoencoder; then `train sembo --init OUTPUT`."""
    options = _given({"preset": preset, "init": init}) | _common(
        steps, batch_size, lr, seed, device, tensorboard, precision, accumulate, ema, validation
    )
    _run(train_teacher, data, output, TrainConfig.load(config, options, assignments or []))


@app.command()
def sembo(
    data: Data,
    output: Output,
    config: Config = None,
    assignments: Set = None,
    preset: Preset = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The teacher: " + KINDS + ".",
            show_default="a frozen encoder with seeded random weights",
        ),
    ] = None,
    init: Init = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    device: Device = None,
    tensorboard: Tensorboard = None,
    precision: Precision = None,
    accumulate: Accumulate = None,
    ema: Ema = None,
    validation: ValidationData = None,
) -> None:
    """Train the semantic bottleneck (SemBo) under a frozen teacher."""
    options = {"preset": preset, "teacher": teacher, "init": init}
    common = _common(steps, batch_size, lr, seed, device, tensorboard, precision, accumulate, ema, validation)
    _run(train_sembo, data, output, TrainConfig.load(config, {**_given(options), **common}, assignments or []))


@app.command()
def tokenizer(
    data: Data,
    output: Output,
    init: Annotated[
        str | None,
        typer.Option(help="Folder that `losatok train sembo` wrote (needed, here or in --config).", show_default=False),
    ] = None,
    config: Config = None,
    assignments: Set = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    device: Device = None,
    tensorboard: Tensorboard = None,
    precision: Precision = None,
    accumulate: Accumulate = None,
    ema: Ema = None,
    validation: ValidationData = None,
) -> None:
    """Train acoustic encoder, latent and decoder; the semantic branch stays frozen.

    On shards of `losatok precompute features --audio` its teacher never runs.
    """
    common = _common(steps, batch_size, lr, seed, device, tensorboard, precision, accumulate, ema, validation)
    _run(
        train_tokenizer, data, output, TrainConfig.load(config, {**_given({"init": init}), **common}, assignments or [])
    )


@app.command()
def generator(
    data: Annotated[
        Path,
        typer.Argument(
            help='Folder of audio or latent files, JSONL manifest of {"path": ..., "text": ...} lines, or shards.',
            show_default=False,
        ),
    ],
    output: Output,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            envvar="LOSATOK_MODEL",
            help="Tokenizer folder, or the name of a bundled model; encodes audio files.",
            show_default=f"{DEFAULT}, which is bundled; latent files need none",
        ),
    ] = None,
    config: Config = None,
    assignments: Set = None,
    preset: Annotated[
        str | None, typer.Option(help="Size of the generator: tiny, base or wide.", show_default="base")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Generator folder to go on from, instead of a preset.", show_default=False)
    ] = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    device: Device = None,
    tensorboard: Tensorboard = None,
    precision: Precision = None,
    accumulate: Accumulate = None,
    ema: Ema = None,
    validation: ValidationData = None,
) -> None:
    """Train a generator of a tokenizer's latents, told by text; the tokenizer stays frozen.

    A clip's text is "text" in the manifest, else "label", else "labels"; in a folder the name of the folder it lies in.
    """
    options = _given({"preset": preset, "init": init}) | _common(
        steps, batch_size, lr, seed, device, tensorboard, precision, accumulate, ema, validation
    )
    if model is not None:
        options["generator"] = {"tokenizer": model}
    loaded = TrainConfig.load(config, options, assignments or [])
    _run(train_generator, data, output, loaded, _who_encodes(data, loaded.generator.tokenizer))


def _who_encodes(data: Path, tokenizer: str | None) -> str | None:
    """A line that names the tokenizer of recordings; None for latents, which are encoded already.

    Raises:
        TrainingError: ``data`` holds both recordings and latents.
    """
    if holds_latents(data):
        return None
    name = tokenizer or DEFAULT
    return f"tokenizer: {name}{', which is bundled' if is_bundled(resolve(name)) else ''}"


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _common(
    steps: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int | None,
    device: str | None,
    tensorboard: bool | None,
    precision: str | None,
    accumulate: int | None,
    ema: float | None,
    validation: str | None,
) -> dict[str, Any]:
    options = _given({"steps": steps, "batch_size": batch_size, "seed": seed, "device": device, "precision": precision})
    optimizer = _given({"lr": lr, "accumulate": accumulate, "ema_decay": ema})
    if optimizer:
        options["optimizer"] = optimizer
    if validation is not None:
        options["validation"] = _validation(validation)
    if tensorboard is not None:
        options["log"] = {"tensorboard": tensorboard}
    return options


def _validation(text: str) -> dict[str, Any]:
    """A share where ``text`` is a number, else the place of the data."""
    try:
        return {"share": float(text)}
    except ValueError:
        return {"data": text}


def _run(
    train: Callable[..., TrainResult], data: Path, output: Path, config: TrainConfig, note: str | None = None
) -> None:
    # Of several processes the first one alone is told of starts and steps; the bars of the others stay empty.
    try:
        with TrainingProgress(note=note) as progress:
            result = train(data, output, config, on_start=progress.on_start, on_step=progress.on_step)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on from the last checkpoint in {output}", err=True)
        raise typer.Exit(130) from None
    for reason in result.unreadable:
        typer.echo(f"unreadable on the way, replaced by another clip: {reason}", err=True)
    skipped = f", {result.skipped} of them skipped as not finite" if result.skipped else ""
    best = f"; best validation {result.best.total:.4g} at step {result.best.step}" if result.best else ""
    if int(os.environ.get("RANK", "0")) == 0:
        typer.echo(f"{result.model}: trained for {result.steps} steps{skipped}{best}")
