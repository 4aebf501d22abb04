"""``losatok evaluate precision``: what bfloat16 and int8 cost and save."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from losatok_ext.cli.common import DeviceOption, ModelOption, OverwriteOption, pick_device, require_model
from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.reports import DataArgument, OptionalReportOption, finish, item_progress, items_of
from losatok_ext.errors import UserError
from losatok_ext.evaluation.reporting.writing import report_places
from losatok_ext.evaluation.tasks.precision import evaluate_precision, in_each_precision
from losatok_ext.evaluation.tasks.precision_report import precision_report

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok


@reads_recordings
def precision(
    ctx: typer.Context,
    inputs: DataArgument,
    output: OptionalReportOption = None,
    model: ModelOption = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model folder: a model of random weights, base (the published sizes) or tiny.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0.0, help="Seconds for timing encoding, and as many for decoding.")
    ] = 4.0,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Measure what float32, bfloat16 and int8 cost: error of latents and waveforms, speed, size, memory.

    All are compared with float32 of the same model, in one run. With -o, writes precision.json, precision.md,
    precision.html and precision.png. A recording that cannot be used is named at the end (exit code 2) and does not
    stop the others.
    """
    places = None if output is None else report_places(output, "precision", overwrite)
    exact, described = _exact(model, preset, pick_device(device))
    items, failures = items_of(inputs)
    models = in_each_precision(exact)
    with item_progress("measuring", len(items)) as progress:
        result = evaluate_precision(models, items, described, str(date.today()), budget, progress, ctx.obj["debug"])
    result.failures = [*failures, *result.failures]
    finish(precision_report(result), places)


def _exact(folder: Path | None, preset: str | None, device: str) -> tuple[LoSATok, str]:
    """The model in float32, and a description of it."""
    import torch

    from losatok_ext.models import LoSATok, LoSATokConfig

    if preset is None:
        model = LoSATok.from_pretrained(require_model(folder), device=device, dtype="float32")
        return model, f"Model {model.fingerprint()}"
    if preset not in LoSATokConfig.presets():
        raise UserError(f"--preset is {preset!r}; it takes {' or '.join(LoSATokConfig.presets())}")
    torch.manual_seed(0)
    model = LoSATok(LoSATokConfig.preset(preset)).eval().to(device)
    return model, f"The {preset} sizes with random weights"
