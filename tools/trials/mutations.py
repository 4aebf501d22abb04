"""Ways to damage a file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

NUMBERS = ("0", "-1", "1e300", "-1e300", "NaN", "Infinity", str(2**31), str(2**63), str(-(2**63)), "1" * 400, "1048576")
TEXTS = ('""', "null", "true", "[]", "{}", '"\\u0000"', '"\\ud800"', '"../../x"', '"' + "x" * 70_000 + '"', "[[[[1]]]]")
INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def _place(raw: bytes, chance: random.Random) -> int:
    """A position; as often among the first bytes, where headers are, as anywhere."""
    return chance.randrange(min(len(raw), 256) if chance.random() < 0.5 else len(raw))


def flip(raw: bytes, chance: random.Random) -> bytes:
    """Some bits the other way round."""
    new = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 8, 100))):
        new[_place(raw, chance)] ^= 1 << chance.randrange(8)
    return bytes(new)


def cut(raw: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return raw[: _place(raw, chance)]


def continued(raw: bytes, chance: random.Random) -> bytes:
    """Bytes after the end: zeros, noise, or the file once more."""
    return raw + chance.choice((bytes(chance.randrange(1, 5000)), chance.randbytes(chance.randrange(1, 5000)), raw))


def blank(raw: bytes, chance: random.Random) -> bytes:
    """A part became zeros, as after a crash of a file system."""
    start = _place(raw, chance)
    stop = min(len(raw), start + chance.choice((1, 16, 512, 4096, len(raw))))
    return raw[:start] + bytes(stop - start) + raw[stop:]


def noise(raw: bytes, chance: random.Random) -> bytes:
    """A part became noise."""
    start = _place(raw, chance)
    stop = min(len(raw), start + chance.choice((1, 4, 64, 2048)))
    return raw[:start] + chance.randbytes(stop - start) + raw[stop:]


def lost(raw: bytes, chance: random.Random) -> bytes:
    """A part in the middle is missing."""
    start = _place(raw, chance)
    return raw[:start] + raw[start + chance.choice((1, 2, 7, 512, 4096)) :]


def twice(raw: bytes, chance: random.Random) -> bytes:
    """A part is there twice."""
    start = _place(raw, chance)
    stop = start + chance.choice((1, 16, 512, 4096))
    return raw[:stop] + raw[start:]


def extreme(raw: bytes, chance: random.Random) -> bytes:
    """A number somewhere became an extreme one."""
    width = chance.choice((1, 2, 4, 8))
    number = (chance.choice(INTEGERS) & (256**width - 1)).to_bytes(width, chance.choice(("little", "big")))
    start = _place(raw, chance)
    return (raw[:start] + number + raw[start + width :])[: max(len(raw), start + width)]


def empty(raw: bytes, chance: random.Random) -> bytes:
    """Nothing is left, or a few bytes of something else."""
    return chance.choice((b"", b"\0", b"RIFF", b"OggS" * 9, b"\xff\xfe", b"{", b"\x80\x04.", chance.randbytes(300)))


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    flip,
    cut,
    continued,
    blank,
    noise,
    lost,
    twice,
    extreme,
    extreme,
    empty,
)


def another_value(raw: bytes, chance: random.Random) -> bytes:
    """In a text: another number or text in place of a value."""
    text = raw.decode("utf-8", "surrogateescape")
    found = list(re.finditer(r'-?\d+(\.\d+)?([eE][-+]?\d+)?|"[^"\n]*"|\b(true|false|null)\b', text))
    if not found:
        return empty(raw, chance)
    one = chance.choice(found)
    value = chance.choice((*NUMBERS, *TEXTS))
    return (text[: one.start()] + value + text[one.end() :]).encode("utf-8", "surrogateescape")


def nested(raw: bytes, chance: random.Random) -> bytes:
    """In a text: a value that is very deep, or repeats itself very often."""
    bombs = (
        "[" * 100_000,
        '{"a":' * 50_000,
        "a: &a [x,x]\nb: &b [*a,*a]\n" + "".join(f"c{i}: &c{i} [*b,*b,*b,*b]\n" for i in range(50)),
        "? " * 5_000,
        "&a [*a]",
    )
    start = chance.randrange(len(raw) + 1)
    return raw[:start] + chance.choice(bombs).encode() + raw[start:]


def lines(raw: bytes, chance: random.Random) -> bytes:
    """In a text: lines are missing, twice, or in another order."""
    parts = raw.splitlines(keepends=True) or [raw]
    chance.shuffle(parts)
    return b"".join(chance.choices(parts, k=chance.randrange(1, 2 * len(parts) + 1)))


TEXT = (*BYTES, another_value, another_value, another_value, another_value, nested, lines)


def mutate(raw: bytes, chance: random.Random, text: bool = False) -> bytes:
    """``raw``, damaged in one to three ways; ``text``: also in ways that only texts can be."""
    new = raw
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        new = chance.choice(TEXT if text else BYTES)(new or raw, chance)
    return new
