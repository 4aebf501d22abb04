"""How outputs were made, so that a job finds out whether one that exists is still what it would write.

A latent file holds this in its header. An audio file has no place for it: :class:`Record` keeps it in a file
(:data:`RECORD`) in the folder of the audio files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from losatok_ext.errors import UserError
from losatok_ext.files import digest
from losatok_ext.text import name_as_text

RECORD = ".losatok-outputs.jsonl"
"""A line for each output that was written into the folder: a JSON object with ``name``, ``digest`` (of the output),
``source`` (:func:`losatok_ext.files.digest` of the input) and ``settings``."""


class StaleError(Exception):
    """An output was made of another source than the one that is there now, or was damaged: it is to be made again."""


def settings_text(**values: object) -> str:
    """``"dtype=float32, logvar=False"``: settings that an output depends on, sorted by name."""
    return ", ".join(f"{name}={value}" for name, value in sorted(values.items()))


def differences(then: str, now: str) -> str:
    """What differs between two :func:`settings_text`, for a message: ``"dtype=bfloat16 (now dtype=float32)"``."""
    old, new = then.split(", "), now.split(", ")
    return f"{', '.join(x for x in old if x not in new)} (now {', '.join(x for x in new if x not in old)})"


class Record:
    """The outputs that were written into ``folder``.

    A line is added before its output takes its place, and lines are only ever added. So whatever content an output has
    after a crash, the old or the new one, there is a line for it. Processes that write into one folder at the same time
    add whole lines, and each finds what the others have added.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._lines: dict[tuple[str, str], dict[str, str]] = {}
        self._read = 0  # bytes of the record when it was read
        self._load()

    def _load(self) -> None:
        try:
            self._read = self.path.stat().st_size
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}; make it readable") from error
        for line in text.splitlines():
            try:
                values = json.loads(line)
                found = {key: str(values[key]) for key in ("name", "digest", "source", "settings")}
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the end of a line that a crash has cut off
            self._lines[found["name"], found["digest"]] = found

    def add(self, output: Path, written: Path, source: str, settings: str) -> None:
        """Say how ``output`` was made, before ``written``, its complete content, is renamed to it.

        Raises:
            OSError: the record cannot be written.
        """
        values = {"name": name_as_text(output.name), "digest": digest(written)}
        values |= {"source": source, "settings": settings}
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            # The empty line ends what a crash may have left without an end.
            rest = f"\n{json.dumps(values)}\n".encode()
            while rest:  # a disk that fills up takes a part first, and raises on the rest
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        self._lines[values["name"], values["digest"]] = values

    def find(self, output: Path) -> dict[str, str] | None:
        """How the output that is there now was made; None where this content was not written by a job.

        Raises:
            UserError: the output or the record cannot be read.
        """
        try:
            if not output.is_file():
                return None
            key = name_as_text(output.name), digest(output)
            if key not in self._lines and self.path.exists() and self.path.stat().st_size != self._read:
                self._load()
        except OSError as error:
            raise UserError(
                f"{output} exists and cannot be read: {error.strerror or error}; make it readable, pass --overwrite or "
                "another folder"
            ) from error
        return self._lines.get(key)
