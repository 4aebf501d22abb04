"""Manifests: text files that list recordings, and say what is known about each.

A manifest is a JSON lines file: one JSON object per line, in UTF-8 with or without a byte order mark, with the line
ends of any system. Every command reads the same keys:

=============  =======================================================================================================
``path``       The file; relative to the manifest's folder, or absolute. Required.
``text``       What the recording is described as to a generator. Where it is missing, ``label`` serves, then the values
               of ``labels``.
``label``      The class of the recording: text or a number.
``labels``     An object of further labels by name.
``domain``     Speech, music or whatever the data is divided into.
``seconds``    Length of the recording. Training then need not open the file to learn it.
``segments``   A list of ``[start, end, label]``: labelled parts, in seconds.
=============  =======================================================================================================

Other keys with plain values (text, numbers, true and false) can be grouped by in evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from losatok_ext.configuration.values import show
from losatok_ext.errors import InputError
from losatok_ext.recordings.shard_files import Member

MANIFEST_SUFFIXES = (".jsonl", ".ndjson")
MAX_SECONDS = 1e9
"""No recording is as long as this."""

_EXAMPLE = 'each line should be an object such as {"path": "a.wav"}'


@dataclass(frozen=True)
class Segment:
    """A labelled part of a recording, from ``start`` up to ``end`` in seconds."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Item:
    """One recording (or file of features or latents), and what is known about it.

    Attributes:
        path: the file. Of a recording in a shard: the shard and the recording's key, for messages.
        name: the file's name in its manifest, folder or shard.
        values: everything that is known by name, as text: the plain values of the manifest line and those of its
            ``"labels"``. A file found in a folder has at most ``"domain"``.
        segments: labelled parts.
        text: what the recording is described as to a generator; ``""`` where nothing is known.
        label: its class; ``""`` where nothing is known.
        seconds: its length, where the manifest says it.
        line: the line of the manifest, from 1; 0 for a file that no manifest names.
        member: where the recording is in a shard.
    """

    path: Path
    name: str
    values: Mapping[str, str] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    text: str = ""
    label: str = ""
    seconds: float | None = None
    line: int = 0
    member: Member | None = None

    @property
    def domain(self) -> str:
        """Speech, music or whatever the data is divided into; ``""`` where nothing is known."""
        return self.values.get("domain", "")

    def key(self) -> str:
        """A name for the file with its present content: it changes with the file's size and time."""
        try:
            status = self.path.stat()
        except OSError:  # reading it will say why
            return self.name
        return f"{self.name}|{status.st_size}|{status.st_mtime_ns}"


def is_manifest(path: Path) -> bool:
    """Whether ``path`` is taken for a manifest because of its suffix."""
    return path.suffix.lower() in MANIFEST_SUFFIXES


def read_manifest(path: Path) -> list[Item]:
    """The lines of a manifest, in their order. Whether the files exist is not checked.

    Raises:
        InputError: the manifest cannot be read or is empty, or a line is broken (file and line are named).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: U+2028 may stand within a text
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot read the manifest: {error}; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read the manifest: {error.strerror or error}") from None
    items = [_read_line(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not items:
        raise InputError(f"{path}: the manifest is empty; {_EXAMPLE}")
    return items


def _read_line(manifest: Path, number: int, line: str) -> Item:
    place = f"{manifest}:{number}"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = getattr(error, "msg", None) or str(error)
        raise InputError(f"{place}: not valid JSON ({problem}); {_EXAMPLE}") from None
    name = values.get("path") if isinstance(values, dict) else None
    if not isinstance(name, str) or not name:
        raise InputError(f'{place}: the line has no "path"; {_EXAMPLE}')
    return describe(manifest.parent / name, name, values, place, line=number)


def describe(
    path: Path, name: str, values: Mapping[str, Any], place: str, line: int = 0, member: Member | None = None
) -> Item:
    """The item that ``values``, the object of a manifest's line or of a shard, describe.

    Args:
        path, name, line, member: those of the item.
        values: by the keys of a manifest.
        place: where they were read, for messages.

    Raises:
        InputError: a value is of the wrong kind.
    """
    labels = values.get("labels", {})
    if not isinstance(labels, dict):
        raise InputError(f'{place}: "labels" should be an object of names and values, got {show(labels)}')
    domain, text = (_as_text(values, key, place) for key in ("domain", "text"))
    label = values.get("label", "")
    if not isinstance(label, str | int | float):
        raise InputError(f'{place}: "label" should be text or a number, got {show(label)}')
    label = _shown(label)
    if text is None:
        text = label if "label" in values else " ".join(map(_shown, labels.values()))
    plain = {key: _shown(value) for key, value in {**labels, **values}.items() if isinstance(value, str | int | float)}
    if domain is None:
        plain.pop("domain", None)
    segments = _segments(values.get("segments", []), place)
    return Item(path, name, plain, segments, text, label, _seconds(values, place), line, member)


def _as_text(values: Mapping[str, Any], key: str, place: str) -> str | None:
    text = values.get(key)
    if key in values and not isinstance(text, str):
        raise InputError(f'{place}: "{key}" should be text, got {show(text)}')
    return text


def _seconds(values: Mapping[str, Any], place: str) -> float | None:
    seconds = values.get("seconds")
    if seconds is not None and not (_is_number(seconds) and 0 <= seconds < MAX_SECONDS):
        raise InputError(f'{place}: "seconds" should be the length of the recording in seconds, got {show(seconds)}')
    return seconds


def _segments(values: Any, place: str) -> tuple[Segment, ...]:
    segments = []
    for entry in values if isinstance(values, list) else [values]:
        fits = isinstance(entry, list) and len(entry) == 3
        times = entry[:2] if fits else []
        if not fits or not all(map(_is_number, times)):
            raise InputError(f'{place}: "segments" should be a list of [start, end, label], got {show(entry)}')
        segments.append(Segment(float(times[0]), float(times[1]), _shown(entry[2])))
    return tuple(segments)


def _is_number(value: Any) -> bool:
    """Whether ``value`` is a number of seconds that a float can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) < MAX_SECONDS)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    try:
        return str(value)
    except (ValueError, RecursionError):  # a number of very many digits, or lists within each other
        return show(value)
