"""``losatok evaluate generation``: distances between generated clips and reference clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import DeviceOption, ModelOption, OverwriteOption, load_model, require_model
from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.reports import ReportOption, feature_option, finish, item_progress, items_of
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.clap import Clap
from losatok_ext.evaluation.reporting.writing import report_places
from losatok_ext.evaluation.tasks.features import extract, holds_features, parse_spec
from losatok_ext.evaluation.tasks.generation import LEVELS, GenerationResult, clap_rows, clap_score, clip_rows, compare
from losatok_ext.evaluation.tasks.generation_report import generation_report


@reads_recordings
def generation(
    ctx: typer.Context,
    reference: Annotated[
        str, typer.Argument(help="Manifest, folder or pattern of real recordings.", show_default=False)
    ],
    generated: Annotated[
        str,
        typer.Argument(
            help="Manifest, folder or pattern of generated clips; a manifest may hold their texts.", show_default=False
        ),
    ],
    output: ReportOption,
    model: ModelOption = None,
    feature: Annotated[list[str] | None, feature_option("semantic and latents")] = None,
    level: Annotated[str, typer.Option(help="What is compared: clip (the mean of its frames) or frame.")] = "clip",
    clap: Annotated[
        Path | None,
        typer.Option(help="Folder of a CLAP model for transformers, used as one more feature.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Bootstrap samples.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of all random draws.")] = 0,
    examples: Annotated[int, typer.Option(min=0, help="Clips of each set to listen to, at most.")] = 6,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Measure the distance between generated and real clips: Frechet and kernel distance over features of the model.

    Writes generation.json, .md, .html and .png. Features are kept in features/ of the same folder, so the same command
    continues after an interruption. A clip that cannot be used is named at the end (exit code 2).
    """
    if level not in LEVELS:
        raise UserError(f"--level is {level!r}; it takes {' or '.join(LEVELS)}")
    model = require_model(model)
    places = report_places(output, "generation", overwrite)
    specs = [parse_spec(text) for text in dict.fromkeys(feature or ["semantic", "latents"])]
    bases = [spec.base for spec in specs]
    debug = ctx.obj["debug"]
    sides = []
    for name in (reference, generated):
        items, failures = items_of([name])
        if holds_features(items):
            raise UserError(f"{name} holds features; distances need recordings")
        sides.append((items, failures))
    tokenizer = load_model(model, device)
    clap_model = None if clap is None else Clap(clap, tokenizer.device)
    sets = []
    for title, (items, _) in zip(("reference", "generated"), sides, strict=True):
        with item_progress(f"features of {title}", len(items)) as progress:
            sets.append(extract(tokenizer, items, bases, output / "features", progress, debug))
    real, made = sets
    rows = [
        compare(str(spec), clip_rows(real, spec, level), clip_rows(made, spec, level), samples, seed) for spec in specs
    ]
    failures = [failure for (_, found), side in zip(sides, sets, strict=True) for failure in (*found, *side.failures)]
    result = GenerationResult(rows, real.items, made.items, failures=failures)
    if clap_model is not None:
        embedded = []
        for side in sets:
            with item_progress("CLAP", len(side.items)) as progress:
                embedded.append(clap_rows(clap_model, side.items, tokenizer.sample_rate, progress, debug))
            result.failures += embedded[-1][2]
        result.rows.append(compare("CLAP", embedded[0][1], embedded[1][1], samples, seed))
        result.clap_score = clap_score(clap_model, embedded[1][0], embedded[1][1])
    facts = {"model": tokenizer.fingerprint(), "level": level, "bootstrap samples": str(samples)}
    finish(generation_report(result, facts, tokenizer.sample_rate, examples), places)
