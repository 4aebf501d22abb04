"""The length that a container declares, to check that a file is complete.

libsndfile reads a truncated WAV, AIFF or Ogg file without an error and returns what is left. These formats declare
their length, and this module reads only that.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_UNKNOWN_SIZE = 0x7FFF0000
"""A 32-bit chunk size of at least this was written to a pipe, by a program that could not fill it in afterwards."""
_OGG_PAGE_MAX = 27 + 255 + 255 * 255  # header, segment table, segments; bytes


AudioSource = str | os.PathLike[str] | BinaryIO
"""The name of a file, or an open, seekable file."""


@contextmanager
def _opened(source: AudioSource) -> Iterator[BinaryIO]:
    """The file, placed at its first byte. A file that was open before stays open."""
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            yield file
    else:
        source.seek(0)
        yield source


def missing_bytes(source: AudioSource) -> int:
    """Number of bytes of audio data that a file declares but does not have; 0 where its format does not declare any.

    Reads chunk headers only: RIFF/RIFX/RF64 (WAV) and FORM (AIFF) data chunks; the last page of an Ogg stream. FLAC and
    MP3 declare frames instead, which the decoder compares.

    Raises:
        OSError: the file cannot be read.
    """
    with _opened(source) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        magic = file.read(12)
        if magic[:4] in (b"RIFF", b"RIFX", b"RF64") and magic[8:] == b"WAVE":
            return _missing_in_chunks(file, size, b"data", ">" if magic[:4] == b"RIFX" else "<")
        if magic[:4] == b"FORM" and magic[8:11] == b"AIF":
            return _missing_in_chunks(file, size, b"SSND", ">")
        if magic[:4] == b"OggS":
            return _missing_in_ogg(file, size)
    return 0


def kind_by_first_bytes(source: AudioSource) -> str | None:
    """The audio format that the first bytes of a file stand for ("WAV", "FLAC", "Ogg", "AIFF", "MP3"), or None.

    Raises:
        OSError: the file cannot be read.
    """
    with _opened(source) as file:
        head = file.read(4096)
    for magic, name in (
        (b"RIFF", "WAV"),
        (b"RIFX", "WAV"),
        (b"RF64", "WAV"),
        (b"fLaC", "FLAC"),
        (b"OggS", "Ogg"),
        (b"FORM", "AIFF"),
    ):
        if head.startswith(magic):
            return name
    if head.startswith(b"ID3") or any(_is_mpeg_frame(head, i) for i in range(len(head) - 3)):
        return "MP3"
    return None


def _is_mpeg_frame(head: bytes, at: int) -> bool:
    """Whether an MPEG audio frame header may stand at ``at``: sync, and no reserved value."""
    return (
        head[at] == 0xFF
        and head[at + 1] & 0xE0 == 0xE0
        and head[at + 1] >> 3 & 3 != 1
        and head[at + 1] >> 1 & 3 != 0
        and head[at + 2] >> 4 not in (0, 15)
        and head[at + 2] >> 2 & 3 != 3
    )


def _missing_in_chunks(file: BinaryIO, size: int, wanted: bytes, order: str) -> int:
    position = 12
    long_size: int | None = None
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        position += 8
        if name == b"ds64" and position + 16 <= size:  # RF64: 64-bit sizes of the whole and of the data chunk
            long_size = struct.unpack("<QQ", file.read(16))[1]
        if name == wanted:
            if length >= _UNKNOWN_SIZE:
                length = long_size if long_size is not None else 0
            return max(0, length - (size - position))
        position += length + (length & 1)
    return 0


def _missing_in_ogg(file: BinaryIO, size: int) -> int:
    start = max(0, size - 2 * _OGG_PAGE_MAX)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return 0
    header = tail[at : at + 27]
    if len(header) < 27:
        return 27 - len(header)
    segments = header[26]
    table = tail[at + 27 : at + 27 + segments]
    if len(table) < segments:
        return segments - len(table)
    return max(0, 27 + segments + sum(table) - (len(tail) - at))
