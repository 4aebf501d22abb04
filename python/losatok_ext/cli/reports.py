"""What the commands that leave reports share: their arguments, and showing a report on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from losatok_ext.audio.files import READABLE_SUFFIXES
from losatok_ext.cli.common import progress_bar
from losatok_ext.errors import UserError
from losatok_ext.evaluation.reporting.report import Report, Table, write_report
from losatok_ext.recordings.find import Failure, Source
from losatok_ext.recordings.labelled import Item, find_items

DataArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA",
        help="Manifests (.jsonl), audio files, folders (searched through) or patterns.",
        show_default=False,
    ),
]
ReportOption = Annotated[
    Path,
    typer.Option("--output", "-o", help="Folder for the report: JSON, Markdown and a page.", show_default=False),
]
ByOption = Annotated[
    list[str] | None,
    typer.Option("--by", help="Key of the manifest to group by; more than once, too.", show_default="domain"),
]

_WIDE = 160  # columns


def items_of(names: Sequence[str], suffixes: Sequence[str] = READABLE_SUFFIXES) -> tuple[list[Item], list[Failure]]:
    """Items of ``names``, and names that lead nowhere.

    Raises:
        UserError: there is no item, or a manifest is broken.
    """
    items, failures = find_items(names, suffixes)
    if not items:
        raise UserError("; ".join(failure.message for failure in failures) or "no DATA was given")
    return items, failures


@contextmanager
def item_progress(title: str, count: int) -> Iterator[Callable[[Item], None]]:
    """As :func:`~losatok_ext.cli.common.progress_bar`, called with items."""
    with progress_bar(title, count) as advance:
        yield lambda item: advance(Source(item.path, Path(item.name)))


def finish(report: Report, places: dict[str, Path]) -> None:
    """Write and show a report; what was left out goes to stderr, and ends the command with exit code 2.

    Raises:
        UserError: a file cannot be written.
    """
    write_report(report, places)
    show(report)
    print(", ".join(map(str, places.values())))
    for failure in report.failures:
        print(f"losatok: {failure.message}", file=sys.stderr)
    if report.failures:
        print(f"losatok: {len(report.failures)} left out", file=sys.stderr)
        raise typer.Exit(2)


def show(report: Report) -> None:
    """Print the facts and tables of a report, as wide as they are where there is no terminal to fit into."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, _WIDE))
    console.print(" · ".join(f"{escape(name)} [bold]{escape(text)}[/]" for name, text in report.facts.items()))
    for table in (table for table in report.tables if not table.folded):
        console.print(_rich(table))


def _rich(table: Table) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    rich = RichTable(title=escape(table.title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, name in enumerate(table.columns):
        rich.add_column(escape(name), justify="right" if index else "left", no_wrap=True)
    for row in table.rows:
        rich.add_row(*map(escape, row))
    if table.note:
        rich.caption = escape(table.note)
        rich.caption_justify = "left"
    return rich
