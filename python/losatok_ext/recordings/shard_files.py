"""Shards, tar files in the layout of WebDataset: finding their clips, and reading any part of them directly.

A clip is the files of one key that follow each other: ``KEY.flac`` (or another audio file) and ``KEY.json``, or
``KEY.safetensors`` and ``KEY.json``, where ``KEY.flac`` may hold the audio that the tokens were computed from;
``KEY.txt`` may give its text.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from losatok_ext.audio.files import READABLE_SUFFIXES
from losatok_ext.errors import ShardError, UserError

if TYPE_CHECKING:
    from typing_extensions import Self

TOKEN_SUFFIX = ".safetensors"
_MAX_JSON = 1 << 20  # bytes; a clip's takes a few hundred, as does an extended header of a tar file
_MAX_FAULTS = 1000  # headers that cannot be read, before the rest of a shard is given up
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_BAD_HEADER = (tarfile.TarError, ValueError, IndexError, OverflowError)
"""What tarfile raises for damaged headers: it does not check those of sparse files."""


@dataclass(frozen=True)
class Member:
    """A file in a shard: ``size`` bytes from byte ``offset`` on, and their CRC-32 where it is known."""

    shard: Path
    name: str
    offset: int
    size: int
    crc32: int | None = None

    def read(self) -> bytes:
        """The complete content, checked against its CRC-32.

        Raises:
            ShardError: the shard cannot be read, ends too early, or the CRC-32 does not match.
        """
        with self.open() as file:
            content = file.read()
        if self.crc32 is not None and zlib.crc32(content) != self.crc32:
            raise ShardError(
                f"{self.shard}: {self.name} is damaged: it does not match its checksum; write the shard again"
            )
        return content

    def open(self) -> BinaryIO:
        """The content as a seekable file. Only the parts that are asked for are read, and only the size is checked.

        Raises:
            ShardError: the shard cannot be read or ends too early.
        """
        try:
            return io.BufferedReader(_Window(self.shard, self.offset, self.size))
        except (OSError, EOFError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            raise ShardError(f"{self.shard}: {self.name} cannot be read: {problem}") from None


class _Window(io.RawIOBase):
    """The bytes ``offset`` to ``offset + size`` of a file, as a file of their own."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._offset, self._size, self._place = offset, size, 0
        if self._file.seek(0, io.SEEK_END) < offset + size:
            self._file.close()
            raise EOFError("the shard is truncated")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the beginning")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        left = max(self._size - self._place, 0)
        self._file.seek(self._offset + self._place)
        count = self._file.readinto(view[: min(left, len(view))]) or 0
        self._place += count
        return count

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        super().close()


@dataclass(frozen=True)
class Sample:
    """A clip of a shard: its audio or tokens, and the values of its JSON file (and ``"text"`` from a text file)."""

    key: str
    member: Member
    values: dict[str, Any] = field(default_factory=dict)
    audio: Member | None = None
    """For tokens: the audio that they were computed from, where it is kept."""


@dataclass(frozen=True)
class ShardContent:
    """The clips of one shard, and sentences about the parts of it that cannot be used."""

    samples: list[Sample]
    left_out: list[str]


def scan_shard(path: Path) -> ShardContent:
    """Find the clips of a shard by its headers. Damaged parts are left out, and the clips after them are found.

    Raises:
        UserError: webdataset is not installed.
    """
    try:
        from webdataset.tariterators import base_plus_ext
    except ImportError as error:
        raise UserError(
            f"shards without an index need webdataset ({error}); pip install 'losatok-ext[train]'"
        ) from error
    left_out: list[str] = []
    samples: list[Sample] = []
    group: dict[str, Member] = {}
    current: str | None = None

    def finish() -> None:
        if current is not None and group:
            sample = _sample(path, current, group, left_out)
            if sample is not None:
                samples.append(sample)
            group.clear()

    for member in _members(path, left_out):
        key, suffix = base_plus_ext(member.name)
        if key is None:
            continue  # like WebDataset: a file without a suffix belongs to no clip
        if key != current:
            finish()
            current = key
        group[suffix] = member
    finish()
    return ShardContent(samples, left_out)


