"""A report's charts as one picture, for documents: the same that the page shows, drawn with matplotlib."""

from __future__ import annotations

import math
import os
from typing import Any

from losatok_ext.audio.plots import check_picture, import_figure, save_figure
from losatok_ext.evaluation.reporting.axes import log_ticks
from losatok_ext.evaluation.reporting.numbers import shorten, three_digits
from losatok_ext.evaluation.reporting.report import BarChart, LineChart, Report
from losatok_ext.text import printable

_COLOURS = ("#2f6f8f", "#c2410c", "#5b8c3e", "#8a5aa8", "#b58900", "#6b7280")  # of lines; the page has the same
_SOFT, _RULE = "#626a73", "#e5e7eb"
_COLUMNS = 3


def draw_charts(path: str | os.PathLike[str], report: Report) -> None:
    """Draw all charts of ``report`` side by side, and save the picture whole or not at all.

    Args:
        path: a .png, .pdf, .svg, .jpg or .webp file; parent folders are made.
        report: with at least one chart.

    Raises:
        UserError: the suffix is not one of these, the file cannot be written, or matplotlib is not installed.
        ValueError: the report has no chart.
    """
    path = check_picture(path)
    if not report.charts:
        raise ValueError(f"report {report.name!r} should have a chart, got none")
    columns = min(len(report.charts), _COLUMNS)
    rows = math.ceil(len(report.charts) / columns)
    figure: Any = import_figure()(figsize=(0.8 + 4.8 * columns, 0.4 + 3.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, chart in zip(axes, report.charts, strict=False):
        _bars(axis, chart) if isinstance(chart, BarChart) else _lines(axis, chart)
        axis.set_title(_plain(chart.title, 60), fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in list(axes)[len(report.charts) :]:
        axis.set_visible(False)
    figure.suptitle(_plain(report.title, 80), fontsize=11)
    save_figure(figure, path)


def _plain(text: str, characters: int = 22) -> str:
    """``text`` cut to fit, with ``$`` escaped, since matplotlib reads what is between two of them as a formula."""
    return shorten(printable(text), characters).replace("$", r"\$")


def _bars(axis: Any, chart: BarChart) -> None:
    places = range(len(chart.bars))
    axis.barh(places, [bar.value for bar in chart.bars], height=0.6, color=_COLOURS[0])
    for place, bar in zip(places, chart.bars, strict=True):
        if bar.spread is not None:
            axis.errorbar(bar.value, place, xerr=bar.spread, color="#1c1f23", linewidth=1, capsize=2)
        reach = max(bar.value, 0.0) + (bar.spread or 0.0)
        if chart.limit is not None:
            reach = min(reach, chart.limit)
        axis.annotate(
            three_digits(bar.value), (reach, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    if chart.reference is not None:
        value, meaning = chart.reference
        axis.axvline(value, color=_COLOURS[1], linestyle="--", linewidth=1.2, label=_plain(meaning))
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    if chart.limit is not None:
        axis.set_xlim(right=chart.limit)
    axis.set_yticks(places, [_plain(bar.label) for bar in chart.bars])
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel(_plain(chart.unit, 60), fontsize=8, color=_SOFT)
    axis.grid(True, axis="x", color=_RULE, linewidth=0.7)


def _lines(axis: Any, chart: LineChart) -> None:
    for index, (name, line) in enumerate(chart.lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        marker = "o" if not line.joined or len(line.points) <= 12 else ""
        style = "-" if line.joined else ""
        x, y = [a for a, _ in line.points], [b for _, b in line.points]
        axis.plot(x, y, color=colour, marker=marker, markersize=4, linestyle=style, linewidth=1.4, label=_plain(name))
        turned = {} if line.joined else {"rotation": 30, "rotation_mode": "anchor"}
        for label, point in zip(line.labels, line.points, strict=False):
            axis.annotate(
                _plain(label), point, (4, 5), textcoords="offset points", fontsize=7.5, color=colour, **turned
            )
    points = [point for line in chart.lines.values() for point in line.points]
    named = any(line.labels for line in chart.lines.values())
    if named:  # room for the names of the outermost points
        axis.margins(x=0.14, y=0.14)
    if chart.y_log:
        axis.set_yscale("log")
    else:
        low, high = min(0.0, *(b for _, b in points)), max(0.0, *(b for _, b in points))
        room = (0.2 if named else 0.08) * max(high - low, 1e-9)
        axis.set_ylim(low - room if low < 0 else 0.0, high + room)
    if chart.x_log:
        ticks = log_ticks(min(a for a, _ in points), max(a for a, _ in points))
        axis.set_xscale("log")
        axis.set_xticks(ticks, [three_digits(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel(_plain(chart.x_label, 60), fontsize=8, color=_SOFT)
    axis.set_ylabel(_plain(chart.y_label, 40), fontsize=8, color=_SOFT)
    axis.grid(True, which="major", color=_RULE, linewidth=0.7)
    axis.legend(fontsize=8, frameon=False)
