"""Finds shards and reads the index beside them. With an index any clip is read at once; without one the headers of the
shards are read from beginning to end.

``index.json`` is one object: ``"format"``, ``"version"``, ``"kind"``; ``"facts"``, what all clips have in common (of
tokens the fingerprint of what computed them, their width and rate); ``"shards"``, a list of objects with ``"name"``,
``"bytes"``, ``"left_out"`` (sentences on recordings that are not in it) and ``"clips"``, a list of objects with
``"key"``, ``"file"``, ``"offset"``, ``"size"``, ``"crc32"`` and ``"values"``, what the clip's JSON file holds. A clip
of tokens whose audio is kept also has ``"audio"``, an object with that file's ``"file"``, ``"offset"``, ``"size"`` and
``"crc32"``. ``"left_out"``, ``"megabytes"``, ``"digest"`` and ``"count"`` tell the writer of the shards whether it
would write the same ones.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from losatok_ext.audio.files import READABLE_SUFFIXES
from losatok_ext.errors import TrainingError, UserError
from losatok_ext.formats.latent_files import SUFFIX as LATENT_SUFFIX
from losatok_ext.recordings.find import search_folder
from losatok_ext.recordings.shard_files import Member, Sample, ShardContent, scan_shard

SUFFIX = ".tar"
INDEX, PLAN = "index.json", "plan.json"
FORMAT, VERSION = "losatok-shards", 1
RECORDINGS, FEATURES, LATENTS = "recordings", "teacher features", "latents"
KINDS = (RECORDINGS, FEATURES, LATENTS)
AUDIO_RATE = "audio_rate"
"""A fact of tokens that are stored with the audio they were computed from: the rate of that audio in Hz."""

_BEGIN = re.compile(
    f'{{"format":"{FORMAT}","version":{VERSION},"kind":"({"|".join(KINDS)})"'.encode()
)  # of an index that this module wrote
_BRACES = re.compile(r"\{[^{}]*(?:\.\.|,)[^{}]*\}")


@dataclass(frozen=True)
class Shards:
    """What :func:`open_shards` found."""

    kind: str
    """One of :data:`KINDS`."""
    facts: dict[str, Any]
    """What all clips have in common."""
    samples: list[Sample]
    left_out: list[str] = field(default_factory=list)
    """Sentences on shards and clips that cannot be used."""


def is_shards(data: Path) -> bool:
    """Whether ``data`` is a shard, a folder with shards in it, or a pattern of shards, ``shards-{000..012}.tar``."""
    if data.is_dir():
        return any(_visible(path) for path in data.glob(f"*{SUFFIX}")) or (data / PLAN).is_file()
    return data.suffix.lower() == SUFFIX and (data.is_file() or bool(_BRACES.search(str(data))))


def shards_kind(data: Path) -> str | None:
    """What the shards of ``data`` hold, one of :data:`KINDS`; None where ``data`` is something else.

    Raises:
        TrainingError: there is no shard, an index is damaged, or the shards are not finished.
        UserError: webdataset is needed, and not installed.
    """
    if not is_shards(data):
        return None
    folder = data if data.is_dir() else _expanded(data)[0].parent
    try:
        with (folder / INDEX).open("rb") as file:
            begin = _BEGIN.match(file.read(200))
    except OSError:
        begin = None
    if begin is not None:  # an index may be long: its beginning is enough here
        return begin[1].decode()
    paths, indices = _find(data)
    index = indices[folder]
    if index is not None:
        return index["kind"]
    for path in paths:
        content = scan_shard(path) if path.is_file() else ShardContent([], [])
        if content.samples:
            return _facts(content.samples[0])[0]
    return RECORDINGS


def open_shards(data: Path) -> Shards:
    """The clips in shards, ordered by the shards' names and their place in each.

    Raises:
        TrainingError: there is no shard, the folder also holds single files to train on, the shards hold different
            kinds of things, an index is damaged, or the shards are not finished.
        UserError: webdataset is needed, and not installed.
    """
    if data.is_dir() and search_folder(data, (*READABLE_SUFFIXES, LATENT_SUFFIX))[0]:
        raise TrainingError(
            f"{data} holds both shards (.tar) and single files to train on; keep them in folders of their own, or name "
            f"the shards: {data}/NAME-{{000000..000012}}.tar"
        )
    paths, indices = _find(data)
    samples: list[Sample] = []
    left_out: list[str] = []
    found: tuple[str, dict[str, Any]] | None = None
    for folder, index in indices.items():
        if index is not None:
            left_out += index["left_out"]
            known = (index["kind"], index["facts"])
            found = found or known
            _check_alike(data, folder, found, known)

    def read(path: Path) -> tuple[ShardContent, bool]:
        """The clips of a shard, and whether an index lists them."""
        index = indices[path.parent]
        listed = None if index is None else index["shards"].get(path.name)
        if not path.is_file():
            clips = "" if listed is None else f", and with it {len(listed['clips'])} clips"
            return ShardContent([], [f"{path} does not exist{clips}"]), True
        if listed is not None and path.stat().st_size == listed["bytes"]:
            return ShardContent([_listed_sample(path, clip) for clip in listed["clips"]], listed["left_out"]), True
        content = scan_shard(path)
        if listed is not None:
            content = ShardContent(_with_checksums(content.samples, listed["clips"]), content.left_out)
        return content, False

    with ThreadPoolExecutor() as pool:  # several waits for a slow disk at once
        contents = list(pool.map(read, paths))
    for path, (content, listed) in zip(paths, contents, strict=True):
        for sample in () if listed else content.samples:
            known = _facts(sample)
            found = found or known
            _check_alike(data, path, found, known)
        samples += content.samples
        left_out += content.left_out
    kind, facts = found or (RECORDINGS, {})
    return Shards(kind, facts, samples, left_out)


def _check_alike(data: Path, place: Path, one: tuple[str, dict], other: tuple[str, dict]) -> None:
    if one != other:
        raise TrainingError(
            f"{data}: {place} holds {other[0]} {json.dumps(other[1])}, and the shards before it {one[0]} "
            f"{json.dumps(one[1])}; give those that belong together"
        )


def _facts(sample: Sample) -> tuple[str, dict[str, Any]]:
    """The kind and the facts in the clip's own JSON file, for shards without an index."""
    facts = sample.values.get("facts")
    facts = dict(facts) if isinstance(facts, Mapping) else {}
    kind = facts.pop("kind", RECORDINGS)
    return (kind if kind in KINDS else RECORDINGS), facts


