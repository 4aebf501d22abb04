"""``losatok`` commands as processes that may be killed at any moment.

A server process has imported what the commands need, and each command is a fork of it: it begins at once, and nearly
all of its time is its work.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from trials.trial import FoundError

PRELOADED = (
    "torch",
    "soundfile",
    "soxr",
    "losatok_ext.models",
    "losatok_ext.jobs",
    "losatok_ext.cli.app",
    "losatok_ext.cli.train",
    "losatok_ext.cli.shard",
    "losatok_ext.cli.precompute",
    "trials.commands",
)
LONGEST = 300.0
"""Seconds after which a command counts as hung."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

context = get_context("forkserver")
context.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        output: what it wrote to standard output and standard error.
        seconds: from its start to its end.
    """

    code: int
    output: str
    seconds: float

    def check(self, codes: Sequence[int]) -> None:
        """Raise FoundError where the exit code is not one of ``codes``, or the output is not for users."""
        last = self.output[-1500:]
        if self.code not in codes:
            raise FoundError(f"exit code {self.code}, not {' or '.join(map(str, codes))}: {last}")
        if "Traceback" in self.output or "a defect" in self.output:
            raise FoundError(f"it speaks of a defect: {last}")
        if control := _CONTROL.search(self.output):
            raise FoundError(f"a control character {control[0]!r} in the output: {last!r}")


class Command:
    """A command line that runs in a process of its own from now on.

    Args:
        arguments: of ``losatok``.
        log: the file that its output goes to.
        folder: its working directory.
        largest_file: bytes; writing more to one file fails there. None: no limit.
    """

    def __init__(
        self, arguments: Sequence[object], log: Path, folder: Path | None = None, largest_file: int | None = None
    ) -> None:
        words = [str(argument) for argument in arguments]
        self.log = log
        self.began = time.monotonic()
        self.process: Any = context.Process(
            target=_run, args=(words, str(log), str(folder or log.parent), largest_file)
        )
        self.process.start()

    def wait(self, seconds: float = LONGEST) -> Outcome:
        """Wait for its end.

        Raises:
            FoundError: it takes longer than ``seconds``; it is killed.
        """
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            raise FoundError(f"it did not end in {seconds:g} s: {self._output()[-1500:]}")
        return Outcome(self.process.exitcode, self._output(), time.monotonic() - self.began)

    def kill_after(self, seconds: float) -> Outcome:
        """Kill it (SIGKILL) ``seconds`` from now, where it has not ended by itself before."""
        self.process.join(seconds)
        self.kill()
        return Outcome(self.process.exitcode, self._output(), time.monotonic() - self.began)

    def kill(self) -> None:
        """Kill it now, and wait until it is gone."""
        self.process.kill()
        self.process.join()

    def _output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def ask(function: Callable[..., None], *arguments: Any, seconds: float, when: str) -> Any:
    """What ``function(connection, *arguments)`` sends from a process of its own.

    Raises:
        FoundError: it has sent nothing after ``seconds``, or the process has ended; ``when`` says what was being done.
    """
    ours, theirs = context.Pipe(duplex=False)
    process: Any = context.Process(target=function, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise FoundError(f"{when}: no end in {seconds:g} s")
        return ours.recv()
    except EOFError:
        process.join()
        raise FoundError(f"{when}: the process ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _run(words: list[str], log: str, folder: str, largest_file: int | None) -> None:
    from losatok_ext.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
