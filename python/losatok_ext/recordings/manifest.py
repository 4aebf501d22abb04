"""What there is to train on: the files of a folder, the lines of a JSONL manifest, or the clips in shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from losatok_ext.audio.files import READABLE_SUFFIXES
from losatok_ext.errors import TrainingError
from losatok_ext.recordings.shard_files import Member
from losatok_ext.recordings.shard_index import RECORDINGS, is_shards, open_shards

UNKNOWN_SECONDS = 1e9
_EXAMPLE = 'each line should be an object such as {"path": "a.wav"}'


class Entry(NamedTuple):
    """What a folder, manifest or shard says of a clip; ``seconds`` is None where it says nothing."""

    path: Path
    name: str
    seconds: float | None
    text: str
    domain: str = ""
    member: Member | None = None
    """Where the clip is in a shard; ``path`` is then its name for messages."""


class Found(NamedTuple):
    """The clips that there are, sentences on what is left out, and how many clips are named altogether."""

    entries: list[Entry]
    left_out: list[str]
    named: int


def find_entries(data: Path, suffixes: Sequence[str] = READABLE_SUFFIXES, kind: str = "audio") -> Found:
    """The files of a folder (searched through for ``suffixes``) or JSONL manifest, or the recordings in shards.

    A manifest line gives a clip's text as ``"text"``, else as ``"label"``, else as the values of the object
    ``"labels"``, and its domain as ``"domain"``. In a folder the text is the name of the folder that the file lies in,
    and the domain that of the first folder on the way to it; both are ``""`` at the top. A file may have several lines
    with a text each; of lines that say the same the first counts. Files that do not exist are left out, and told in one
    sentence.

    Raises:
        TrainingError: ``data`` is missing, empty or of another kind, or a manifest line is broken (named by file and
            line).
    """
    if is_shards(data):
        return _in_shards(data, kind)
    if data.is_dir():
        entries = _in_folder(data, suffixes, kind)
        return Found(entries, [], len(entries))
    if not data.exists():
        raise TrainingError(
            f"{data}: no such folder or manifest; give a folder of {kind} files, a JSONL manifest or shards (.tar)"
        )
    if data.suffix.lower() in suffixes:
        article = "an" if kind[0] in "aeiou" else "a"
        raise TrainingError(f"{data} is {article} {kind} file; give the folder that holds it, or a JSONL manifest")
    return _in_manifest(data)


def _in_folder(data: Path, suffixes: Sequence[str], kind: str) -> list[Entry]:
    found = sorted(p for p in data.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    entries = [
        Entry(path, name.as_posix(), None, name.parent.name, name.parts[0] if len(name.parts) > 1 else "")
        for path, name in ((path, path.relative_to(data)) for path in found)
        if not path.name.startswith(".")
    ]
    if not entries:
        raise TrainingError(
            f"{data}: the folder holds no {kind} files ({', '.join(suffixes)}), nor do the folders in it"
        )
    return entries


def _in_shards(data: Path, kind: str) -> Found:
    shards = open_shards(data)
    if shards.kind != RECORDINGS:
        raise TrainingError(f"{data} holds {shards.kind}, and {kind} files are needed here; give recordings")
    entries, left_out = [], list(shards.left_out)
    for sample in shards.samples:
        values, path = sample.values, sample.member.shard / sample.key
        name = values.get("path")
        if not isinstance(name, str) or not name:
            name = f"{sample.member.shard.name}/{sample.key}"
        try:
            told = (_seconds(values, str(path)), _text(values, str(path)), _domain(values, str(path)))
            entries.append(Entry(path, name, *told, sample.member))
        except TrainingError as error:  # whoever trains cannot put a shard right as he can a manifest
            left_out.append(str(error))
    if not entries:
        reason = f"; the first problem: {left_out[0]}" if left_out else ""
        raise TrainingError(f"{data}: the shards hold no recordings{reason}")
    return Found(entries, left_out, len(shards.samples))


def manifest_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, values) of each line of a JSONL manifest that is not empty. UTF-8, with or without a byte order mark;
    lines end as on any system.

    Raises:
        TrainingError: the file cannot be read, or a line holds no ``"path"``; file and line are named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: U+2028 may stand within a text
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: cannot read the manifest: {error}; save it as UTF-8") from None
    except OSError as error:
        raise TrainingError(f"{path}: cannot read the manifest: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = getattr(error, "msg", None) or str(error)
            raise TrainingError(f"{path}:{number}: not valid JSON ({problem}); {_EXAMPLE}") from None
        name = values.get("path") if isinstance(values, dict) else None
        if not isinstance(name, str) or not name:
            raise TrainingError(f'{path}:{number}: the line has no "path"; {_EXAMPLE}')
        yield number, values


def _in_manifest(path: Path) -> Found:
    entries: list[Entry] = []
    lines: dict[tuple[str, str, str], int] = {}
    missing: list[tuple[int, str]] = []
    repeated: list[tuple[int, str, int]] = []
    for number, values in manifest_lines(path):
        place, name = f"{path}:{number}", values["path"]
        entry = Entry(path.parent / name, name, _seconds(values, place), _text(values, place), _domain(values, place))
        first = lines.setdefault((os.path.normpath(entry.path), entry.text, entry.domain), number)
        if first != number:
            repeated.append((number, name, first))
        elif os.path.exists(entry.path):
            entries.append(entry)
        else:
            missing.append((number, name))
    if not lines:
        raise TrainingError(f"{path}: the manifest is empty; {_EXAMPLE}")
    left_out = []
    if missing:
        number, name = missing[0]
        left_out.append(
            f"{path}: {len(missing)} of its {len(lines)} files {'does' if len(missing) == 1 else 'do'} not exist, the "
            f"first: {name} (line {number}), looked for as {path.parent / name}"
        )
    if repeated:
        number, name, first = repeated[0]
        left_out.append(
            f"{path}: {len(repeated)} lines say again what another does, the first: {name} (line {number}, as line "
            f"{first}); each counts once"
        )
    return Found(entries, left_out, len(lines))


def _seconds(values: Mapping[str, Any], place: str) -> float | None:
    seconds = values.get("seconds")
    if seconds is not None and (
        isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < UNKNOWN_SECONDS
    ):
        raise TrainingError(f'{place}: "seconds" should be the length of the clip in seconds, got {seconds!r}')
    return seconds


def _domain(values: Mapping[str, Any], place: str) -> str:
    domain = values.get("domain", "")
    if not isinstance(domain, str):
        raise TrainingError(f'{place}: "domain" should be text, got {domain!r}')
    return domain


def _text(values: Mapping[str, Any], place: str) -> str:
    for key in ("text", "label"):
        if key in values:
            if not isinstance(values[key], str):
                raise TrainingError(f'{place}: "{key}" should be text, got {values[key]!r}')
            return values[key]
    labels = values.get("labels", {})
    if not isinstance(labels, dict):
        raise TrainingError(f'{place}: "labels" should be an object of names and values, got {labels!r}')
    return " ".join(str(value) for value in labels.values())