def _visible(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _find(data: Path) -> tuple[list[Path], dict[Path, dict[str, Any] | None]]:
    """The shards that ``data`` names, and the index of each folder that they lie in. The shards of a folder are sorted,
    and include those that its index lists but that do not exist."""
    if not data.is_dir():
        paths = _expanded(data)
        return paths, {folder: read_index(folder) for folder in dict.fromkeys(path.parent for path in paths)}
    if (data / PLAN).is_file():
        raise TrainingError(
            f"{data}: the shards are not finished; let the command that writes them end, or start it again: it goes on "
            "where it stopped"
        )
    index = read_index(data)
    names = {path.name for path in data.glob(f"*{SUFFIX}") if _visible(path)}
    names.update(index["shards"] if index else ())
    return [data / name for name in sorted(names)], {data: index}


def _expanded(data: Path) -> list[Path]:
    """The shard ``data``, or the shards that its braces stand for."""
    if not _BRACES.search(str(data)) or data.is_file():
        return [data]
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise UserError(f"names in braces need webdataset ({error}); pip install 'losatok-ext[train]'") from error
    try:
        paths = [Path(name) for name in braceexpand(str(data))]
    except ValueError as error:
        raise TrainingError(f"{data}: the braces cannot be read: {error}") from None
    if not any(path.is_file() for path in paths):
        raise TrainingError(f"{data}: none of these {len(paths)} shards exists, the first: {paths[0]}")
    return paths


def _listed_sample(path: Path, clip: Mapping[str, Any]) -> Sample:
    audio = clip.get("audio")
    return Sample(
        clip["key"],
        _listed_member(path, clip),
        dict(clip["values"]),
        None if audio is None else _listed_member(path, audio),
    )


def _with_checksums(samples: Sequence[Sample], clips: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """``samples`` that were found in a shard of another size than its index says, with the checksums that the index has
    for them: what was cut, or lost a part, is noticed where the clip is read."""
    listed = {clip["key"]: clip for clip in clips}

    def checked(member: Member, file: Mapping[str, Any] | None) -> Member:
        return member if file is None else dataclasses.replace(member, crc32=file.get("crc32"))

    result = []
    for sample in samples:
        clip = listed.get(sample.key)
        if clip is not None:
            audio = None if sample.audio is None else checked(sample.audio, clip.get("audio"))
            sample = dataclasses.replace(sample, member=checked(sample.member, clip), audio=audio)
        result.append(sample)
    return result


def _listed_member(path: Path, file: Mapping[str, Any]) -> Member:
    return Member(path, file["file"], file["offset"], file["size"], file.get("crc32"))


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a folder with ``shards`` by name, or None where it has none.

    Raises:
        TrainingError: it is damaged, or of another version.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        return None  # a file of another program
    if index.get("version") != VERSION:
        raise TrainingError(
            f"{path} is of version {index.get('version')!r}, and this losatok_ext reads version {VERSION}: upgrade "
            "losatok_ext, or remove the file to have the shards read without it"
        )
    problem = _problem(index)
    if problem is not None:
        raise _damaged(path, problem)
    return {**index, "shards": {shard["name"]: shard for shard in index["shards"]}}


def _damaged(path: Path, problem: str) -> TrainingError:
    return TrainingError(f"{path} is damaged ({problem}); remove it to have the shards read without it")


def _problem(index: dict[str, Any]) -> str | None:
    """What is wrong with an index, or None."""
    shards = index.get("shards")
    if index.get("kind") not in KINDS or not isinstance(index.get("facts"), dict):
        return "it has no valid kind or facts"
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        return "shards is not a list"
    for part in (index, *shards):
        left_out = part.get("left_out")
        if not isinstance(left_out, list) or not all(isinstance(sentence, str) for sentence in left_out):
            return "left_out is not a list of sentences"
    for shard in shards:
        name, size, clips = shard.get("name"), shard.get("bytes"), shard.get("clips")
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(SUFFIX):
            return f"{name!r:.60} is not the name of a shard"
        if not _count(size) or not isinstance(clips, list):
            return f"{name} has no valid size or list of clips"
        for clip in clips:
            if not isinstance(clip, dict) or not _clip_fits(clip, size):
                return f"a clip of {name} lies outside it"
    return None


def _clip_fits(clip: dict[str, Any], size: int) -> bool:
    audio = clip.get("audio")
    told = isinstance(clip.get("key"), str) and isinstance(clip.get("values"), dict)
    files = [clip] if audio is None else [clip, audio]
    return told and all(isinstance(file, dict) and _file_fits(file, size) for file in files)


def _file_fits(file: dict[str, Any], size: int) -> bool:
    offset, length, crc32 = file.get("offset"), file.get("size"), file.get("crc32")
    named = isinstance(file.get("file"), str)
    return named and _count(offset) and _count(length) and (crc32 is None or _count(crc32)) and offset + length <= size


def _count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0
