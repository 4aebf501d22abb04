"""Figures of clips that are kept as they are found, so that a measurement that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from losatok_ext.errors import UserError


class JournalError(UserError):
    """A journal cannot be read or written; measuring on would be in vain."""


class Journal:
    """A JSONL file: a line of facts that all its figures rest on, then one line per clip.

    Each line is on disk before the next clip is measured. A last line that was cut off (a lost process, a full disk) is
    dropped when the file is opened again.

    Args:
        path: of the file; parent folders are made.
        facts: JSON values. A file of other facts is refused, since its figures would be others.
        fresh: begin anew whatever is there.

    Attributes:
        done: figures by key, those of earlier runs included.

    Raises:
        JournalError: the file holds other facts or is no journal, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], facts: dict[str, Any], fresh: bool = False) -> None:
        self.path = Path(path)
        self.done: dict[str, dict[str, Any]] = {}
        head = json.dumps(facts, sort_keys=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = b"" if fresh else self._read(head)
            self._file = self.path.open("r+b" if kept else "wb")
            if kept:
                self._file.truncate(len(kept))
                self._file.seek(len(kept))
            else:
                self._write(head)
        except OSError as error:
            raise self._unwritable(error) from error

    def _read(self, head: str) -> bytes:
        """The whole lines of the file; their figures go to ``done``."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        kept = content[: content.rfind(b"\n") + 1]
        lines = kept.decode("utf-8", "replace").splitlines()
        if not lines:
            return b""
        if lines[0] != head:
            raise JournalError(
                f"{self.path} holds figures of {_difference(lines[0], head)}; pass --overwrite or another folder"
            )
        for number, line in enumerate(lines[1:], start=2):
            try:
                values = json.loads(line)
                self.done[values.pop("key")] = values
            except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
                raise JournalError(f"{self.path}:{number} is damaged; pass --overwrite or another folder") from error
        return kept

    def add(self, key: str, values: dict[str, Any]) -> None:
        """Keep the figures of a clip.

        Raises:
            JournalError: the disk is full, or the file cannot be written for another reason.
        """
        try:
            self._write(json.dumps({"key": key, **values}))
        except OSError as error:
            raise self._unwritable(error) from error
        self.done[key] = values

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _unwritable(self, error: OSError) -> JournalError:
        return JournalError(f"{self.path} cannot be written: {error.strerror or error}")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.close()


def _difference(theirs: str, ours: str) -> str:
    """What is other about the facts of a file, for a message."""
    try:
        before, now = json.loads(theirs), json.loads(ours)
        names = [name for name in now if before.get(name) != now[name]]
    except (json.JSONDecodeError, AttributeError):
        return "something else"
    if not names:
        return "another version"
    return ", ".join(f"another {name} ({before.get(name)!r} and not {now[name]!r})" for name in names)
