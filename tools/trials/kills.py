"""Commands that are killed at random moments, and then run to their end."""

from __future__ import annotations

import random
from collections import Counter

from trials import jobs
from trials.commands import Command
from trials.trial import Trial


class Kills(Trial):
    """Each attempt kills one command up to four times, looks at what is there, and runs it to its end."""

    name = "kills"
    summary = "commands killed at random moments (encode, decode, shard, precompute, train, convert), and run again"
    share = 3.0

    def prepare(self) -> None:
        """Run each command once without a kill."""
        self.inputs = jobs.make_inputs(self.folder / "inputs")
        self.wholes: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        for job in jobs.JOBS:
            folder = jobs.fresh(job, self.inputs, self.folder / "whole" / job.name)
            outcome = Command(job.arguments(self.inputs, folder), self.folder / "log").wait()
            outcome.check([0])
            self.wholes[job.name], self.seconds[job.name] = jobs.outputs(job, folder), outcome.seconds

    def attempt(self, chance: random.Random, counts: Counter[str]) -> None:
        """Kill a command, and run it to its end."""
        job = chance.choice(jobs.JOBS)
        folder = jobs.fresh(job, self.inputs, self.folder / "killed")
        wholes = [jobs.outputs(job, folder), self.wholes[job.name]]
        words = job.arguments(self.inputs, folder)
        for number in range(chance.choice((1, 1, 2, 4))):
            outcome = Command(words, self.folder / "log").kill_after(chance.uniform(0.0, 1.1 * self.seconds[job.name]))
            if outcome.code != -9:
                outcome.check([0])
                counts["ended before the kill"] += 1
                break
            counts["kills"] += 1
            there = jobs.check_partial(job, folder, wholes, f"after kill {number + 1}")
            counts["outputs there at a kill, all whole"] += there
        Command(words, self.folder / "log").wait().check([0])
        jobs.check_complete(job, folder, self.wholes[job.name], "run to its end")
        counts["runs to the end, as without a kill"] += 1
