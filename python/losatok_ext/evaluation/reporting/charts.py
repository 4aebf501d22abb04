"""Charts as SVG that a page carries inside itself: they take its colours, so they suit light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from losatok_ext.evaluation.reporting.report import BarChart, LineChart

_WIDTH = 640
_LINES = 6  # colours that the page has for lines


def svg(chart: BarChart | LineChart) -> str:
    """An ``<svg>`` element. Its colours are the page's variables ``--ink``, ``--soft``, ``--rule``, ``--line-N``."""
    return _bars(chart) if isinstance(chart, BarChart) else _lines(chart)


def _bars(chart: BarChart) -> str:
    left, right, row, top = 150, 78, 26, 24 if chart.reference else 8
    spread = [bar.value + (bar.spread or 0.0) for bar in chart.bars]
    highest = max([*spread, chart.reference[0] if chart.reference else 0.0, 1e-9])
    lowest = min([0.0, *(bar.value - (bar.spread or 0.0) for bar in chart.bars)])
    ticks = _ticks(lowest, highest)
    low, high = min(ticks[0], lowest), max(ticks[-1], highest)
    if chart.limit is not None:
        high = chart.limit
        ticks = [tick for tick in ticks if tick <= high]
    height = top + row * len(chart.bars) + 40
    span = _WIDTH - left - right

    def x(value: float) -> float:
        return left + span * (min(value, high) - low) / (high - low)

    bottom = top + row * len(chart.bars)
    parts = [_open(height, chart.title)]
    for tick in ticks:
        parts.append(_line(x(tick), top, x(tick), bottom, "rule"))
        parts.append(_text(x(tick), bottom + 14, _number(tick), "middle", "soft"))
    if chart.unit:
        parts.append(_text(left + span / 2, bottom + 32, chart.unit, "middle", "soft"))
    for index, bar in enumerate(chart.bars):
        y = top + row * index
        start, end = sorted((x(0.0), x(bar.value)))
        parts.append(_text(left - 8, y + 17, bar.label, "end", "ink"))
        parts.append(
            f'<rect class="bar" x="{start:.1f}" y="{y + 5}" width="{max(end - start, 0.5):.1f}" height="{row - 10}" '
            f'rx="2"><title>{escape(bar.label)}: {_number(bar.value)}</title></rect>'
        )
        reach = x(max(bar.value, 0.0))
        if bar.spread is not None:
            middle, one, two = y + row / 2, x(bar.value - bar.spread), x(bar.value + bar.spread)
            parts.append(_line(one, middle, two, middle, "ink"))
            parts += [_line(end, middle - 3, end, middle + 3, "ink") for end in (one, two)]
            reach = max(reach, two)
        parts.append(_text(reach + 6, y + 17, _digits(bar.value), "start", "ink"))
    if chart.reference is not None:
        value, meaning = chart.reference
        parts.append(f'<line class="mark" x1="{x(value):.1f}" y1="{top}" x2="{x(value):.1f}" y2="{bottom}"/>')
        parts.append(_text(x(value), top - 10, meaning, "middle", "mark-text"))
    return "".join([*parts, "</svg>"])


def _lines(chart: LineChart) -> str:
    left, right, top, bottom, height = 56, 20, 14 + 18 * math.ceil(len(chart.lines) / 3), 252, 296
    points = [point for line in chart.lines.values() for point in line]
    scale = math.log10 if chart.x_log else float
    xs = [scale(point[0]) for point in points]
    ys = [point[1] for point in points]
    x_ticks = _log_ticks(points) if chart.x_log else _ticks(min(xs), max(xs))
    y_ticks = _ticks(min(0.0, *ys), max(ys))
    x_low, x_high = min([*xs, *map(scale, x_ticks)]), max([*xs, *map(scale, x_ticks)])
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def x(value: float) -> float:
        return left + (_WIDTH - left - right) * (scale(value) - x_low) / max(x_high - x_low, 1e-12)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - y_low) / max(y_high - y_low, 1e-12)

    parts = [_open(height, chart.title)]
    for tick in y_ticks:
        parts.append(_line(left, y(tick), _WIDTH - right, y(tick), "rule"))
        parts.append(_text(left - 8, y(tick) + 4, _number(tick), "end", "soft"))
    for tick in x_ticks:
        parts.append(_line(x(tick), bottom, x(tick), bottom + 4, "soft-line"))
        parts.append(_text(x(tick), bottom + 17, _number(tick), "middle", "soft"))
    parts.append(_text(left + (_WIDTH - left - right) / 2, height - 8, chart.x_label, "middle", "soft"))
    for index, (name, line) in enumerate(chart.lines.items()):
        colour = index % _LINES
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        parts.append(f'<polyline class="stroke-{colour}" points="{path}"/>')
        if len(line) <= 12:
            parts += [
                f'<circle class="fill-{colour}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"><title>{escape(name)}: '
                f"{_number(a)}, {_number(b)}</title></circle>"
                for a, b in line
            ]
        place, level = left + 190 * (index % 3), 12 + 18 * (index // 3)
        parts.append(f'<rect class="fill-{colour}" x="{place}" y="{level - 7}" width="14" height="4" rx="2"/>')
        parts.append(_text(place + 20, level, name, "start", "ink"))
    return "".join([*parts, "</svg>"])


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at or below ``low`` to at or above ``high``."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(points: Sequence[tuple[float, float]]) -> list[float]:
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _digits(value: float) -> str:
    """Three digits, the last of them even if it is 0, so that bars line up."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _open(height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
