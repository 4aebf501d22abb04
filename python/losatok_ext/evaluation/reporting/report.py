"""What an evaluation leaves for people: tables, charts and examples, and the files they are written to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from losatok_ext.errors import UserError
from losatok_ext.files import atomic_path
from losatok_ext.recordings.find import Failure


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: over it.
        columns: heads; the first column holds names and stands left, the others figures, right.
        rows: cells, as many as columns.
        note: under it.
        folded: whether the page shows it only when asked to, and terminals and Markdown not at all.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False

    def markdown(self) -> str:
        """The table in Markdown, its title in bold."""
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.columns) + " |"]
        lines.append("|" + "|".join(["---", *["---:"] * (len(self.columns) - 1)]) + "|")
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else []), ""])


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its ``label``, ``value``, and what it may be off by either way (None: not known)."""

    label: str
    value: float
    spread: float | None = None


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars from 0.

    Attributes:
        title: over it.
        bars: from top to bottom.
        unit: of the values, after the scale.
        reference: a value that is marked by a line, and what it means.
        limit: where the axis ends, and spreads with it; None: where the bars want it to.
    """

    title: str
    bars: Sequence[Bar]
    unit: str = ""
    reference: tuple[float, str] | None = None
    limit: float | None = None


@dataclass(frozen=True)
class LineChart:
    """Lines over one axis.

    Attributes:
        title: over it.
        lines: name -> points (x, y), by rising x.
        x_label: under it.
        y_label: over the vertical axis.
        x_log: whether the horizontal axis is one of logarithms.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    x_log: bool = False


@dataclass(frozen=True)
class Sound:
    """A player: its ``label``, the ``audio`` file's bytes (FLAC), a ``picture`` (PNG) of its mel spectrogram, and the
    ``seconds`` and ``sample_rate`` (Hz) that are the picture's axes."""

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
class Figure:
    """A figure that stands out: its ``label``, the ``value`` as text, and a ``note`` under it."""

    label: str
    value: str
    note: str = ""


@dataclass
class Report:
    """Everything that is written of one evaluation.

    Attributes:
        name: of its files, such as ``reconstruction``.
        title: of the page.
        facts: what was measured and how, name -> text.
        values: the same in full, for JSON.
        figures: the few that matter most.
        tables, charts, examples: in the order of the page.
        notes: what the figures mean and where they come from.
        failures: inputs that were left out, and why.
    """

    name: str
    title: str
    facts: dict[str, str]
    values: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[BarChart | LineChart] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: ``values``, with the report's name, its facts and what was left out."""
        failures = [{"path": str(failure.path), "message": failure.message} for failure in self.failures]
        return {"report": self.name, "facts": self.facts, **self.values, "failures": failures}

    def markdown(self) -> str:
        """Tables and notes, for documents."""
        facts = "; ".join(f"{name}: {text}" for name, text in self.facts.items())
        parts = [f"# {self.title}", "", facts, "", *(table.markdown() for table in self.tables if not table.folded)]
        return "\n".join([*parts, *(f"- {note}" for note in self.notes), ""])


def report_places(folder: Path, name: str, overwrite: bool) -> dict[str, Path]:
    """Where the files of a report go, by suffix.

    Raises:
        UserError: one is there already, unless ``overwrite``.
    """
    places = {suffix: folder / f"{name}.{suffix}" for suffix in ("json", "md", "html")}
    existing = next((path for path in places.values() if path.exists()), None)
    if existing is not None and not overwrite:
        raise UserError(f"{existing} exists already; pass --overwrite or another folder")
    return places


def write_report(report: Report, places: dict[str, Path]) -> None:
    """Write JSON, Markdown and one self-contained page, each whole or not at all; other suffixes are passed over.

    Bytes of a file's name that are no text are spelled out (``\\udcff``).

    Raises:
        UserError: a file cannot be written.
    """
    from losatok_ext.evaluation.reporting.page import page

    texts = {
        "json": json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n",
        "md": report.markdown(),
        "html": page(report),
    }
    for suffix, text in texts.items():
        place = places[suffix]
        try:
            with atomic_path(place) as path:
                path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no text
        except OSError as error:
            raise UserError(f"{place} cannot be written: {error.strerror or error}") from error


def shown(value: float | None, digits: int = 3) -> str:
    """``value`` for a table: ``digits`` decimals, and a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_spread(mean: float | None, spread: float | None, digits: int = 3) -> str:
    """``mean ± spread`` for a table."""
    return shown(mean, digits) + ("" if mean is None or spread is None else f" ± {spread:.{digits}f}")


def mean_and_spread(values: Iterable[float | None]) -> tuple[float | None, float | None, int]:
    """(mean, sample standard deviation, count) of the values that there are; None where there are too few."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None, 0
    mean = sum(known) / len(known)
    if len(known) < 2:
        return mean, None, 1
    return mean, (sum((value - mean) ** 2 for value in known) / (len(known) - 1)) ** 0.5, len(known)
