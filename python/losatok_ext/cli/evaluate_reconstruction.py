"""``losatok evaluate reconstruction``: how close reconstructions are to recordings."""

from __future__ import annotations

from typing import Annotated

import typer

from losatok_ext.cli.common import (
    DeviceOption,
    ModelOption,
    OverwriteOption,
    load_model,
    require_model,
)
from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.reports import ByOption, DataArgument, ReportOption, finish, item_progress, items_of
from losatok_ext.evaluation.reporting.writing import report_places
from losatok_ext.evaluation.tasks.reconstruction import evaluate_reconstruction, journal_place, perceptual_measures
from losatok_ext.evaluation.tasks.reconstruction_report import reconstruction_report


@reads_recordings
def reconstruction(
    ctx: typer.Context,
    inputs: DataArgument,
    output: ReportOption,
    model: ModelOption = None,
    by: ByOption = None,
    pesq: Annotated[
        bool | None, typer.Option("--pesq/--no-pesq", help="Compute PESQ.", show_default="if pesq is installed")
    ] = None,
    stoi: Annotated[
        bool | None, typer.Option("--stoi/--no-stoi", help="Compute STOI.", show_default="if pystoi is installed")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Clips on the page to listen to, at most.")] = 9,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Measure how close reconstructions are to recordings: spectra, waveform, pitch, PESQ and STOI, speed.

    Writes reconstruction.json, .md, .html (a page with players that opens offline) and .png. After an interruption, the
    same command continues. A recording that cannot be used is named at the end (exit code 2).
    """
    model = require_model(model)
    places = report_places(output, "reconstruction", overwrite)
    perceptual, missing = perceptual_measures(pesq, stoi)
    items, failures = items_of(inputs)
    tokenizer = load_model(model, device)
    with item_progress("measuring", len(items)) as progress:
        found = evaluate_reconstruction(
            tokenizer,
            items,
            journal_place(output),
            keys=by or ["domain"],
            perceptual=perceptual,
            fresh=overwrite,
            progress=progress,
            debug=ctx.obj["debug"],
        )
    found.failures = [*failures, *found.failures]
    report = reconstruction_report(tokenizer, found, examples)
    report.facts.update(missing)
    finish(report, places)
