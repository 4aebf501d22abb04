"""``losatok evaluate probe``: what simple classifiers can tell from features."""

from __future__ import annotations

from typing import Annotated

import typer

from losatok_ext.cli.common import DeviceOption, ModelOption, OverwriteOption, check_folder, load_model, require_model
from losatok_ext.cli.reports import ReportOption, finish, item_progress, items_of
from losatok_ext.errors import UserError
from losatok_ext.evaluation.reporting.report import report_places
from losatok_ext.evaluation.tasks.features import GIVEN, SUFFIXES, extract, holds_features, parse_spec
from losatok_ext.evaluation.tasks.probe import LEVELS, POOLS, evaluate_probe, find_task
from losatok_ext.evaluation.tasks.probe_report import probe_report


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
        typer.Option("--label", help="Key of the manifest to tell apart; more than once, too.", show_default=False),
    ],
    model: ModelOption = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            help="latents, semantic, semantic_low, acoustic, acoustic_low, unified, unified_low; pca:D, merge:D.",
            show_default="latents, semantic, semantic_low, pca:d and merge:d",
        ),
    ] = None,
    level: Annotated[str, typer.Option(help="clip or frame.")] = "clip",
    pool: Annotated[str, typer.Option(help="Of a clip's frames: mean or mean+std.")] = "mean",
    segments: Annotated[
        bool, typer.Option("--segments", help='Classes of frames by the manifest\'s "segments".')
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            help="Key whose values are never split; clip: split by clip.", show_default="source, speaker or voice"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Splits.")] = 5,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Probe features: logistic regression and nearest neighbours, on splits that keep sources apart.

    Leaves probe.json, probe.md and probe.html. Features are kept in the folder's features/, so the same command again
    goes on where it was stopped. A recording that cannot be used is named at the end (exit code 2).
    """
    for name, value, known in (("level", level, LEVELS), ("pool", pool, POOLS)):
        if value not in known:
            raise UserError(f"--{name} is {value!r}; it takes {' or '.join(known)}")
    if segments and level != "frame":
        raise UserError("--segments are of frames; pass --level frame with it")
    check_folder(output)
    places = report_places(output, "probe", overwrite)
    items, failures = items_of(inputs, SUFFIXES)
    given = holds_features(items)
    for name in label:
        find_task(items, name, source, segments)  # what cannot be probed is said before features are computed
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
