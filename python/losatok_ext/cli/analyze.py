"""``losatok analyze``: how compressible features are, and what reductions keep of them."""

from __future__ import annotations

from typing import Annotated

import typer

from losatok_ext.cli.common import DeviceOption, ModelOption, OverwriteOption, load_model, require_model
from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.reports import ReportOption, feature_option, finish, item_progress, items_of
from losatok_ext.errors import UserError
from losatok_ext.evaluation.reporting.writing import report_places
from losatok_ext.evaluation.tasks.analysis import analyze as analyze_features
from losatok_ext.evaluation.tasks.analysis_report import analysis_report
from losatok_ext.evaluation.tasks.features import FEATURES, GIVEN, SUFFIXES, extract, holds_features

_DIMS = (8, 16, 32, 64, 128, 256)


@reads_recordings
def analyze(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Manifests, recordings, .npy or latent files, folders (searched through) or patterns.",
            show_default=False,
        ),
    ],
    output: ReportOption,
    model: ModelOption = None,
    feature: Annotated[list[str] | None, feature_option("semantic and latents")] = None,
    by: Annotated[str, typer.Option(help="Key of the manifest to group by.")] = "domain",
    dims: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Numbers of dimensions to reduce the first feature to.",
            show_default="8 to 256, and the model's",
        ),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Effective rank and explained variance of features; PCA, channel merging and SemBo at fewer dimensions.

    Writes analysis.json, analysis.md, analysis.html and analysis.png. Features are kept in features/ of the same
    folder, so the same command continues after an interruption. A clip that cannot be used is named at the end (exit
    code 2).
    """
    places = report_places(output, "analysis", overwrite)
    items, failures = items_of(inputs, SUFFIXES)
    facts: dict[str, str] = {}
    if holds_features(items):
        tokenizer, names = None, [GIVEN]
        if feature not in (None, [GIVEN]):
            raise UserError(
                "--feature chooses what a model computes from recordings, but these files hold features already"
            )
    else:
        tokenizer = load_model(require_model(model), device)
        names = list(dict.fromkeys(feature or ["semantic", "latents"]))
        unknown = next((name for name in names if name not in FEATURES), None)
        if unknown is not None:
            raise UserError(f"--feature is {unknown!r}; it takes {', '.join(FEATURES)}")
        facts = {"model": tokenizer.fingerprint()}
    widths = dims or [*_DIMS, *([] if tokenizer is None else [tokenizer.config.latent_dim])]
    with item_progress("features", len(items)) as progress:
        found = extract(tokenizer, items, names, output / "features", progress, ctx.obj["debug"])
    found.failures = [*failures, *found.failures]
    result = analyze_features(found, names, by, widths, names[0], tokenizer)
    finish(analysis_report(result, found, facts), places)
