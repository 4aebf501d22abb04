"""A progress bar for sampling. Needs rich (``losatok-ext[cli]``)."""

from __future__ import annotations

from losatok_ext.cli.bars import WithBar, make_bar
from losatok_ext.errors import UserError
from losatok_ext.generation.sampling import SamplingStep

try:
    from rich.console import Console
    from rich.progress import TaskID
except ImportError as error:
    raise UserError(
        f"the progress bar needs rich ({error}); pip install 'losatok-ext[cli]', or sample without it"
    ) from None


class SamplingProgress(WithBar):
    """Shows the steps of a sampler on a terminal; elsewhere it shows nothing.

    Use as a context manager, and pass :meth:`on_step` to the sampler.

    Args:
        title: what is sampled.
        console: where to print; None: standard error.
    """

    def __init__(self, title: str = "sampling", console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(stderr=True)
        self._bar = make_bar(self.console)
        self._task: TaskID | None = None

    def on_step(self, step: SamplingStep) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._bar.add_task(self.title, total=step.steps)
        self._bar.update(self._task, completed=step.step)
