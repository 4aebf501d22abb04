"""What people see of an analysis: ranks by group, curves of explained variance, and what reductions keep."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from losatok_ext.audio.plots import check_picture, import_figure, save_figure
from losatok_ext.evaluation.reporting.report import Bar, BarChart, Figure, LineChart, Report, Table
from losatok_ext.evaluation.tasks.analysis import SHARES, Analysis, Reduction, Spectrum
from losatok_ext.evaluation.tasks.features import FeatureSet

_COLOURS = ("#374151", "#c2410c", "#2f6f8f", "#5b8c3e", "#8a5aa8", "#b58900")
_POINTS = 120  # of a curve on the page

_NOTES = (
    "Effective rank: exponential of the entropy of the shares of the singular values of centred frames (Roy and "
    "Vetterli 2007). Participation ratio: (sum of variances)^2 / sum of their squares.",
    "Axes for a share: the fewest principal axes that hold that share of the variance.",
)
_REDUCED = (
    "Reductions are fitted to every other clip and measured on the rest. pca: principal components; merge: means of "
    "neighbouring channels; SemBo: the model's bottleneck, as it was trained. Explained: share of the variance that is "
    "there again after restoring. Cosine: of restored and original frames. Relation: mean squared difference of the "
    "cosines between all pairs of frames of a clip, in d and in all dimensions."
)


def analysis_report(found: Analysis, features: FeatureSet, facts: Mapping[str, str]) -> Report:
    """The report of an analysis.

    Args:
        found: it.
        features: that were analysed.
        facts: about the model.
    """
    whole = [spectrum for spectrum in found.spectra if spectrum.group == "all"]
    shown = {**facts, "clips": str(len(features.items)), "frames": str(whole[0].frames)}
    report = Report("analysis", "Features", shown, _values(found))
    report.figures = [
        Figure(f"effective rank, {s.feature}", f"{s.effective_rank:.1f}", f"of {s.dims} dimensions") for s in whole
    ]
    report.tables.append(_spectra_table(found.spectra))
    for one in whole:
        own = [spectrum for spectrum in found.spectra if spectrum.feature == one.feature]
        lines = {spectrum.group: _curve(spectrum) for spectrum in own}
        report.charts.append(LineChart(f"{one.feature}: share of the variance", lines, "axes", "share", x_log=True))
        if len(own) > 1:
            bars = [Bar(s.group, s.effective_rank) for s in own]
            report.charts.append(BarChart(f"{one.feature}: effective rank", bars, f"of {one.dims} dimensions"))
    report.notes = list(_NOTES)
    if found.reductions:
        report.tables.append(_reductions_table(found))
        report.charts += _reduction_charts(found.reductions)
        report.notes.append(_REDUCED)
    report.failures = features.failures
    return report


def plot_analysis(path: str | os.PathLike[str], found: Analysis) -> None:
    """Draw the explained variance over axes and what reductions keep over d, and save it whole or not at all.

    Args:
        path: a .png, .pdf, .svg, .jpg or .webp file; parent folders are made.
        found: what to draw.

    Raises:
        UserError: the suffix is not one of these, the file cannot be written, or matplotlib is not installed.
    """
    path = check_picture(path)
    panels = 1 + 2 * bool(found.reductions)
    figure: Any = import_figure()(figsize=(1.2 + 4.6 * panels, 4.3), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_spectra(axes[0], found.spectra)
    if found.reductions:
        _draw_reductions(axes[1], found.reductions, "explained", f"{found.reduced}: explained variance, restored")
        _draw_reductions(axes[2], found.reductions, "relation", f"{found.reduced}: time-relation loss")
    save_figure(figure, path)


def _draw_spectra(axis: Any, spectra: Sequence[Spectrum]) -> None:
    names = list(dict.fromkeys(spectrum.feature for spectrum in spectra))
    if len(names) > 1:
        lines = [(s.feature, s) for s in spectra if s.group == "all"]
    else:
        lines = [(s.group, s) for s in spectra]
    for index, (label, spectrum) in enumerate(lines):
        name = f"{label}: rank {spectrum.effective_rank:.1f} of {spectrum.dims}"
        colour = _COLOURS[index % len(_COLOURS)]
        axis.plot(range(1, spectrum.dims + 1), spectrum.explained, label=name, color=colour, linewidth=1.5)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylim(0, 1.02)
    title = "explained variance" if len(names) > 1 else f"{names[0]}: explained variance"
    _finish(axis, title, "principal axes")


def _draw_reductions(axis: Any, reductions: Sequence[Reduction], figure: str, title: str) -> None:
    for index, method in enumerate(dict.fromkeys(row.method for row in reductions)):
        rows = [row for row in reductions if row.method == method]
        values = [getattr(row, figure) for row in rows]
        axis.plot(
            [row.dims for row in rows],
            values,
            marker="o",
            markersize=4,
            label=method,
            color=_COLOURS[index],
            linewidth=1.5,
        )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if figure == "relation":
        axis.set_ylim(bottom=0)
    _finish(axis, title, "dimensions")


def _finish(axis: Any, title: str, label: str) -> None:
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(True, which="major", color="#e5e7eb", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


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
        [f"{r.method}, {r.dims}", f"{r.explained:.3f}", f"{r.cosine:.4f}", f"{r.relation:.5f}"]
        for r in sorted(found.reductions, key=lambda row: (row.dims, row.method))
    ]
    note = f"Fitted to {found.fitted_clips} clips, measured on {found.measured_clips} others."
    heads = ["", "explained ↑", "cosine ↑", "relation ↓"]
    return Table(f"{found.reduced} in fewer dimensions", heads, cells, note)


def _reduction_charts(reductions: Sequence[Reduction]) -> list[BarChart]:
    charts = []
    for width in sorted({row.dims for row in reductions}):
        rows = [row for row in reductions if row.dims == width]
        if len(rows) > 2:
            bars = [Bar(row.method, row.relation) for row in rows]
            charts.append(BarChart(f"Time-relation loss at {width} dimensions", bars, "less is better"))
    return charts


def _curve(spectrum: Spectrum) -> list[tuple[float, float]]:
    """At most :data:`_POINTS` points of the curve, evenly over the logarithm."""
    places = sorted({round(spectrum.dims ** (i / (_POINTS - 1))) for i in range(_POINTS)})
    return [(float(place), spectrum.explained[place - 1]) for place in places]


def _values(found: Analysis) -> dict[str, Any]:
    values = dataclasses.asdict(found)
    for spectrum in values["spectra"]:
        spectrum["axes_for"] = {str(share): count for share, count in spectrum["axes_for"].items()}
    return values
