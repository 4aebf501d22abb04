"""What is measured: recordings (or features of them) with what a manifest says of each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from losatok_ext.audio.files import READABLE_SUFFIXES
from losatok_ext.errors import UserError
from losatok_ext.recordings.find import Failure, find_inputs

MANIFESTS = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Segment:
    """A labelled stretch of a recording, from ``start`` up to ``end`` in seconds."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Item:
    """One file.

    Attributes:
        path: where it lies.
        name: in the manifest or folder; unique in what :func:`find_items` gives.
        values: what is known of it by name, as text: every plain value of its manifest line, with ``"labels"`` spread
            out. A file found in a folder has ``"domain"``, the name of its folder.
        segments: labelled stretches, where the manifest line has ``"segments"``.
    """

    path: Path
    name: str
    values: Mapping[str, str] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()

    @property
    def domain(self) -> str:
        """``speech``, ``music`` ...; ``""`` where nothing says."""
        return self.values.get("domain", "")

    def key(self) -> str:
        """Names the file as it is now: another content under the same name has another key."""
        try:
            status = self.path.stat()
        except OSError:  # reading it will say why
            return self.name
        return f"{self.name}|{status.st_size}|{status.st_mtime_ns}"


def find_items(
    names: Iterable[str | os.PathLike[str]], suffixes: Sequence[str] = READABLE_SUFFIXES
) -> tuple[list[Item], list[Failure]]:
    """Items of manifests, folders, patterns and files, and names that lead nowhere.

    Args:
        names: a name that ends in .jsonl is a manifest with one object per line; its ``"path"`` is relative to the
            manifest's folder, and it may have ``"domain"``, ``"labels"`` (an object), ``"segments"`` (a list of
            ``[start, end, label]`` in seconds) and other plain values. Any other is taken as
            :func:`~losatok_ext.recordings.find.find_inputs` does.
        suffixes: looked for in folders.

    Raises:
        UserError: a manifest cannot be read, or a line is broken (named by file and number).
    """
    items: list[Item] = []
    failures: list[Failure] = []
    for name in names:
        path = Path(name)
        if path.suffix.lower() in MANIFESTS:
            items += _manifest(path)
            continue
        found = find_inputs([name], suffixes)
        failures += found.failures
        for source in found.sources:
            folder = source.relative.parent.name or (path.name if path.is_dir() else "")
            items.append(Item(source.path, source.relative.as_posix(), {"domain": folder} if folder else {}))
    unique: dict[str, Item] = {}
    for item in items:
        unique.setdefault(os.path.realpath(item.path), item)
    return _distinct(list(unique.values())), failures


def _distinct(items: list[Item]) -> list[Item]:
    """The same with the whole path as the name where names meet."""
    counts: dict[str, int] = {}
    for item in items:
        counts[item.name] = counts.get(item.name, 0) + 1
    return [
        item if counts[item.name] == 1 else Item(item.path, item.path.as_posix(), item.values, item.segments)
        for item in items
    ]


def _manifest(path: Path) -> list[Item]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other line breaks in its texts
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the manifest: {error}") from None
    items = [_item(path, f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise UserError(f'{path}: the manifest is empty; each line should be an object such as {{"path": "a.wav"}}')
    return items


def _item(manifest: Path, place: str, line: str) -> Item:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON ({error.msg})") from None
    name = values.get("path") if isinstance(values, dict) else None
    if not isinstance(name, str) or not name:
        raise UserError(f'{place}: the line has no "path"; it should be an object such as {{"path": "a.wav"}}')
    labels = values.get("labels", {})
    if not isinstance(labels, dict):
        raise UserError(f'{place}: "labels" should be an object of names and values, got {labels!r}')
    known = {**values, **labels}
    plain = {key: _text(value) for key, value in known.items() if isinstance(value, str | int | float)}
    return Item(manifest.parent / name, name, plain, _segments(place, values.get("segments", [])))


def _segments(place: str, values: Any) -> tuple[Segment, ...]:
    segments = []
    for entry in values if isinstance(values, list) else [values]:
        fits = isinstance(entry, list) and len(entry) == 3
        times = entry[:2] if fits else []
        if not fits or not all(isinstance(t, int | float) and not isinstance(t, bool) for t in times):
            raise UserError(f'{place}: "segments" should be a list of [start, end, label], got {entry!r}')
        segments.append(Segment(float(times[0]), float(times[1]), _text(entry[2])))
    return tuple(segments)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
