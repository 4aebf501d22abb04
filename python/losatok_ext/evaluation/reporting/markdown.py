"""Markdown: the one table writer, and a report as a document. Text is escaped, so a file name cannot add markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from losatok_ext.evaluation.reporting.report import Report, Table
from losatok_ext.text import printable

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPECIAL = re.compile(r"[&<>\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""

    __slots__ = ()


def escape(text: str) -> Markdown:
    """``text`` as Markdown that shows exactly it, in one line: no HTML, link or emphasis can come from it."""
    if isinstance(text, Markdown):
        return text
    return Markdown(_SPECIAL.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), printable(text)))


def bold(text: str) -> Markdown:
    """``text``, escaped, in bold."""
    return Markdown(f"**{escape(text)}**")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Markdown:
    """A table, each line ended by a line break.

    Args:
        columns: column heads; the first column is aligned left, the others right.
        rows: cells, as many as there are columns. :class:`Markdown` is taken as it is, other text is escaped.

    Raises:
        ValueError: a row has another number of cells.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row should have {len(columns)} cells, got {len(row)}: {list(row)}")
    lines = ["| " + " | ".join(map(escape, row)) + " |" for row in (columns, *rows)]
    return Markdown("\n".join([lines[0], "|---|" + "---:|" * (len(columns) - 1), *lines[1:], ""]))


def titled_table(content: Table) -> Markdown:
    """A report's table, its title in bold above it and its note below it."""
    above = f"{bold(content.title)}\n\n" if content.title else ""
    below = f"\n{escape(content.note)}\n" if content.note else ""
    return Markdown(above + table(content.columns, content.rows) + below)


def document(report: Report) -> Markdown:
    """The report: its facts, the tables that are not folded, its notes, and the inputs that were left out."""
    facts = "; ".join(f"{escape(name)}: {escape(text)}" for name, text in report.facts.items())
    parts = [f"# {escape(report.title)}\n", f"{facts}\n"]
    parts += [titled_table(content) for content in report.tables if not content.folded]
    parts += _list("", report.notes)
    parts += _list(f"## Left out: {len(report.failures)}\n\n", [failure.message for failure in report.failures])
    return Markdown("\n".join(parts))


def _list(head: str, lines: Sequence[str]) -> list[str]:
    return [head + "".join(f"- {escape(line)}\n" for line in lines)] if lines else []
