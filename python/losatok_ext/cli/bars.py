"""The one look of the progress bars. Needs rich (``losatok-ext[cli]``)."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from typing_extensions import Self


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


class WithBar:
    """A context manager that shows the bar ``self._bar`` from the beginning of the ``with`` block to its end."""

    _bar: Progress

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
