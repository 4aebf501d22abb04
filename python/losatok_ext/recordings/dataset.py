"""The recordings of one data set, as training takes it: a folder, a manifest, or shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from losatok_ext.audio.files import READABLE_SUFFIXES
from losatok_ext.errors import InputError, TrainingError
from losatok_ext.recordings.find import Source, search_folder
from losatok_ext.recordings.labelled import item_of
from losatok_ext.recordings.manifest import Item, describe, read_manifest
from losatok_ext.recordings.shard_index import RECORDINGS, is_shards, open_shards

_MAX_SECONDS_PER_BYTE = 8.0
"""More than any file holds: FLAC at 1000 Hz takes about 12 bytes for a block of 65 s of silence."""


class DataSet(NamedTuple):
    """The recordings that there are, sentences about those that are left out, and how many are named altogether."""

    items: list[Item]
    left_out: list[str]
    named: int


def find_dataset(data: Path, suffixes: Sequence[str] = READABLE_SUFFIXES, kind: str = "audio") -> DataSet:
    """The files of a folder or manifest, or the recordings in shards.

    In a folder the text of a recording is the name of the folder that it lies in, and its domain the first folder
    below ``data`` on the way to it; both are ``""`` for files that lie directly in ``data``. In a manifest a file may
    have several lines with different texts or domains; a line that repeats another counts once. Lines whose file does
    not exist, or whose ``"seconds"`` are more than the file can hold, are left out.

    Args:
        data: a folder, a manifest (whatever its suffix), a shard, a folder of shards, or a pattern of shards.
        suffixes: of the files to look for in a folder.
        kind: what such files are called in messages.

    Raises:
        TrainingError: ``data`` does not exist, holds no such files, or is one such file.
        InputError: a manifest is broken (file and line are named).
    """
    if is_shards(data):
        return _in_shards(data, kind)
    if data.is_dir():
        files, failures = search_folder(data, suffixes)
        left_out = [failure.message for failure in failures]
        if not files:
            reason = f"; the first problem: {left_out[0]}" if left_out else ""
            raise TrainingError(
                f"{data}: the folder holds no {kind} files ({', '.join(suffixes)}), nor do the folders in it{reason}"
            )
        return DataSet([item_of(Source(data / file, file)) for file in files], left_out, len(files) + len(left_out))
    if not data.exists():
        raise TrainingError(
            f"{data}: no such folder or manifest; give a folder of {kind} files, a JSONL manifest or shards (.tar)"
        )
    if data.suffix.lower() in suffixes:
        article = "an" if kind[0] in "aeiou" else "a"
        raise TrainingError(f"{data} is {article} {kind} file; give the folder that holds it, or a JSONL manifest")
    return _in_manifest(data)


def _in_shards(data: Path, kind: str) -> DataSet:
    shards = open_shards(data)
    if shards.kind != RECORDINGS:
        raise TrainingError(f"{data} holds {shards.kind}, and {kind} files are needed here; give recordings")
    items, left_out = [], list(shards.left_out)
    for sample in shards.samples:
        path, name = sample.member.shard / sample.key, sample.values.get("path")
        if not isinstance(name, str) or not name:
            name = f"{sample.member.shard.name}/{sample.key}"
        try:
            item = describe(path, name, sample.values, str(path), member=sample.member)
        except InputError as error:  # a shard cannot be edited as a manifest can: the rest of it is used
            left_out.append(str(error))
            continue
        if _too_long(item, sample.member.size):
            left_out.append(_say_too_long(item, str(path), sample.member.size))
        else:
            items.append(item)
    if not items:
        reason = f"; the first problem: {left_out[0]}" if left_out else ""
        raise TrainingError(f"{data}: the shards hold no recordings{reason}")
    return DataSet(items, left_out, len(shards.samples))


def _in_manifest(path: Path) -> DataSet:
    items: list[Item] = []
    first_lines: dict[tuple[str, str, str, str], int] = {}
    missing: list[Item] = []
    repeated: list[tuple[Item, int]] = []
    left_out: list[str] = []
    for item in read_manifest(path):
        first = first_lines.setdefault((os.path.normpath(item.path), item.text, item.label, item.domain), item.line)
        if first != item.line:
            repeated.append((item, first))
            continue
        try:
            size = os.stat(item.path).st_size
        except (OSError, ValueError):  # ValueError: no file can have such a name
            missing.append(item)
            continue
        if _too_long(item, size):
            left_out.append(_say_too_long(item, f"{path}:{item.line}", size))
        else:
            items.append(item)
    if missing:
        count, first_missing = len(missing), missing[0]
        left_out.append(
            f"{path}: {count} of its {len(first_lines)} files {'does' if count == 1 else 'do'} not exist, the first: "
            f"{first_missing.name} (line {first_missing.line}), looked for as {first_missing.path}"
        )
    if repeated:
        item, first = repeated[0]
        left_out.append(
            f"{path}: {len(repeated)} lines repeat another line, the first: {item.name} (line {item.line} repeats line "
            f"{first}); each counts once"
        )
    return DataSet(items, left_out, len(first_lines))


def _too_long(item: Item, size: int) -> bool:
    """Whether a file of ``size`` bytes cannot have the item's seconds. Such a mistake would otherwise cost memory: the
    crops of an epoch are planned by the length of the recordings."""
    return item.seconds is not None and item.seconds > max(size, 1) * _MAX_SECONDS_PER_BYTE


def _say_too_long(item: Item, place: str, size: int) -> str:
    return (
        f'{place}: "seconds" is {item.seconds:g}, and {item.name} has only {size} bytes; correct "seconds", or leave '
        "it out"
    )
