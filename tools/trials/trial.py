"""What a trial is, and what is counted of it."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class FoundError(Exception):
    """Something did not hold that is promised; the message says what."""


@dataclass
class Tally:
    """What came of a trial.

    Attributes:
        attempts: how many were made.
        counts: what happened in them, by name.
        findings: for each attempt in which something did not hold: its ``attempt`` number and ``what``.
        seconds: that they took.
    """

    attempts: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class Trial:
    """One way in which things go wrong. Attempt ``i`` of a seed is always the same, as far as moments in time allow.

    Args:
        folder: for the files of this trial; exists.
        seed: of all attempts.

    Attributes:
        name: as the command takes it.
        summary: what is made to go wrong, for the table.
        share: its part of the time, beside those of the others.
    """

    name: str
    summary: str
    share: float = 1.0

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.tally = Tally()

    def prepare(self) -> None:
        """Make what every attempt needs; called once, before the first."""

    def attempt(self, chance: random.Random, counts: Counter[str]) -> None:
        """Make one attempt with numbers of ``chance``, and count what happens.

        Raises:
            FoundError: something did not hold.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back what :meth:`prepare` took; called once, after the last attempt."""

    def run(self, number: int) -> str | None:
        """Make attempt ``number``, and return what did not hold in it, if anything."""
        self.tally.attempts += 1
        found = None
        try:
            self.attempt(random.Random(f"{self.seed} {self.name} {number}"), self.tally.counts)
        except FoundError as error:
            found = str(error)
        except Exception:  # of the trial itself: to be looked at as well
            found = traceback.format_exc()
        if found is not None:
            self.tally.findings.append({"attempt": number, "what": found[-4000:]})
        return found
