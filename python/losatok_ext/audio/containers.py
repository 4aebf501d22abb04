"""What a container declares, to check that a file is complete.

libsndfile reads a truncated WAV, AIFF, AU, W64, CAF or Ogg file without an error and returns what is left. These
formats declare their length, and this module reads only that.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from losatok_ext.audio.ogg_pages import MAGIC as OGG
from losatok_ext.audio.ogg_pages import SeekableBytes, damaged_pages

_UNKNOWN_SIZE = 0x7FFF0000
"""A 32-bit chunk size of at least this was written to a pipe, by a program that could not fill it in afterwards."""
_UNKNOWN_LONG = 1 << 62
"""The same for a 64-bit size; -1 has the same meaning."""
_MAX_CHUNKS = 1 << 16
"""Chunks that are looked at. A file of normal make has fewer than a hundred."""
CAF, W64, AU = b"caff", b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb", (b".snd", b"dns.")
"""The first bytes of a file, of AU with the higher or the lower byte first."""

AudioSource = str | os.PathLike[str] | SeekableBytes
"""The name of a file, or an open, seekable file."""


@contextmanager
def _opened(source: AudioSource) -> Iterator[SeekableBytes]:
    """The file, placed at its first byte. A file that was open before stays open."""
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            yield file
    else:
        source.seek(0)
        yield source


def container_damage(source: AudioSource) -> str | None:
    """What a file lacks of what its container declares, in words; None where it is whole or its format declares
    nothing.

    Of RIFF, RIFX and RF64 (WAV), FORM (AIFF), W64, CAF and AU only the headers of chunks are read, for the size of the
    audio data. Of Ogg all pages are read. FLAC and MP3 declare frames instead, which the decoder compares.

    Raises:
        OSError: the file cannot be read.
    """
    with _opened(source) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        magic = file.read(12)
        if magic[:4] == OGG:
            return damaged_pages(file, size)
        begin, length = _audio_data(file, magic, size) or (size, 0)
    missing = min(length, begin + length - size)
    return f"its header promises {missing} bytes more than it holds" if missing > 0 else None


def kind_by_first_bytes(source: AudioSource) -> str | None:
    """The audio format that the first bytes of a file stand for ("WAV", "FLAC", "Ogg", "AIFF", "AU", "W64", "CAF" or
    "MP3"), or None.

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
        (OGG, "Ogg"),
        (b"FORM", "AIFF"),
        (AU[0], "AU"),
        (AU[1], "AU"),
        (W64, "W64"),
        (CAF, "CAF"),
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


def _audio_data(file: SeekableBytes, magic: bytes, size: int) -> tuple[int, int] | None:
    """(first byte, number of bytes) of the audio data that a file declares; None where it does not say."""
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64") and magic[8:] == b"WAVE":
        return _in_riff(file, size, b"data", ">" if magic[:4] == b"RIFX" else "<")
    if magic[:4] == b"FORM" and magic[8:11] == b"AIF":
        return _in_riff(file, size, b"SSND", ">")
    if magic[:4] in AU and len(magic) >= 12:
        begin, length = struct.unpack(">II" if magic[:4] == AU[0] else "<II", magic[4:12])
        return (begin, length) if length < _UNKNOWN_SIZE else None
    if magic == W64:
        return _in_chunks(file, size, 40, "<16sq", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 8)
    if magic[:4] == CAF:
        return _in_chunks(file, size, 8, ">4sq", b"data", 1)
    return None


def _in_riff(file: SeekableBytes, size: int, wanted: bytes, order: str) -> tuple[int, int] | None:
    position = 12
    long_size: int | None = None
    for _ in range(_MAX_CHUNKS):
        if position + 8 > size:
            break
        file.seek(position)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        position += 8
        if name == b"ds64" and position + 16 <= size:  # RF64: 64-bit sizes of the whole and of the data chunk
            long_size = struct.unpack("<QQ", file.read(16))[1]
        if name == wanted:
            if length >= _UNKNOWN_SIZE:
                return None if long_size is None else (position, long_size)
            return position, length
        position += length + (length & 1)
    return None


def _in_chunks(
    file: SeekableBytes, size: int, position: int, form: str, wanted: bytes, alignment: int
) -> tuple[int, int] | None:
    """The same for chunks with 64-bit sizes from ``position`` on. In W64 (aligned to 8 bytes) a size includes that of
    the chunk's header, in CAF (not aligned) it does not."""
    header = struct.calcsize(form)
    for _ in range(_MAX_CHUNKS):
        if position + header > size:
            break
        file.seek(position)
        name, length = struct.unpack(form, file.read(header))
        if alignment > 1:
            length -= header
        if name == wanted:
            return (position + header, length) if 0 <= length < _UNKNOWN_LONG else None
        if length < 0:
            break
        position += header + length
        position += -position % alignment
    return None
