"""The report of probes: a table and two charts per task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from losatok_ext.evaluation.metrics.probes import PROBES
from losatok_ext.evaluation.reporting.numbers import with_spread
from losatok_ext.evaluation.reporting.report import Bar, BarChart, Headline, Report, Table
from losatok_ext.evaluation.tasks.features import FeatureSet
from losatok_ext.evaluation.tasks.probe import ProbeResult, ProbeRow, class_counts

_NOTES = (
    "linear: multinomial logistic regression on standardised features; the L2 penalty is chosen on the validation set, "
    "then the probe is fitted to training and validation. knn: weighted votes of the nearest neighbours by cosine; "
    "their number is chosen on the validation set.",
    "For each seed, clips are split 60 / 20 / 20 into training, validation and test; clips of one source stay "
    "together. Standardisation and reductions (pca, merge) are fitted to training clips only.",
    "Figures are means over seeds ± their standard deviation. Balanced accuracy is the mean over classes; majority is "
    "the accuracy of always predicting the most frequent class of the training set.",
)


def probe_report(
    results: Sequence[ProbeResult], features: FeatureSet, facts: Mapping[str, str], pool: str = "mean"
) -> Report:
    """The report of probes of one feature set.

    Args:
        results: one per task, at least one.
        features: the features that were probed.
        facts: about the model.
        pool: how the frames of a clip were pooled.
    """
    first = results[0]
    level = first.level if first.level == "frame" else f"clip ({pool} over frames)"
    shown = {**facts, "clips": str(len(features.items)), "level": level, "seeds": str(len(first.seeds))}
    report = Report("probe", "Probes", shown, {"pool": pool, "tasks": [_values(result) for result in results]})
    for result in results:
        best = max(result.rows, key=lambda row: row.accuracy.mean)
        report.headlines.append(
            Headline(
                f"{result.task.label}, best",
                f"{100 * best.accuracy.mean:.1f} %",
                f"{best.feature}, {best.probe}; majority {100 * result.majority.mean:.1f} %",
            )
        )
        report.tables.append(_table(result))
        report.charts += [_chart(result, probe) for probe in PROBES]
    report.notes, report.failures = list(_NOTES), features.failures
    return report


def _chart(result: ProbeResult, probe: str) -> BarChart:
    title = "a linear probe" if probe == "linear" else "nearest neighbours"
    return BarChart(
        f"{result.task.label}: accuracy of {title}",
        [
            Bar(row.feature, 100 * row.accuracy.mean, _percent(row.accuracy.spread))
            for row in result.rows
            if row.probe == probe
        ],
        "%; ± standard deviation over seeds",
        (100 * result.majority.mean, "majority"),
        limit=100.0,
    )


def _table(result: ProbeResult) -> Table:
    rows: dict[str, dict[str, ProbeRow]] = {}
    for row in result.rows:
        rows.setdefault(row.feature, {})[row.probe] = row
    cells = [
        [
            feature,
            str(next(iter(own.values())).dims),
            *(
                with_spread(100 * figure.mean, _percent(figure.spread), 1)
                for probe in ("linear", "knn")
                for figure in (own[probe].accuracy, own[probe].balanced)
            ),
        ]
        for feature, own in rows.items()
    ]
    task = result.task
    what = "frames" if result.level == "frame" else "clips"
    tested = sum(result.test_rows) / len(result.test_rows)
    note = (
        f"{len(task.classes)} classes, {len(task.clips)} clips of {len(set(task.sources))} sources (by "
        f"{task.source_key}), {tested:.0f} {what} in a test set; majority {100 * result.majority.mean:.1f} %."
    )
    if task.left_out:
        names = ", ".join(f"{name} ({count})" for name, count in list(task.left_out.items())[:8])
        more = ", ..." if len(task.left_out) > 8 else ""
        note += f" Left out, with fewer than 3 sources: {len(task.left_out)} classes: {names}{more}."
    if any(result.unseen):
        note += f" {sum(result.unseen)} test {what} of all seeds were left out: training had none of their class."
    heads = ["", "dims", "linear, %", "balanced", "knn, %", "balanced"]
    return Table(f"{task.label}, {result.level} level", heads, cells, note)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _values(result: ProbeResult) -> dict[str, Any]:
    task = result.task
    return {
        "label": task.label,
        "level": result.level,
        "classes": class_counts(task) if result.level == "clip" else list(task.classes),
        "clips": len(task.clips),
        "sources": len(set(task.sources)),
        "source_key": task.source_key,
        "left_out": task.left_out,
        "seeds": result.seeds,
        "test_rows": result.test_rows,
        "unseen": result.unseen,
        "majority": result.majority._asdict(),
        "rows": [
            {**dataclasses.asdict(row), "accuracy": row.accuracy._asdict(), "balanced": row.balanced._asdict()}
            for row in result.rows
        ],
    }
