"""One self-contained page of a report: it opens offline, in light and dark, and loads nothing from any server."""

from __future__ import annotations

import base64
import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import losatok_ext
from losatok_ext.evaluation.reporting.charts import svg
from losatok_ext.evaluation.reporting.report import BarChart, LineChart, Report
from losatok_ext.text import printable

TEMPLATES = Path(__file__).parent / "templates"
_TICKS = (250, 1000, 4000)  # Hz, beside a spectrogram


def page(report: Report) -> str:
    """The whole HTML document, with players, pictures and charts inside it. All text of the report is escaped."""
    return _environment().get_template("page.html").render(report=report, version=losatok_ext.__version__)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"base64": _base64, "svg": _svg, "frequency_ticks": _frequency_ticks}
    return environment


def _finalize(value: Any) -> Any:
    """Every value that the template shows: text without control characters."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _svg(chart: BarChart | LineChart) -> Markup:
    return Markup(svg(chart))  # escapes its own text


def _frequency_ticks(sample_rate: int) -> list[tuple[str, str]]:
    """(percent of the picture's height, label) of the frequencies beside a mel spectrogram."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    return [
        (f"{100 * mel(hertz) / mel(sample_rate / 2):.1f}", f"{hertz // 1000}k" if hertz >= 1000 else str(hertz))
        for hertz in _TICKS
        if hertz < sample_rate / 2
    ]
