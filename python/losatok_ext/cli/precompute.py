"""``losatok precompute features`` and ``losatok precompute latents``: outputs of frozen networks, stored in shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from losatok_ext.cli.common import DeviceOption, ModelOption, check_folder, pick_device, require_model, stage_bar
from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.training_options import Data
from losatok_ext.errors import UserError
from losatok_ext.models import LoSATok
from losatok_ext.models.teachers.registry import KINDS, open_teacher
from losatok_ext.text import printable
from losatok_ext.training.precompute.tokens import Storage, precompute_features, precompute_latents
from losatok_ext.training.precompute.writing import ShardSummary

app = typer.Typer(no_args_is_help=True, help="Run a frozen network once: teacher `features` or `latents` into shards.")

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Folder of the shards. The same command again goes on where it stopped.",
        show_default=False,
    ),
]
Store = Annotated[str, typer.Option(help="Type of the stored values: float32, float16 or bfloat16.")]
Megabytes = Annotated[float, typer.Option(help="Approximate size of a shard.", min=0.001)]
BatchSeconds = Annotated[float, typer.Option(help="Seconds of audio that go through the network at once.", min=0.1)]


@app.command()
@reads_recordings
def features(
    data: Data,
    output: Output,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            "-t",
            envvar="LOSATOK_MODEL",
            help=f"Teacher that computes the features: {KINDS}.",
            show_default=False,
        ),
    ] = None,
    store: Store = "float16",
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Precision of the teacher: float32 or bfloat16.")
    ] = "float32",
    device: DeviceOption = "auto",
    megabytes: Megabytes = 256.0,
    batch_seconds: BatchSeconds = 80.0,
    audio: Annotated[
        bool,
        typer.Option(
            "--audio", help="Keep each recording beside its features, as 16-bit FLAC: `train tokenizer` needs both."
        ),
    ] = False,
) -> None:
    """Compute a teacher's features of recordings, with their Gram energy, to train on them instead of the recordings.

    `losatok train sembo OUT --teacher TEACHER` takes the shards, and with --audio so does `losatok train tokenizer OUT
    --init RUN`; the teacher then never runs again. A recording that cannot be used is named at the end (exit code 2)
    and left out.
    """
    if teacher is None:
        raise UserError(f"no teacher: pass --teacher, {KINDS}")
    check_folder(output)
    found = open_teacher(teacher).to(pick_device(device))
    with interruptible(output), stage_bar() as say:
        summary = precompute_features(
            data,
            output,
            found,
            cast(Storage, store),
            megabytes,
            batch_seconds,
            lambda done, total: say("computing features of clips", done, total),
            precision,
            audio,
        )
    finish(summary, "computed")


@app.command()
@reads_recordings
def latents(
    data: Data,
    output: Output,
    model: ModelOption = None,
    store: Store = "float32",
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Precision of the model: float32 or bfloat16.", show_default="as it was saved"),
    ] = None,
    device: DeviceOption = "auto",
    megabytes: Megabytes = 256.0,
    batch_seconds: BatchSeconds = 80.0,
) -> None:
    """Encode recordings to latents, to train a generator on.

    `losatok train generator OUT` takes the shards; the tokenizer then never runs again. A recording that cannot be
    used is named at the end (exit code 2) and left out.
    """
    folder = require_model(model)
    check_folder(output)
    tokenizer = LoSATok.from_pretrained(folder, pick_device(device), precision)
    with interruptible(output), stage_bar() as say:
        summary = precompute_latents(
            data,
            output,
            tokenizer,
            cast(Storage, store),
            megabytes,
            batch_seconds,
            lambda done, total: say("encoding clips", done, total),
        )
    finish(summary, "encoded")


@contextmanager
def interruptible(output: Path) -> Iterator[None]:
    """When stopped from the keyboard, say that the same command continues, and exit with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from the last finished shard in {output}", file=sys.stderr)
        raise typer.Exit(130) from None


def finish(summary: ShardSummary, verb: str) -> None:
    """Print what was written. If recordings were left out, name them on stderr and exit with code 2."""
    for reason in summary.left_out:
        print(f"losatok: left out: {printable(reason)}", file=sys.stderr)
    hours = f"{summary.seconds / 60:.1f} minutes" if summary.seconds < 7200 else f"{summary.seconds / 3600:.1f} hours"
    shards = "1 shard" if summary.shards == 1 else f"{summary.shards} shards"
    kept = f", {summary.kept} of them finished before" if summary.kept else ""
    left_out = f"; {len(summary.left_out)} problems" if summary.left_out else ""
    print(
        f"{summary.clips} clips, {hours}, {verb} into {shards} of {summary.bytes / 1e6:.1f} MB together in "
        f"{printable(str(summary.folder))}{kept}{left_out}"
    )
    if summary.left_out:
        raise typer.Exit(2)
