"""Commands that are run one after another, may be cut off at any moment, and go on where they stopped."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """A command with a name.

    Attributes:
        name: names the part's log and its entry in the record.
        command: program and arguments.
        needs: names of parts that must have passed before.
        version: what the result depends on, such as a commit. A part that is done for another version runs again.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    version: str = ""


class Record:
    """The outcome of each part, in ``folder``/state.json; its output is in ``folder``/<part>.log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "state.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, dict] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def outcome(self, name: str) -> str | None:
        """``passed``, ``failed``, ``cut`` (the time was over) or None: the part has not run."""
        return self.state.get(name, {}).get("outcome")

    def done(self, part: Part) -> bool:
        """Whether ``part`` has passed or failed, for its version."""
        entry = self.state.get(part.name, {})
        return entry.get("outcome") in ("passed", "failed") and entry.get("version", "") == part.version

    def keep(self, part: Part, outcome: str, seconds: float) -> None:
        """Write down the outcome of ``part``. The file is replaced in one step."""
        self.state[part.name] = {"outcome": outcome, "seconds": round(seconds, 1), "version": part.version}
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.state, indent=1) + "\n")
        os.replace(temporary, self.path)


def run(
    todo: Sequence[Part],
    record: Record,
    limit: float,
    again: Sequence[str] = (),
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> bool:
    """Run the parts that are not done, and return whether all parts have passed.

    Args:
        todo: the parts, in order.
        record: where outcomes and logs are kept.
        limit: seconds for this call; a command that is still running then is ended, and its part is ``cut``.
        again: names of parts to run even if they are done.
        folder: the working directory of the commands.
        environment: variables to set beside those of this process.
    """
    end = time.monotonic() + limit
    for part in todo:
        if record.done(part) and part.name not in again:
            continue
        missing = [name for name in part.needs if record.outcome(name) != "passed"]
        if missing:
            print(f"{part.name}: left out, {', '.join(missing)} has not passed")
            continue
        left = end - time.monotonic()
        if left <= 0:
            print(f"{part.name}: not begun, the time is over; call again")
            return False
        began = time.monotonic()
        with (record.folder / f"{part.name}.log").open("w") as log:
            try:
                code = subprocess.run(
                    part.command,
                    cwd=folder,
                    env={**os.environ, **(environment or {})},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=left,
                )
                outcome = "passed" if code.returncode == 0 else "failed"
            except subprocess.TimeoutExpired:
                outcome = "cut"
        record.keep(part, outcome, time.monotonic() - began)
        print(f"{part.name}: {outcome} after {time.monotonic() - began:.0f} s", flush=True)
    return all(record.outcome(part.name) == "passed" for part in todo)
