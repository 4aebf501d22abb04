"""``losatok evaluate probe``: what simple classifiers can predict from features."""

from __future__ import annotations

from typing import Annotated

import typer

from losatok_ext.cli.common import DeviceOption, ModelOption, OverwriteOption, load_model, require_model
from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.reports import ReportOption, feature_option, finish, item_progress, items_of
from losatok_ext.errors import UserError
from losatok_ext.evaluation.reporting.writing import report_places
from losatok_ext.evaluation.tasks.features import GIVEN, SUFFIXES, extract, holds_features, parse_spec
from losatok_ext.evaluation.tasks.probe import LEVELS, POOLS, evaluate_probe, find_task
from losatok_ext.evaluation.tasks.probe_report import probe_report


@reads_recordings
def probe(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="MANIFEST",
            help="Labelled manifests (.jsonl) of recordings, or of .npy or latent files.",
            show_default=False,
        ),
    ],
    output: ReportOption,
    label: Annotated[
        list[str],
        typer.Option("--label", help="Key of the manifest to predict; the option may be repeated.", show_default=False),
    ],
    model: ModelOption = None,
    feature: Annotated[
        list[str] | None,
        feature_option(
            "latents, semantic, semantic_low, pca:d and merge:d",
            ", or one of these reduced (acoustic+pca:32; pca:64 alone reduces semantic)",
        ),
    ] = None,
    level: Annotated[str, typer.Option(help="What is classified: clip or frame.")] = "clip",
    pool: Annotated[str, typer.Option(help="How the frames of a clip are pooled: mean or mean+std.")] = "mean",
    segments: Annotated[
        bool, typer.Option("--segments", help='Take the classes of frames from "segments" of the manifest.')
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            help="Key of the manifest; clips with the same value stay in one part of a split. clip: split by clip.",
            show_default="source, speaker or voice",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of random splits.")] = 5,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Probe features: logistic regression and nearest neighbours, on splits that keep sources apart.

    Writes probe.json, probe.md, probe.html and probe.png. Features are kept in features/ of the same folder, so the
    same command continues after an interruption. A recording that cannot be used is named at the end (exit code 2).
    """
    for name, value, known in (("level", level, LEVELS), ("pool", pool, POOLS)):
        if value not in known:
            raise UserError(f"--{name} is {value!r}; it takes {' or '.join(known)}")
    if segments and level != "frame":
        raise UserError("--segments gives classes to frames; pass --level frame with it")
    places = report_places(output, "probe", overwrite)
    items, failures = items_of(inputs, SUFFIXES)
    given = holds_features(items)
    for name in label:
        find_task(items, name, source, segments)  # an impossible task is refused before features are computed
    facts: dict[str, str] = {}
    if given:
        tokenizer, wanted = None, feature or [GIVEN]
    else:
        tokenizer = load_model(require_model(model), device)
        dims = tokenizer.config.latent_dim
        wanted = feature or ["latents", "semantic", "semantic_low", f"pca:{dims}", f"merge:{dims}"]
        facts = {"model": tokenizer.fingerprint()}
    specs = [parse_spec(text, given) for text in dict.fromkeys(wanted)]
    with item_progress("features", len(items)) as progress:
        bases = list(dict.fromkeys(spec.base for spec in specs))
        found = extract(tokenizer, items, bases, output / "features", progress, ctx.obj["debug"])
    found.failures = [*failures, *found.failures]
    tasks = [find_task(found.items, name, source, segments) for name in label]
    results = [
        evaluate_probe(found, task, specs, level=level, pool=pool, seeds=range(seeds), segments=segments)
        for task in tasks
    ]
    finish(probe_report(results, found, facts, pool), places)
