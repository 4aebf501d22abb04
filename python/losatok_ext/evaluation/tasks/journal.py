"""Figures of clips, written to disk one by one, so that an interrupted measurement can continue."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from losatok_ext.errors import UserError


class JournalError(UserError):
    """A journal cannot be read or written, so there is no use in measuring more."""


class Journal:
    """A JSONL file: one line of facts that all figures depend on, then one line per clip.

    Each line is on disk before the next clip is measured. An incomplete last line (after a crash or a full
    disk) is dropped when the file is opened again.

    Args:
        path: of the file; parent folders are made.
        facts: JSON values. A file with other facts is refused.
        fresh: start a new file, even if there is one.

    Attributes:
        done: key -> figures, including those of earlier runs.

    Raises:
        JournalError: the file has other facts, is not a journal, or cannot be written.
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
        """The complete lines of the file; their figures are put into ``done``."""
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
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
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
    """How the facts of a file differ from ours, for an error message."""
    try:
        before, now = json.loads(theirs), json.loads(ours)
        names = [name for name in now if before.get(name) != now[name]]
    except (ValueError, AttributeError, RecursionError):
        return "something else"
    if not names:
        return "another version"
    return ", ".join(f"another {name} ({before.get(name)!r} and not {now[name]!r})" for name in names)
