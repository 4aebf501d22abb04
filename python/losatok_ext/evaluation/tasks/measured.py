"""Measuring recordings one after the other: what failed is collected, and the others still count."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from losatok_ext.errors import UserError
from losatok_ext.jobs.tokenize import sentence
from losatok_ext.ops.dispatch import BackendUnavailableError
from losatok_ext.recordings.find import Failure
from losatok_ext.recordings.labelled import Item

S = TypeVar("S", bound="Sums")
Progress = Callable[[Item], None]
"""Called after each item."""


def for_each(
    items: Sequence[Item],
    work: Callable[[Item], None],
    progress: Progress | None = None,
    debug: bool = False,
    fatal: tuple[type[Exception], ...] = (),
) -> list[Failure]:
    """Call ``work`` with each item; the items that it raised an error for, with one sentence each.

    Args:
        items: recordings, or files of features.
        work: what is done with each.
        progress: called after each item, whether it failed or not.
        debug: raise the first error instead of collecting it.
        fatal: errors that every other item would raise too; they are raised at once.

    Raises:
        BackendUnavailableError: an op cannot run here.
    """
    failures: list[Failure] = []
    raised: tuple[type[Exception], ...] = (BackendUnavailableError, *fatal)
    for item in items:
        try:
            work(item)
        except raised:
            raise
        except Exception as error:
            if debug:
                raise
            failures.append(Failure(item.path, sentence(item.path, error)))
        if progress is not None:
            progress(item)
    return failures


def require_any(count: int, problem: str, failures: Sequence[Failure]) -> None:
    """Raise UserError with ``problem`` and the first of ``failures`` when ``count``, of what succeeded, is 0."""
    if not count:
        raise UserError(f"{problem}; the first: {failures[0].message}" if failures else problem)


@dataclass
class Sums:
    """Numbers that are added up over recordings: the fields of a subclass, which start at 0."""

    def add(self: S, other: S) -> None:
        """Add each field of ``other`` to the same field of this one."""
        for entry in dataclasses.fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))


@dataclass(kw_only=True)
class Measured:
    """A result over recordings that are measured one after the other.

    Attributes:
        recordings: number that were measured.
        seconds: of audio in them.
        failures: recordings that could not be measured.
    """

    recordings: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def measure(
        self,
        items: Sequence[Item],
        work: Callable[[Item], float],
        progress: Progress | None = None,
        debug: bool = False,
    ) -> None:
        """Call ``work`` with each recording, as :func:`for_each` does, and add up what it measured.

        Args:
            items: recordings.
            work: measures one recording and returns its seconds of audio.
            progress: called after each recording.
            debug: raise the first error instead of collecting it.

        Raises:
            UserError: no recording can be measured.
            BackendUnavailableError: an op cannot run here.
        """

        def count(item: Item) -> None:
            self.seconds += work(item)
            self.recordings += 1

        self.failures += for_each(items, count, progress, debug)
        require_any(self.recordings, "there are no recordings to measure", self.failures)
