"""What a container says about its own length: the check that a file was not cut off.

libsndfile reads a cut WAV, AIFF or Ogg file without complaint and returns what is left. These formats do say how long
they were meant to be; this module reads only that.
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
"""A 32-bit chunk size from here on was written by a program that could not go back to fill it in (a pipe)."""
_OGG_PAGE_MAX = 27 + 255 + 255 * 255  # header, segment table, segments; bytes


Source = str | os.PathLike[str] | BinaryIO
"""A file by its name, or its content as an open, seekable file."""


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    """The file from its first byte on; one that was open already stays so."""
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            yield file
    else:
        source.seek(0)
        yield source


def missing_bytes(source: Source) -> int:
    """How many bytes of audio data a file declares but lacks; 0 when it is whole or its format does not tell.

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


def kind_by_first_bytes(source: Source) -> str | None:
    """The audio format that the first bytes of a file announce ("WAV", "FLAC", "Ogg", "AIFF", "MP3"), or None.

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
