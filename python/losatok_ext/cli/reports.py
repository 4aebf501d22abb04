"""What all commands that leave a report share: their arguments, writing it, and showing it on a terminal."""

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
from losatok_ext.evaluation.reporting.report import Report, Table
from losatok_ext.evaluation.reporting.writing import write_report
from losatok_ext.recordings.find import Failure, Source
from losatok_ext.recordings.labelled import Item, find_items
from losatok_ext.text import printable

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
    typer.Option(
        "--output", "-o", help="Folder for the report: JSON, Markdown, a page and a picture.", show_default=False
    ),
]
OptionalReportOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder for the report: JSON, Markdown, a page and a picture. Left out: only printed.",
        show_default=False,
    ),
]
ByOption = Annotated[
    list[str] | None,
    typer.Option("--by", help="Key of the manifest to group by; the option may be repeated.", show_default="domain"),
]
_WIDE = 160  # columns, where the output is not a terminal


def feature_option(default: str, more: str = "") -> Any:
    """The option ``--feature``: ``default`` says which features are taken without it, ``more`` what else it accepts."""
    names = "latents, semantic, semantic_low, acoustic, acoustic_low, unified or unified_low"
    return typer.Option(help=f"{names}{more}; the option may be repeated.", show_default=default)


def items_of(names: Sequence[str], suffixes: Sequence[str] = READABLE_SUFFIXES) -> tuple[list[Item], list[Failure]]:
    """The items that ``names`` stand for, and a failure for each name that stands for none.

    Raises:
        UserError: there is no item, or a manifest cannot be read.
    """
    items, failures = find_items(names, suffixes)
    if not items:
        raise UserError("; ".join(failure.message for failure in failures) or "no DATA was given")
    return items, failures


@contextmanager
def item_progress(title: str, count: int) -> Iterator[Callable[[Item], None]]:
    """Yield what to call after each item. Shows a bar on a terminal for more than one item."""
    with progress_bar(title, count) as advance:
        yield lambda item: advance(Source(item.path, Path(item.name)))


def finish(report: Report, places: dict[str, Path] | None) -> None:
    """Write and show a report; name the inputs that were left out on stderr, and then end with exit code 2.

    Args:
        report: to show.
        places: of its files, from :func:`~losatok_ext.evaluation.reporting.writing.report_places`; None: not written.

    Raises:
        UserError: a file cannot be written.
        typer.Exit: an input was left out.
    """
    written = [] if places is None else write_report(report, places)
    show(report)
    if written:
        print(printable(", ".join(map(str, written))))
    for failure in report.failures:
        print(f"losatok: {printable(failure.message)}", file=sys.stderr)
    if report.failures:
        print(f"losatok: {len(report.failures)} left out", file=sys.stderr)
        raise typer.Exit(2)


def show(report: Report) -> None:
    """Print the facts and the tables of a report; tables are not cut where the output is not a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, _WIDE))
    facts = Text()
    for name, value in report.facts.items():
        facts.append(f"{' · ' if facts else ''}{printable(name)} ").append(printable(value), "bold")
    console.print(facts)
    for table in (table for table in report.tables if not table.folded):
        console.print(_rich(table))


def _rich(table: Table) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(value: str) -> Text:  # without rich's markup, which a file name could contain
        return Text(printable(value))

    rich = RichTable(title=text(table.title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, name in enumerate(table.columns):
        rich.add_column(text(name), justify="right" if index else "left", no_wrap=True)
    for row in table.rows:
        rich.add_row(*map(text, row))
    if table.note:
        rich.caption, rich.caption_justify = text(table.note), "left"
    return rich
