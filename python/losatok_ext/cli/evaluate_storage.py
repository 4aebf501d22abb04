"""``losatok evaluate storage``: what each way of storing latents costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import DeviceOption, ModelOption, OverwriteOption, load_model, require_model
from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.reports import DataArgument, ReportOption, finish, item_progress, items_of
from losatok_ext.evaluation.reporting.writing import report_places
from losatok_ext.evaluation.tasks.storage import evaluate_storage
from losatok_ext.evaluation.tasks.storage_report import storage_report


@reads_recordings
def storage(
    ctx: typer.Context,
    inputs: DataArgument,
    output: ReportOption,
    model: ModelOption = None,
    quantizer_model: Annotated[
        list[Path] | None,
        typer.Option(
            "--quantizer-model",
            help="Copy of the model with a quantizer; the option may be repeated.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Measure what each way of storing latents costs: bits per second, latent error, mel loss.

    Writes storage.json, storage.md, storage.html and storage.png. A recording that cannot be used is named at the end
    (exit code 2) and does not stop the others.
    """
    folders = [require_model(folder) for folder in (model, *(quantizer_model or []))]
    places = report_places(output, "storage", overwrite)
    items, failures = items_of(inputs)
    tokenizer, *quantized = [load_model(folder, device) for folder in folders]
    with item_progress("measuring", len(items)) as progress:
        result = evaluate_storage(tokenizer, items, quantized, progress, ctx.obj["debug"])
    result.failures = [*failures, *result.failures]
    finish(storage_report(result), places)
