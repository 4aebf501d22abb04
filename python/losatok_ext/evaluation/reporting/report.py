"""The content of a report: headlines, tables, charts and examples. How it is written to files is in ``writing``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from losatok_ext.recordings.find import Failure


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: shown above it; ``""`` for none.
        columns: column heads. The first column holds names and is aligned left, the others hold figures and are
            aligned right.
        rows: cells, as many as there are columns.
        note: shown below it.
        folded: the page shows it only after a click; the terminal and Markdown leave it out.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its ``label``, ``value``, and the uncertainty on either side of it (None: not known)."""

    label: str
    value: float
    spread: float | None = None


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars that start at 0.

    Attributes:
        title: shown above it.
        bars: from top to bottom.
        unit: of the values; shown below the axis.
        reference: a value that is marked by a line, and what it means.
        limit: where the axis ends; error bars are cut there. None: where the longest bar ends.
    """

    title: str
    bars: Sequence[Bar]
    unit: str = ""
    reference: tuple[float, str] | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        points: (x, y), by rising x if they are joined.
        labels: one for each point, or empty.
        joined: whether the points are connected.
    """

    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    joined: bool = True


@dataclass(frozen=True)
class LineChart:
    """Lines over one axis.

    Attributes:
        title: shown above it.
        lines: name -> line, at least one with a point.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        x_log: the horizontal axis is logarithmic; all x are above 0.
        y_log: the vertical axis is logarithmic; all y are above 0. Otherwise it includes 0.
    """

    title: str
    lines: Mapping[str, Line]
    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False


@dataclass(frozen=True)
class Sound:
    """A player.

    Attributes:
        label: shown above it.
        audio: bytes of a FLAC file.
        picture: bytes of a PNG file, the mel spectrogram.
        seconds: duration, the width of the picture.
        sample_rate: Hz; the height of the picture is half of it.
    """

    label: str
    audio: bytes
    picture: bytes
    seconds: float
    sample_rate: int


@dataclass(frozen=True)
class Example:
    """A clip to listen to: ``title``, one line of ``facts``, and its ``sounds``."""

    title: str
    facts: str
    sounds: Sequence[Sound]


@dataclass(frozen=True)
class Headline:
    """One of the few most important figures: its ``label``, the ``value`` as text, and a ``note`` below it."""

    label: str
    value: str
    note: str = ""


@dataclass
class Report:
    """Everything that is written about one evaluation.

    Attributes:
        name: of its files, such as ``reconstruction``.
        title: of the page.
        facts: what was measured and how, name -> text.
        values: the complete results as plain values, for JSON.
        headlines: the few most important figures.
        tables, charts, examples: in the order of the page.
        notes: what the figures mean and how they were computed.
        failures: inputs that were left out, and why.
    """

    name: str
    title: str
    facts: dict[str, str]
    values: dict[str, Any]
    headlines: list[Headline] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[BarChart | LineChart] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: ``values``, the report's name, its facts, and the inputs that were left out."""
        failures = [{"path": str(failure.path), "message": failure.message} for failure in self.failures]
        return {"report": self.name, "facts": self.facts, **self.values, "failures": failures}
