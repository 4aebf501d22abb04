"""The report of an analysis: ranks by group, curves of explained variance, and what reductions keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from losatok_ext.evaluation.reporting.numbers import fixed
from losatok_ext.evaluation.reporting.report import Bar, BarChart, Headline, Line, LineChart, Report, Table
from losatok_ext.evaluation.tasks.analysis import SHARES, Analysis, Reduction, Spectrum
from losatok_ext.evaluation.tasks.features import FeatureSet

_POINTS = 120  # of a curve

_NOTES = (
    "Effective rank: exponential of the entropy of the shares of the singular values of centred frames (Roy and "
    "Vetterli 2007). Participation ratio: (sum of variances)^2 / sum of their squares.",
    "Axes for a share: the fewest principal axes that hold that share of the variance.",
)
_REDUCED = (
    "Reductions are fitted to every other clip and measured on the rest. pca: principal components; merge: means of "
    "neighbouring channels; SemBo: the model's bottleneck, as it was trained. Explained: share of the variance that "
    "the restored frames explain. Cosine: of restored and original frames. Relation: mean squared difference between "
    "the cosines of all pairs of frames of a clip in d and in all dimensions."
)


def analysis_report(found: Analysis, features: FeatureSet, facts: Mapping[str, str]) -> Report:
    """The report of an analysis.

    Args:
        found: the figures.
        features: the features that were analysed.
        facts: about the model.
    """
    overall = [spectrum for spectrum in found.spectra if spectrum.group == "all"]
    shown = {**facts, "clips": str(len(features.items)), "frames": str(overall[0].frames)}
    report = Report("analysis", "Features", shown, _values(found))
    report.headlines = [
        Headline(f"effective rank, {s.feature}", f"{s.effective_rank:.1f}", f"of {s.dims} dimensions") for s in overall
    ]
    report.tables.append(_spectra_table(found.spectra))
    for one in overall:
        own = [spectrum for spectrum in found.spectra if spectrum.feature == one.feature]
        lines = {spectrum.group: _curve(spectrum) for spectrum in own}
        report.charts.append(
            LineChart(
                f"{one.feature}: explained variance", lines, "principal axes", "share of the variance", x_log=True
            )
        )
        if len(own) > 1:
            bars = [Bar(s.group, s.effective_rank) for s in own]
            report.charts.append(BarChart(f"{one.feature}: effective rank", bars, f"of {one.dims} dimensions"))
    report.notes = list(_NOTES)
    if found.reductions:
        report.tables.append(_reductions_table(found))
        report.charts += _reduction_charts(found)
        report.notes.append(_REDUCED)
    report.failures = features.failures
    return report


def _spectra_table(spectra: Sequence[Spectrum]) -> Table:
    cells = [
        [
            f"{s.feature}, {s.group}",
            str(s.clips),
            str(s.frames),
            str(s.dims),
            f"{s.effective_rank:.1f}",
            f"{s.participation_ratio:.1f}",
            *(str(s.axes_for[share]) for share in SHARES),
        ]
        for s in spectra
    ]
    heads = ["", "clips", "frames", "dims", "effective rank", "participation", *(f"axes for {x:.0%}" for x in SHARES)]
    few = [f"{s.feature}, {s.group}" for s in spectra if s.frames < 10 * s.dims]
    note = f"Few frames for their dimensions, so ranks are too low: {'; '.join(few)}." if few else ""
    return Table("Effective rank and explained variance", heads, cells, note)


def _reductions_table(found: Analysis) -> Table:
    cells = [
        [f"{r.method}, {r.dims}", fixed(r.explained), fixed(r.cosine, 4), fixed(r.relation, 5)]
        for r in sorted(found.reductions, key=lambda row: (row.dims, row.method))
    ]
    note = f"Fitted to {found.fitted_clips} clips, measured on {found.measured_clips} others."
    heads = ["", "explained ↑", "cosine ↑", "relation ↓"]
    return Table(f"{found.reduced} in fewer dimensions", heads, cells, note)


def _reduction_charts(found: Analysis) -> list[LineChart]:
    """What each method keeps, over the dimensions that it reduces to."""
    methods: dict[str, list[Reduction]] = {}
    for row in sorted(found.reductions, key=lambda row: row.dims):
        methods.setdefault(row.method, []).append(row)
    charts = []
    for figure, title in (("explained", "explained variance, restored"), ("relation", "time-relation loss")):
        lines = {name: Line([(row.dims, getattr(row, figure)) for row in rows]) for name, rows in methods.items()}
        charts.append(LineChart(f"{found.reduced}: {title}", lines, "dimensions", figure, x_log=True))
    return charts


def _curve(spectrum: Spectrum) -> Line:
    """The share that the first axes hold, at no more than :data:`_POINTS` numbers of axes, spread logarithmically."""
    places = sorted({round(spectrum.dims ** (i / (_POINTS - 1))) for i in range(_POINTS)})
    return Line([(float(place), spectrum.explained[place - 1]) for place in places])


def _values(found: Analysis) -> dict[str, Any]:
    values = dataclasses.asdict(found)
    for spectrum in values["spectra"]:
        spectrum["axes_for"] = {str(share): count for share, count in spectrum["axes_for"].items()}
    return values
