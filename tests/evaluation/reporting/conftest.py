"""A report with something of everything, its text full of what must not become markup."""

from pathlib import Path

import pytest

from losatok_ext.evaluation.reporting.report import (
    Bar,
    BarChart,
    Example,
    Headline,
    Line,
    LineChart,
    Report,
    Table,
)
from losatok_ext.evaluation.reporting.sounds import make_sound
from losatok_ext.recordings.find import Failure
from small_models import tone


@pytest.fixture(scope="session")
def bars():
    return BarChart(
        "A <chart>", [Bar("one & two", 1.5, 0.5), Bar("less", -0.25), Bar("none", 0.0)], "unit", (1.0, "here")
    )


@pytest.fixture(scope="session")
def lines():
    up, flat = [(1, 0.0), (10, 0.5), (100, 1.0)], [(1, 0.5), (100, 0.5)]
    return LineChart("Lines", {"up": Line(up), "flat": Line(flat)}, "x", "y axis", x_log=True)


@pytest.fixture(scope="session")
def report(bars, lines):
    sounds = [make_sound(name, tone(8_000, seed), 16_000) for seed, name in enumerate(("one", "two"))]
    table = Table("A | table", ["", "a"], [["x|y", "1 ± 2"], ["<b>", "–"]], "a note")
    return Report(
        "thing",
        "A <title>",
        {"model": "<&>"},
        {"value": 1.0},
        [Headline("figure", "1", "note")],
        [table, Table("Folded", ["", "b"], [["row", "2"]], folded=True)],
        [bars, lines],
        [Example("<clip>", "facts", sounds)],
        ["a note & more"],
        [Failure(Path("bad.wav"), "bad.wav is <empty>")],
    )


@pytest.fixture(scope="session")
def hostile():
    """A report of a file whose name holds HTML, Markdown, an escape sequence and a byte that is not UTF-8."""
    name = "<img src=x onerror=alert(1)>|[a](javascript:b)`c`\x1b[31m\n# head\udcff.wav"
    return Report(
        "thing",
        name,
        {name: name},
        {"name": name},
        [Headline(name, name, name)],
        [Table(name, ["", name], [[name, name]], name)],
        [
            BarChart(name, [Bar(name, 1.0)], name, (1.0, name)),
            LineChart(name, {name: Line([(1, 2), (2, 3)], [name, name])}, name, name),
        ],
        [Example(name, name, [make_sound(name, tone(4_000), 16_000)])],
        [name],
        [Failure(Path(name), f"{name} is empty")],
    )