class _Header(tarfile.TarInfo):
    """A header of a tar file whose sizes are possible."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As the class above, but a negative size is refused, and so is an extended header that is too long to read."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED and header.size > _MAX_JSON):
            raise tarfile.HeaderError(f"a size of {header.size} bytes")
        return header


def _members(path: Path, left_out: list[str]) -> Iterator[Member]:
    """The regular files in a tar file. Damaged headers are skipped, and the next valid header is searched for."""
    try:
        size = path.stat().st_size
        if size == 0:
            left_out.append(f"{path} cannot be read as a tar file: empty file")
        with path.open("rb") as file:
            yield from _members_of(path, file, size, left_out)
    except OSError as error:
        left_out.append(f"{path} cannot be read as a tar file: {error.strerror or error}")


def _members_of(path: Path, file: BinaryIO, size: int, left_out: list[str]) -> Iterator[Member]:
    """The same for an open file of ``size`` bytes."""
    expected = place = 0  # where the next header should be, and where it is looked for
    for _ in range(_MAX_FAULTS):
        file.seek(place)
        try:
            with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True, tarinfo=_Header) as tar:
                while expected < size:
                    info = tar.next()
                    if info is not None and (info.size < 0 or tar.offset <= expected):
                        raise tarfile.HeaderError(f"a size of {info.size} bytes")
                    start = size if info is None else info.offset
                    if start > expected and _holds_data(file, expected, start):
                        left_out.append(f"{path} is damaged at byte {expected}: {start - expected} bytes are skipped")
                    if info is None:
                        return
                    if info.issparse():
                        left_out.append(f"{path}: {_shown(info.name)} is stored with holes; pack it without --sparse")
                    elif info.offset_data + info.size > size:
                        left_out.append(f"{path} is truncated: {_shown(info.name)} is cut off")
                        return
                    elif info.isfile():
                        yield Member(path, info.name, info.offset_data, info.size)
                    expected = tar.offset
                    tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps all of them in memory
            if size:
                left_out.append(f"{path} is truncated: the blocks that mark its end are missing")
            return
        except RecursionError:  # a chain of hundreds of extended headers, which tarfile reads by recursion
            break
        except _BAD_HEADER:
            place = max(place, expected) + tarfile.BLOCKSIZE
    left_out.append(f"{path} is damaged at byte {expected}: what follows is left out")


def _holds_data(file: BinaryIO, start: int, stop: int) -> bool:
    """Whether there is anything but zeros between these bytes; zeros end a tar file."""
    place = file.tell()
    file.seek(start)
    left = stop - start
    found = False
    while left > 0 and not found:
        block = file.read(min(left, 1 << 20))
        found = not block or any(block)
        left -= len(block)
    file.seek(place)
    return found


def _sample(path: Path, key: str, group: dict[str, Member], left_out: list[str]) -> Sample | None:
    """The clip that the files of one key make, or None; a sentence in ``left_out`` says why."""
    audio, tokens = (
        [member for name, member in sorted(group.items()) if f".{name.lower()}".endswith(suffixes)]
        for suffixes in (READABLE_SUFFIXES, TOKEN_SUFFIX)
    )
    if not audio and not tokens:
        left_out.append(f"{path}: {_shown(key)} has no audio ({', '.join(sorted(group))})")
        return None
    try:
        values = _json(group["json"]) if "json" in group else {}
        if "txt" in group and not {"text", "label", "labels"} & values.keys():
            values["text"] = group["txt"].read().decode().strip()
    except (ShardError, ValueError, RecursionError) as error:
        left_out.append(f"{path}: the description of {_shown(key)} cannot be read: {error}")
        return None
    if tokens and (not audio or isinstance(values.get("facts"), dict)):  # the facts say what computed the tokens
        return Sample(key, tokens[0], values, audio[0] if audio else None)
    return Sample(key, audio[0], values)


def _json(member: Member) -> dict[str, Any]:
    if member.size > _MAX_JSON:
        raise ValueError(f"{member.name} has {member.size} bytes, too many for a description")
    values = json.loads(member.read())
    if not isinstance(values, dict):
        raise ValueError(f"{member.name} holds no object")
    return values


def _shown(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:77]}..."
