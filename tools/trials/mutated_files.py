"""Damaged files of every kind that the package reads."""

from __future__ import annotations

import random
import shutil
from collections import Counter

from trials import commands, material, mutations, readers
from trials.trial import FoundError, Trial

TEXT_SUFFIXES = (".json", ".jsonl", ".yaml")
LONGEST = 120.0
"""Seconds after which reading a file counts as hung."""


class MutatedFiles(Trial):
    """Each attempt damages some files of one kind, and has them read."""

    name = "files"
    summary = "damaged files: latents, recordings, shards, manifests, configurations, models, pickles, checkpoints"
    share = 2.0
    process = None

    def prepare(self) -> None:
        """Make the whole files."""
        self.whole = material.make_all(self.folder / "whole")

    def _start(self) -> None:
        self.connection, theirs = commands.context.Pipe()
        self.process = commands.context.Process(target=readers.serve, args=(theirs, str(self.whole)), daemon=True)
        self.process.start()
        theirs.close()

    def attempt(self, chance: random.Random, counts: Counter[str]) -> None:
        """Damage and read a number of files of one kind."""
        kind = chance.choice(readers.KINDS)
        problems = []
        for _ in range(3 if kind.name == "run" else 20):
            problem = self._one(kind, chance, counts)
            if problem is not None:
                problems.append(problem)
        if problems:
            raise FoundError("\n".join(problems))

    def _one(self, kind: readers.Kind, chance: random.Random, counts: Counter[str]) -> str | None:
        work = self.folder / "damaged"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.whole / kind.name, work)
        files = sorted(path for path in work.glob(kind.damaged) if path.is_file() and path.name != ".lock")
        victim = chance.choice(files)
        text = kind.text and victim.suffix in TEXT_SUFFIXES
        victim.write_bytes(mutations.mutate(victim.read_bytes(), chance, text))
        if self.process is None or not self.process.is_alive():
            self._start()
        file = str(victim.relative_to(work))
        self.connection.send((kind.name, str(work), file))
        counts["files"] += 1
        try:
            if not self.connection.poll(LONGEST):
                self.process.kill()
                outcome, problem = "not held", f"{file}: it was not read in {LONGEST:g} s"
            else:
                outcome, problem = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            outcome, problem = "not held", f"{file}: reading it ended the process ({self.process.exitcode})"
        counts[outcome] += 1
        if problem is not None:
            kept = self.folder / "kept" / f"{kind.name}-{counts['files']}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(work, kept)
            return f"{problem} (kept in {kept})"
        return None

    def close(self) -> None:
        """End the process that reads."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
