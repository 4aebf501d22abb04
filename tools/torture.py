#!/usr/bin/env python3
"""Makes things go wrong, at random and for as long as one likes, and says what did not hold.

    python tools/torture.py                               # five minutes
    python tools/torture.py --hours 8 -o /data/torture    # a night
    python tools/torture.py --trials kills disks --seed 5 --minutes 30
    python tools/torture.py --again kills:17 --seed 5     # one attempt once more

Damaged files of every kind, killed commands, full disks, hostile arguments of ops and commands, memory over thousands
of calls, other programs on the same cores: tools/trials has one module for each. Attempts take turns, and attempt N of
a seed is the same again, up to the moments at which processes are killed. Everything is in OUTPUT: what was found in
OUTPUT/torture.json, files that were read wrongly in OUTPUT/<trial>/kept. With ``--keep docs`` the counts also go to
docs/torture.json and between the marks of docs/reliability.md.

Needs Linux, and what `make test` installs. As root, disks are small tmpfs mounts; else files are limited in size.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as `losatok` does; torch reads it when it is imported
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from trials.command_lines import CommandLines
from trials.crowds import Crowds
from trials.full_disks import FullDisks
from trials.hostile_calls import PublicCalls, RawCalls
from trials.kills import Kills
from trials.memory import Memory
from trials.mutated_files import MutatedFiles
from trials.trial import Trial

from losatok_ext.files import atomic_path
from machine import commit, machine_name
from report import fill

ROOT = Path(__file__).resolve().parents[1]
TRIALS: dict[str, type[Trial]] = {
    trial.name: trial for trial in (MutatedFiles, Kills, FullDisks, RawCalls, PublicCalls, CommandLines, Memory, Crowds)
}


def run(trials: Sequence[Trial], minutes: float) -> None:
    """Let the trials take turns, by their shares of the time, until ``minutes`` are over."""
    end = time.monotonic() + 60 * minutes
    for trial in trials:
        trial.prepare()
    while time.monotonic() < end:
        trial = min(trials, key=lambda each: each.tally.seconds / each.share)
        attempt(trial, trial.tally.attempts)


def attempt(trial: Trial, number: int) -> None:
    """Make one attempt, and print what did not hold."""
    start = time.monotonic()
    found = trial.run(number)
    trial.tally.seconds += time.monotonic() - start
    if found is not None:
        print(f"{trial.name}:{number} (seed {trial.seed}): {found}", flush=True)


def record(trials: Sequence[Trial], seed: int, minutes: float) -> dict[str, Any]:
    """What is kept of a run: where and when it was made, and the tally of each trial."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine_name("cpu"),
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "seed": seed,
        "minutes": round(minutes, 1),
        "trials": {
            trial.name: {
                "summary": trial.summary,
                "attempts": trial.tally.attempts,
                "seconds": round(trial.tally.seconds, 1),
                "counts": dict(sorted(trial.tally.counts.items())),
                "findings": trial.tally.findings,
            }
            for trial in trials
        },
    }


def table(kept: dict[str, Any]) -> str:
    """The table of docs/reliability.md."""
    lines = [
        f"{kept['minutes']:g} minutes on {kept['date']}, commit {kept['commit']}, seed {kept['seed']}: "
        f"{kept['machine']}, torch {kept['torch']}, Python {kept['python']}.",
        "",
        "| what went wrong | attempts | what came of it | did not hold |",
        "|---|---|---|---|",
    ]
    for trial in kept["trials"].values():
        counts = "; ".join(f"{name}: {count}" for name, count in trial["counts"].items())
        lines.append(f"| {trial['summary']} | {trial['attempts']} | {counts} | {len(trial['findings'])} |")
    return "\n".join(lines)


def main() -> int:
    """Run the trials; 0 when everything held, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--hours", type=float, default=0.0, help="in place of --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS), metavar="NAME", help=", ".join(TRIALS)
    )
    parser.add_argument("--again", metavar="TRIAL:NUMBER", help="make one attempt once more")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "torture")
    parser.add_argument("--keep", type=Path, metavar="DOCS", help="write the counts there as well")
    options = parser.parse_args()
    minutes = 60 * options.hours or options.minutes
    again, _, number = (options.again or "").partition(":")
    trials = []
    for name in [again] if again else options.trials:
        folder = options.output.resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        trials.append(TRIALS[name](folder, options.seed))
    start = time.monotonic()
    try:
        if again:
            trials[0].prepare()
            attempt(trials[0], int(number))
        else:
            run(trials, minutes)
    except KeyboardInterrupt:
        print("interrupted; what was done until now is kept")
    finally:
        for trial in trials:
            trial.close()
    kept = record(trials, options.seed, (time.monotonic() - start) / 60)
    for folder, name in ((options.output, "torture.json"), (options.keep, "torture.json")):
        if folder is not None:
            with atomic_path(folder / name) as path:
                path.write_text(json.dumps(kept, indent=1) + "\n")
    if options.keep is not None:
        fill(options.keep / "reliability.md", {"torture": table(kept)})
    print(table(kept))
    return int(any(trial.tally.findings for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
