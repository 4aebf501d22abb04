"""The one look of the progress bars. Needs rich (``losatok-ext[cli]``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


def make_bar(
    console: Console, *more: ProgressColumn, percent: bool = False, keep: bool = False, show: bool = True
) -> Progress:
    """A progress bar that is shown on terminals only: title, bar, what is done, time left.

    Args:
        console: where to show it.
        more: columns that follow.
        percent: show what is done in percent instead of as a number of steps.
        keep: leave the finished bar on the terminal.
        show: False hides the bar.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn() if percent else MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        *more,
        console=console,
        transient=not keep,
        disable=not (show and console.is_terminal),
    )
