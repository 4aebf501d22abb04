"""Writing shards clip by clip, so that the same call goes on where an earlier one was stopped.

During the work the folder holds ``plan.json``, the finished shards, and beside each shard a JSON file with its entry of
the index. A shard is written under a temporary name, flushed and renamed before its entry is written. At the end all
entries are collected into ``index.json``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from losatok_ext.errors import TrainingError, UserError
from losatok_ext.files import atomic_path, locked_folder
from losatok_ext.recordings.shard_files import Member, Sample, scan_shard
from losatok_ext.recordings.shard_index import FORMAT, INDEX, PLAN, SUFFIX, VERSION, read_index
from losatok_ext.training.data.corpus import Clip, Corpus

AUDIO = "flac"
"""Suffix of the audio kept beside tokens."""


@dataclass(frozen=True)
class Packed:
    """The content of a clip in a shard."""

    suffix: str
    """Of its file, such as ``flac``."""
    content: bytes
    values: dict[str, Any]
    """What its JSON file says."""
    audio: bytes | None = None
    """Of tokens: the FLAC file that they were computed from, kept beside them."""


Produce = Callable[[Sequence[Clip], Callable[[int], None]], Iterable[Packed | str]]
"""Computes for each clip, in order, its content in the shard, or a sentence that says why there is none. Its second
argument is a function to call with the number of clips done since the last call."""

OnProgress = Callable[[int, int], None]
"""Called with the clips done and all clips."""


@dataclass
class ShardSummary:
    """The result of writing shards."""

    folder: Path
    shards: int
    """Number of all shards."""
    kept: int = 0
    """Number of shards that were finished before."""
    clips: int = 0
    """Number of clips in all shards."""
    seconds: float = 0.0
    """Seconds of audio of all clips."""
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    """One sentence per recording that is in no shard."""


def write_shards(
    folder: str | Path,
    kind: str,
    facts: Mapping[str, Any],
    corpus: Corpus,
    produce: Produce,
    clip_bytes: Callable[[Clip], float],
    shard_megabytes: float,
    on_progress: OnProgress | None = None,
) -> ShardSummary:
    """Write all clips of ``corpus`` into shards ``folder/shards-XXXXXX.tar`` with ``folder/index.json``.

    The same call again keeps finished shards, whatever ended the one before. Equal clips give equal bytes.

    Args:
        folder: of the shards, made if needed.
        kind: what they hold, one of ``shard_index.KINDS``.
        facts: what all clips have in common; with another kind, other facts or other clips a folder is refused.
        corpus: the clips.
        produce: makes of clips what shards hold; called once per shard that is not there yet.
        clip_bytes: about how many bytes a clip will take.
        shard_megabytes: about how many a shard should.
        on_progress: called now and then.

    Raises:
        TrainingError: the folder holds other shards, cannot be written, or another process is writing there.
    """
    folder = Path(folder)
    parts = _divide(corpus.clips, clip_bytes, shard_megabytes * 1e6)
    plan = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "facts": dict(facts),
        "megabytes": float(shard_megabytes),
        "digest": corpus.digest(texts=True, domains=True),
        "count": len(parts),
    }
    summary = ShardSummary(folder, len(parts), left_out=list(corpus.skipped))
    done = 0

    def advance(clips: int) -> None:
        nonlocal done
        done += clips
        if on_progress is not None:
            on_progress(done, len(corpus.clips))

    with _locked(folder):
        listed = _begin(folder, plan)
        entries: list[dict[str, Any]] = []
        first = 0
        for number, clips in enumerate(parts):
            path = folder / f"shards-{number:06d}{SUFFIX}"
            entry = _finished(path, listed)
            if entry is None:
                _write_json(folder / PLAN, plan)
                told = {"kind": kind, **facts} if facts else {}
                entry = _write(path, first, clips, told, partial(produce, clips, advance))
            else:
                summary.kept += 1
                advance(len(clips))
            entries.append(entry)
            first += len(clips)
        if (folder / PLAN).exists():
            _write_json(folder / INDEX, {**plan, "left_out": list(corpus.skipped), "shards": entries})
            for number in range(len(parts)):
                _sidecar(folder / f"shards-{number:06d}{SUFFIX}").unlink(missing_ok=True)
            (folder / PLAN).unlink()
    for entry in entries:
        summary.left_out += entry["left_out"]
        summary.clips += len(entry["clips"])
        summary.bytes += entry["bytes"]
        summary.seconds += sum(clip["values"]["seconds"] for clip in entry["clips"])
    return summary


def _divide(clips: Sequence[Clip], clip_bytes: Callable[[Clip], float], shard_bytes: float) -> list[tuple[Clip, ...]]:
    """The clips of each shard, in order; a new shard begins where the next clip would exceed ``shard_bytes``."""
    parts: list[list[Clip]] = [[]]
    size = 0.0
    for clip in clips:
        own = clip_bytes(clip)
        if parts[-1] and size + own > shard_bytes:
            parts.append([])
            size = 0.0
        parts[-1].append(clip)
        size += own
    return [tuple(part) for part in parts]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    in_use = TrainingError(f"{folder}: another process is writing shards there; wait for it, or choose another folder")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(folder, in_use))
        except OSError as error:
            raise TrainingError(f"{folder}: cannot write the folder of shards: {error.strerror}") from None
        for leftover in folder.glob(".shards-*"):
            leftover.unlink()
        yield


def _begin(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Check that the folder holds no other shards; returns the entries of its index by name, where it is finished."""
    index = read_index(folder)
    found: dict[str, Any] | None = None
    if (folder / PLAN).is_file():
        try:
            found = dict(json.loads((folder / PLAN).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise TrainingError(f"{folder / PLAN} is damaged ({error}); remove the folder to begin anew") from None
    elif index is not None:
        found = index
    if found is None:
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise TrainingError(f"{folder} holds other files already; choose a new folder for the shards")
        return {}
    changed = [name for name in plan if found.get(name) != plan[name]]
    if changed:
        told = [
            f"{n} was {json.dumps(found.get(n))}, is now {json.dumps(plan[n])}"
            for n in changed
            if n not in ("digest", "count")
        ]
        raise TrainingError(
            f"{folder} holds shards of other data or options ({'; '.join(told) or 'other recordings'}); use the same "
            "to go on with them, or choose another folder"
        )
    return {} if index is None else index["shards"]


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _finished(path: Path, listed: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The entry of a finished shard in the index; None where the shard is not finished."""
    entry = listed.get(path.name)
    try:
        if entry is None:
            entry = json.loads(_sidecar(path).read_bytes().decode("utf-8", "surrogatepass"))
        return entry if path.stat().st_size == entry["bytes"] else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # a sidecar is written whole: this one is of another program, and the shard is written again


def _write(
    path: Path,
    first: int,
    clips: Sequence[Clip],
    facts: Mapping[str, Any],
    produce: Callable[[], Iterable[Packed | str]],
) -> dict[str, Any]:
    """Write one shard, whose first clip has the number ``first``, then its entry of the index, which is returned."""
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise UserError(f"writing shards needs webdataset ({error}); pip install 'losatok-ext[train]'") from error
    left_out: list[str] = []
    listed: dict[str, dict[str, Any]] = {}
    sums: dict[str, dict[str, int]] = {}
    try:
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
                for number, (clip, packed) in enumerate(zip(clips, produce(), strict=True), start=first):
                    if isinstance(packed, str):
                        left_out.append(packed)
                        continue
                    key, values = f"{number:08d}", {"path": clip.name, **packed.values}
                    values.update({name: text for name in ("text", "domain", "label") if (text := getattr(clip, name))})
                    told = {**values, "facts": facts} if facts else values
                    audio = {} if packed.audio is None else {AUDIO: packed.audio}
                    files = {packed.suffix: packed.content, **audio, "json": json.dumps(told).encode()}
                    writer.write({"__key__": key, **files})
                    sums[key] = {name: zlib.crc32(content) for name, content in files.items()}
                    listed[key] = values
            samples = scan_shard(temporary).samples
            size = temporary.stat().st_size
        assert [sample.key for sample in samples] == list(listed)
        indexed = [_indexed(sample, sums[sample.key], listed[sample.key]) for sample in samples]
        entry = {"name": path.name, "bytes": size, "left_out": left_out, "clips": indexed}
        _write_json(_sidecar(path), entry)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written: {error.strerror or error}; make room, and start the same command again: "
            "finished shards are kept"
        ) from error
    return entry


def _indexed(sample: Sample, sums: Mapping[str, int], values: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a clip in the index, given the CRC-32 of each of its files by suffix."""

    def place(member: Member) -> dict[str, Any]:
        crc32 = sums[member.name.rpartition(".")[2]]
        return {"file": member.name, "offset": member.offset, "size": member.size, "crc32": crc32}

    audio = {} if sample.audio is None else {"audio": place(sample.audio)}
    return {"key": sample.key, **place(sample.member), "values": values, **audio}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, separators=(",", ":")), encoding="utf-8")
