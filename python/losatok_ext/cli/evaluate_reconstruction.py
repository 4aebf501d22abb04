"""``losatok evaluate reconstruction``: how near reconstructions come to recordings."""

from __future__ import annotations

from typing import Annotated

import typer

from losatok_ext.cli.common import (
    DeviceOption,
    ModelOption,
    OverwriteOption,
    check_folder,
    load_model,
    require_model,
)
from losatok_ext.cli.reports import ByOption, DataArgument, ReportOption, finish, item_progress, items_of
from losatok_ext.evaluation.reporting.report import report_places
from losatok_ext.evaluation.tasks.reconstruction import evaluate_reconstruction, journal_place, perceptual_measures
from losatok_ext.evaluation.tasks.reconstruction_report import reconstruction_report


def reconstruction(
    ctx: typer.Context,
    inputs: DataArgument,
    output: ReportOption,
    model: ModelOption = None,
    by: ByOption = None,
    pesq: Annotated[
        bool | None, typer.Option("--pesq/--no-pesq", help="PESQ.", show_default="where pesq is installed")
    ] = None,
    stoi: Annotated[
        bool | None, typer.Option("--stoi/--no-stoi", help="STOI.", show_default="where pystoi is installed")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Clips to listen to on the page, at most.")] = 9,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Measure how near reconstructions come to recordings: spectra, waveform, pitch, PESQ and STOI, speed.

    Leaves reconstruction.json, reconstruction.md and reconstruction.html, a page with players that opens offline. The
    same command again goes on where it was stopped. A recording that cannot be used is named at the end (exit code 2).
    """
    model = require_model(model)
    check_folder(output)
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
