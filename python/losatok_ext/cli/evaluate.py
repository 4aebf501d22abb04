"""``losatok evaluate``: measurements of a model, each a subcommand that leaves a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.audio.files import READABLE_SUFFIXES
from losatok_ext.cli.common import (
    DeviceOption,
    ModelOption,
    OverwriteOption,
    RecordingsArgument,
    check_folder,
    load_model,
    progress_bar,
    require_model,
)
from losatok_ext.cli.evaluate_generation import generation
from losatok_ext.cli.evaluate_precision import precision
from losatok_ext.cli.evaluate_probe import probe
from losatok_ext.cli.evaluate_reconstruction import reconstruction
from losatok_ext.errors import UserError
from losatok_ext.evaluation.tasks.storage import evaluate_storage
from losatok_ext.evaluation.tasks.storage_plot import plot_storage
from losatok_ext.files import atomic_path
from losatok_ext.recordings.find import find_inputs

app = typer.Typer(no_args_is_help=True, help="Measure a model: `reconstruction`, `probe`, `generation`, `storage`.")

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the report: JSON, Markdown, picture.", show_default=False)
]


@app.callback()
def _group() -> None:
    """Measure a model on recordings."""


for _command in (reconstruction, probe, generation, precision):
    app.command(_command.__name__)(_command)


@app.command()
def storage(
    ctx: typer.Context,
    inputs: RecordingsArgument,
    output: Output,
    model: ModelOption = None,
    quantizer_model: Annotated[
        list[Path] | None,
        typer.Option(
            "--quantizer-model", help="Copy of the model with a quantizer; more than once, too.", show_default=False
        ),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Measure what each way of storing latents costs: bits per second, latent error, mel distance.

    Leaves storage.json, storage.md and storage.png. A recording that cannot be used is named at the end (exit code 2)
    and does not stop the others.
    """
    model = require_model(model)
    others = [require_model(folder) for folder in quantizer_model or []]
    check_folder(output)
    places = {suffix: output / f"storage.{suffix}" for suffix in ("json", "md", "png")}
    existing = next((path for path in places.values() if path.exists()), None)
    if existing is not None and not overwrite:
        raise UserError(f"{existing} exists already; pass --overwrite or another folder")
    found = find_inputs(inputs, READABLE_SUFFIXES)
    if not found.sources:
        raise UserError("; ".join(failure.message for failure in found.failures))
    tokenizer = load_model(model, device)
    quantized = [load_model(folder, device) for folder in others]
    with progress_bar("measuring", len(found.sources)) as progress:
        report = evaluate_storage(tokenizer, found.sources, quantized, progress, ctx.obj["debug"])
    report.failures = [*found.failures, *report.failures]
    for suffix, text in (("json", json.dumps(report.to_dict(), indent=2) + "\n"), ("md", report.markdown())):
        with atomic_path(places[suffix]) as path:
            path.write_text(text, encoding="utf-8")
    plot_storage(places["png"], report)
    print(report.markdown())
    print(", ".join(map(str, places.values())))
    for failure in report.failures:
        print(f"losatok: {failure.message}", file=sys.stderr)
    if report.failures:
        raise typer.Exit(2)
