"""Charts as SVG inside the page: they take the page's colours, so they suit light and dark."""

from __future__ import annotations

import math
from html import escape

from losatok_ext.evaluation.reporting.axes import Axis, linear_ticks
from losatok_ext.evaluation.reporting.numbers import shorten, three_digits
from losatok_ext.evaluation.reporting.report import BarChart, LineChart
from losatok_ext.text import printable

_WIDTH = 640
_COLOURS = 6  # that the page has for lines


def svg(chart: BarChart | LineChart) -> str:
    """An ``<svg>`` element. Its colours are the page's variables ``--ink``, ``--soft``, ``--rule``, ``--line-N``."""
    return _bars(chart) if isinstance(chart, BarChart) else _lines(chart)


def _bars(chart: BarChart) -> str:
    left, right, row, top = 160, 78, 26, 24 if chart.reference else 8
    ends = [bar.value + sign * (bar.spread or 0.0) for bar in chart.bars for sign in (-1, 1)]
    values = [0.0, 1e-9, *ends, *([chart.reference[0]] if chart.reference else [])]
    ticks = linear_ticks(min(values), max(values))
    low, high = min(*ticks, *values), max(*ticks, *values)
    if chart.limit is not None:
        high = chart.limit
        ticks = [tick for tick in ticks if tick <= high]
    span, bottom = _WIDTH - left - right, top + row * len(chart.bars)

    def x(value: float) -> float:
        return left + span * (min(value, high) - low) / (high - low)

    parts = [_open(bottom + 40, chart.title)]
    for tick in ticks:
        parts.append(_line(x(tick), top, x(tick), bottom, "rule"))
        parts.append(_text(x(tick), bottom + 14, three_digits(tick), "middle", "soft"))
    if chart.unit:
        parts.append(_text(left + span / 2, bottom + 32, chart.unit, "middle", "soft"))
    for index, bar in enumerate(chart.bars):
        y = top + row * index
        start, end = sorted((x(0.0), x(bar.value)))
        parts.append(_text(left - 8, y + 17, shorten(bar.label), "end", "ink"))
        parts.append(
            f'<rect class="bar" x="{start:.1f}" y="{y + 5}" width="{max(end - start, 0.5):.1f}" height="{row - 10}" '
            f'rx="2">{_hint(f"{bar.label}: {three_digits(bar.value)}")}</rect>'
        )
        reach = x(max(bar.value, 0.0))
        if bar.spread is not None:
            middle, one, two = y + row / 2, x(bar.value - bar.spread), x(bar.value + bar.spread)
            parts.append(_line(one, middle, two, middle, "ink"))
            parts += [_line(end, middle - 3, end, middle + 3, "ink") for end in (one, two)]
            reach = max(reach, two)
        parts.append(_text(reach + 6, y + 17, _aligned(bar.value), "start", "ink"))
    if chart.reference is not None:
        value, meaning = chart.reference
        parts.append(_line(x(value), top, x(value), bottom, "mark"))
        parts.append(_text(x(value), top - 10, meaning, "middle", "mark-text"))
    return "".join([*parts, "</svg>"])


def _lines(chart: LineChart) -> str:
    left, top, height = 58, 32 + 18 * math.ceil(len(chart.lines) / 3), 330
    named = any(line.labels for line in chart.lines.values())
    right, head = (70, 36) if named else (20, 0)  # room for the labels of the last and of the highest point
    bottom = height - 46
    points = [point for line in chart.lines.values() for point in line.points]
    x = Axis([a for a, _ in points], left, _WIDTH - right, chart.x_log)
    y = Axis([b for _, b in points] + ([] if chart.y_log else [0.0]), bottom, top + head, chart.y_log)
    parts = [_open(height, chart.title), _text(0, top - 14, chart.y_label, "start", "soft")]
    for tick in y.ticks:
        parts.append(_line(left, y(tick), _WIDTH - right, y(tick), "rule"))
        parts.append(_text(left - 8, y(tick) + 4, three_digits(tick), "end", "soft"))
    for tick in x.ticks:
        parts.append(_line(x(tick), bottom, x(tick), bottom + 4, "soft-line"))
        parts.append(_text(x(tick), bottom + 17, three_digits(tick), "middle", "soft"))
    parts.append(_text(left + (_WIDTH - left - right) / 2, height - 8, chart.x_label, "middle", "soft"))
    for index, (name, line) in enumerate(chart.lines.items()):
        colour = index % _COLOURS
        if line.joined:
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
            parts.append(f'<polyline class="stroke-{colour}" points="{path}"/>')
        if len(line.points) <= 12 or not line.joined:
            parts += [
                f'<circle class="fill-{colour}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5">'
                f"{_hint(f'{name}: {three_digits(a)}, {three_digits(b)}')}</circle>"
                for a, b in line.points
            ]
        for label, (a, b) in zip(line.labels, line.points, strict=False):
            turn = 0 if line.joined else -30  # labels of single points are turned, so that close ones can be read
            parts.append(_text(x(a) + 6, y(b) - 8, shorten(label), "start", "ink", turn))
        place, level = left + 190 * (index % 3), 12 + 18 * (index // 3)
        parts.append(f'<rect class="fill-{colour}" x="{place}" y="{level - 7}" width="14" height="4" rx="2"/>')
        parts.append(_text(place + 20, level, shorten(name), "start", "ink"))
    return "".join([*parts, "</svg>"])


def _aligned(value: float) -> str:
    """Three digits, the last of them even if it is 0, so that the figures of bars line up."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _safe(text: str) -> str:
    return escape(printable(text))


def _open(height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{_safe(title)}">'


def _hint(text: str) -> str:
    return f"<title>{_safe(text)}</title>"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str, turn: int = 0) -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{_safe(text)}</text>'
