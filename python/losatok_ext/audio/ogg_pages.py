"""Whether an Ogg file is whole: each page has a number and a checksum, and the last one of a stream is marked.

libsndfile leaves out pages that are damaged or missing, and takes the last page that it finds for the end. Source of
the format: RFC 3533.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from losatok_ext.audio.reading import Readable

MAGIC = b"OggS"
_HEADER = 27  # bytes, before the table of segments
_END = 4  # the flag of a stream's last page
_MAX_TRIES = 1000  # places that look like a page and are none; a hostile file could have millions
_BLOCK = 1 << 20
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Page(NamedTuple):
    size: int
    """Bytes."""
    flags: int
    stream: int
    number: int


def damaged_pages(file: Readable, size: int) -> str | None:
    """What is damaged or missing in an Ogg file of ``size`` bytes, in words; None where it is whole.

    All of the file is read. What follows the last page of every stream, such as a tag, does not count.

    Raises:
        OSError: the file cannot be read.
    """
    following: dict[int, int] = {}  # stream -> the number of its next page
    ended: set[int] = set()
    bad = lost = tries = at = 0
    while at < size:
        page = _read_page(file, at)
        if page is None:
            tries += 1
            found = _find(file, at + 1, size) if tries <= _MAX_TRIES else size
            if found < size or not ended or ended != following.keys():
                bad += found - at
            at = found
            continue
        lost += (page.number - following.get(page.stream, 0)) % (1 << 32) if page.stream not in ended else 0
        following[page.stream] = (page.number + 1) % (1 << 32)
        (ended.add if page.flags & _END else ended.discard)(page.stream)
        at += page.size
    problems = []
    if bad:
        problems.append(f"{bad} of its {size} bytes are no valid Ogg pages")
    if lost:
        problems.append("1 Ogg page is missing" if lost == 1 else f"{lost} Ogg pages are missing")
    elif not bad and ended != following.keys():
        problems.append("its last Ogg page is missing")
    return " and ".join(problems) or None


def _read_page(file: Readable, at: int) -> _Page | None:
    """The page at byte ``at``; None where there is none, or its checksum does not match."""
    file.seek(at)
    header = file.read(_HEADER)
    if len(header) < _HEADER or header[:4] != MAGIC:
        return None
    flags, stream, number, checksum, segments = struct.unpack("<5xB8xIIIB", header)
    table = file.read(segments)
    body = file.read(sum(table))
    if len(table) < segments or len(body) < sum(table):
        return None
    if _checksum(header[:22] + bytes(4) + header[26:] + table + body) != checksum:
        return None
    return _Page(_HEADER + segments + len(body), flags, stream, number)


def _checksum(data: bytes) -> int:
    """CRC-32 as Ogg has it: that of zlib on mirrored bits, without the inversions before and after."""
    mirrored = zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED), "big")


def _find(file: Readable, start: int, size: int) -> int:
    """The first byte from ``start`` on where a page may begin; ``size`` where there is none."""
    while start < size:
        file.seek(start)
        block = file.read(_BLOCK)
        at = block.find(MAGIC)
        if at >= 0:
            return start + at
        if len(block) < _BLOCK:
            break
        start += _BLOCK - len(MAGIC) + 1
    return size
