"""Commands on a disk that is too small, which then is made larger."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from trials import jobs
from trials.commands import Command
from trials.trial import FoundError, Trial

_SAYS = ("space", "too large", "full", "room")
"""One of them is in every message about a full disk or a file that may not grow."""


def mounted(folder: Path, size: int) -> bool:
    """Mount a file system of ``size`` bytes at ``folder``, or make the one there so large; whether it may be done."""
    options = f"size={size}" + (",remount" if os.path.ismount(folder) else "")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


class FullDisks(Trial):
    """Each attempt runs one command where its outputs do not fit, then where they do."""

    name = "disks"
    summary = "disks that are too small for encode, decode, shard, precompute, train, convert; and run again with room"

    def prepare(self) -> None:
        """Run each command once with room."""
        self.inputs = jobs.make_inputs(self.folder / "inputs")
        self.disk = self.folder / "disk"
        self.disk.mkdir(exist_ok=True)
        self.may_mount = mounted(self.disk, 1 << 26)
        self.wholes: dict[str, dict[str, str]] = {}
        self.sizes: dict[str, list[int]] = {}
        for job in jobs.JOBS:
            folder = jobs.fresh(job, self.inputs, self.folder / "whole" / job.name)
            Command(job.arguments(self.inputs, folder), self.folder / "log").wait().check([0])
            self.wholes[job.name] = jobs.outputs(job, folder)
            self.sizes[job.name] = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]

    def attempt(self, chance: random.Random, counts: Counter[str]) -> None:
        """Run a command without room, and with room."""
        job = chance.choice(jobs.JOBS)
        sizes = self.sizes[job.name]
        if self.may_mount:
            subprocess.run(["umount", str(self.disk)], capture_output=True)
            mounted(self.disk, max(1 << 14, int(chance.uniform(0.02, 1.0) * sum(sizes))))
            limit = None
        else:
            limit = max(1, int(chance.uniform(0.02, 1.0) * max(sizes)))
        folder = self.disk / "out"
        wholes = [self.wholes[job.name]]
        try:
            jobs.fresh(job, self.inputs, folder)
        except OSError:
            counts["no room for what has to be there before"] += 1
            return
        wholes.append(jobs.outputs(job, folder))
        words = job.arguments(self.inputs, folder)
        outcome = Command(words, self.folder / "log", self.folder, limit).wait()
        outcome.check([0, 2])
        counts["fitted after all" if outcome.code == 0 else "refused for want of room"] += 1
        if outcome.code == 2 and not any(word in outcome.output for word in _SAYS):
            raise FoundError(f"{job.name}: the message does not say that the disk is full: {outcome.output[-800:]}")
        there = jobs.check_partial(job, folder, wholes, "on a full disk")
        counts["outputs there on a full disk, all whole"] += there
        if self.may_mount:
            mounted(self.disk, 1 << 26)
        Command(words, self.folder / "log", self.folder).wait().check([0])
        jobs.check_complete(job, folder, self.wholes[job.name], "with room")
        counts["runs with room, as if there had always been room"] += 1

    def close(self) -> None:
        """Unmount the disk."""
        if os.path.ismount(self.disk):
            subprocess.run(["umount", str(self.disk)], capture_output=True)
