"""A progress bar for training: losses, time left, seconds of audio per second. Needs rich (``losatok-ext[cli]``)."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from losatok_ext.cli.bars import WithBar, make_bar
from losatok_ext.errors import TrainingError
from losatok_ext.text import printable
from losatok_ext.training.data.balance import DomainShare
from losatok_ext.training.engine.prepared_run import RunStart
from losatok_ext.training.engine.reports import StepReport

try:
    from rich.console import Console
    from rich.progress import TaskID, TextColumn
except ImportError as error:
    raise TrainingError(
        f"the progress bar needs rich ({error}); pip install 'losatok-ext[cli]', or train without it"
    ) from None

SHORT = {
    "sembo_reconstruction": "reconstruction",
    "sembo_relation": "relation",
    "semantic_high": "L_H",
    "semantic_low": "L_L",
}
"""Losses whose names are shortened on the bar (as the paper has them)."""

_SMOOTHING = 0.9
_LINE_SECONDS = 15.0


class _Terminal:
    """Standard error, until its terminal is closed. What is written after that is dropped, so that a run which SIGHUP
    asks to stop can finish its step and write its checkpoint."""

    def __init__(self) -> None:
        self._file = sys.stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with _ignoring_a_closed_terminal():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with _ignoring_a_closed_terminal():
            self._file.flush()


@contextmanager
def _ignoring_a_closed_terminal() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


class TrainingProgress(WithBar):
    """Shows a run: a line about what begins, then a bar; where there is no terminal, a line every 15 seconds.

    Use as a context manager, and pass :meth:`on_start` and :meth:`on_step` to ``train_sembo`` or ``train_tokenizer``.
    Losses are running means.

    Args:
        console: where to print; None: standard error.
        note: a further line about what begins.
    """

    def __init__(self, console: Console | None = None, note: str | None = None) -> None:
        self._note = note
        self.console = console or Console(file=cast(IO[str], _Terminal()))
        self._bar = make_bar(self.console, TextColumn("{task.fields[numbers]}", style="dim"), keep=True)
        self._task: TaskID | None = None
        self._means: dict[str, float] = {}
        self._printed = time.monotonic()
        self._skipped = 0

    def on_start(self, start: RunStart) -> None:
        """Say what is trained on what, and which files were left out."""
        corpus = start.corpus
        for reason in corpus.skipped[:5]:
            self._say(f"skipped {printable(reason)}", style="yellow")
        if len(corpus.skipped) > 5:
            self._say(f"skipped {len(corpus.skipped) - 5} more files", style="yellow")
        length = f"{corpus.seconds / 60:.1f} minutes" if corpus.seconds < 7200 else f"{corpus.seconds / 3600:.1f} hours"
        clips = "1 clip" if len(corpus.clips) == 1 else f"{len(corpus.clips)} clips"
        weights = f"{_count(start.trained_parameters)} of {_count(start.parameters)} weights"
        epochs = f"{start.steps} steps ({start.epochs:.1f} epochs)"
        self._say(f"{start.stage}: {clips}, {length}; {weights} train on {start.device} for {epochs}")
        for note in (self._note, *start.notes):
            if note is not None:
                self._say(note)
        if len(start.domains) > 1:
            self._say(f"domains: {'; '.join(_domain(domain, start.crops) for domain in start.domains)}")
        if start.start:
            self._say(f"going on after step {start.start}")
        self._task = self._bar.add_task(start.stage, total=start.steps, completed=start.start, numbers="")

    def on_step(self, report: StepReport) -> None:
        """Move the bar."""
        if report.finite:
            for name, value in report.losses.items():
                mean = self._means.get(name, value)
                self._means[name] = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        losses = "  ".join(f"{SHORT.get(name, name)} {value:.3g}" for name, value in self._means.items())
        skipped = f"  {report.skipped} skipped" if report.skipped else ""
        numbers = f"{losses}  {report.audio_rate:.0f} s/s{skipped}"
        if self._task is not None:
            self._bar.update(self._task, completed=report.step, numbers=numbers)
        found = report.validation
        if found is not None:
            best = ", the best so far" if found.best else ""
            self._say(f"validation at step {found.step}: total {found.total:.4g}{best}")
        done = report.step == report.steps
        if not self.console.is_terminal and (done or time.monotonic() - self._printed >= _LINE_SECONDS):
            self._printed = time.monotonic()
            self._say(f"{report.stage} {report.step}/{report.steps}  {numbers}")

    def _say(self, text: str, style: str | None = None) -> None:
        self._bar.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _domain(domain: DomainShare, crops: int) -> str:
    clips = "1 clip" if domain.clips == 1 else f"{domain.clips} clips"
    share = f"{100 * domain.share:.1f} % of the crops ({domain.epochs(crops):.1f} epochs)"
    return f"{domain.name or 'none'} {clips}, {domain.seconds / 60:.1f} minutes, {share}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters < 1e8 else f"{parameters / 1e6:.0f} M"
