"""``losatok evaluate precision``: what bfloat16 and int8 cost and save."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from losatok_ext.audio.files import READABLE_SUFFIXES
from losatok_ext.cli.common import (
    DeviceOption,
    ModelOption,
    RecordingsArgument,
    pick_device,
    progress_bar,
    require_model,
)
from losatok_ext.errors import UserError
from losatok_ext.evaluation.tasks.precision import EXPLANATION, evaluate_precision, in_each_precision
from losatok_ext.files import atomic_path
from losatok_ext.recordings.find import find_inputs

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok


def precision(
    ctx: typer.Context,
    inputs: RecordingsArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.json", help="Also write the figures.", show_default=False),
    ] = None,
    model: ModelOption = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model folder: a model of random weights, base (the published sizes) or tiny.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[float, typer.Option(min=0.0, help="Seconds for timing encoding, and decoding.")] = 4.0,
    device: DeviceOption = "auto",
) -> None:
    """Measure what float32, bfloat16 and int8 cost: error of tokens and waveforms, speed, size, memory.

    All are compared with float32 of the same model, in one run. A recording that cannot be used is named at the end
    (exit code 2) and does not stop the others.
    """
    exact, described = _exact(model, preset, pick_device(device))
    if output is not None and output.is_dir():
        raise UserError(f"-o {output} is a folder; give the name of a .json file")
    found = find_inputs(inputs, READABLE_SUFFIXES)
    if not found.sources:
        raise UserError("; ".join(failure.message for failure in found.failures))
    models = in_each_precision(exact)
    with progress_bar("measuring", len(found.sources)) as progress:
        report = evaluate_precision(
            models, found.sources, described, str(date.today()), budget, progress, ctx.obj["debug"]
        )
    report.failures = [*found.failures, *report.failures]
    if output is not None:
        with atomic_path(output) as path:
            path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(f"{report.markdown()}{EXPLANATION}.")
    for failure in report.failures:
        print(f"losatok: {failure.message}", file=sys.stderr)
    if report.failures:
        raise typer.Exit(2)


def _exact(folder: Path | None, preset: str | None, device: str) -> tuple[LoSATok, str]:
    """The model in float32, and what it is."""
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
