"""Codes as a stream of bits: each code takes the bits that its codebook needs, frame after frame, without gaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_FRAMES = 4096  # packed at a time, to bound memory (a bit is a byte while it is packed); a multiple of 8


def bits_of(size: int) -> int:
    """Number of bits of a code with ``size`` possible values; at least one."""
    return max(1, (size - 1).bit_length())


def packed_bytes(frames: int, sizes: Sequence[int]) -> int:
    """Number of bytes of ``frames`` frames, each with one code per entry of ``sizes``."""
    return -(-frames * sum(map(bits_of, sizes)) // 8)


def pack_codes(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Codes [T, Q] int64 to a stream of bits: uint8 [ceil(T bits / 8)].

    The stream has the frames in order, in each frame its codes in order, and of each code the lowest bit first. Bytes
    are filled from the lowest bit up; the last byte is filled with zeros.

    Args:
        codes: code q is within 0..sizes[q] - 1.
        sizes: Q numbers of possible codes, within 1..2^63.

    Raises:
        ValueError: a code out of range.
    """
    check_range(codes, sizes)
    widths = [bits_of(size) for size in sizes]
    values = codes.numpy()
    pieces = []
    for start in range(0, len(values), _FRAMES):
        block = values[start : start + _FRAMES]
        bits = [(block[:, q : q + 1] >> np.arange(width)).astype(np.uint8) & 1 for q, width in enumerate(widths)]
        pieces.append(np.packbits(np.concatenate(bits, axis=1), bitorder="little"))
    return torch.from_numpy(np.concatenate(pieces)) if pieces else torch.zeros(0, dtype=torch.uint8)


def unpack_codes(packed: Tensor, frames: int, sizes: Sequence[int]) -> Tensor:
    """The codes [T, Q] int64 that :func:`pack_codes` packed, where T is ``frames``.

    Raises:
        ValueError: a code is out of range, or ``packed`` has another length.
    """
    if packed.shape != (packed_bytes(frames, sizes),):
        raise ValueError(f"packed should hold {packed_bytes(frames, sizes)} bytes, got shape {list(packed.shape)}")
    widths = [bits_of(size) for size in sizes]
    total = sum(widths)
    stream = packed.numpy()
    codes = np.empty((frames, len(sizes)), dtype=np.int64)
    for start in range(0, frames, _FRAMES):
        count = min(_FRAMES, frames - start)
        piece = stream[start * total // 8 :]
        stretch = np.unpackbits(piece[: -(-count * total // 8)], count=count * total, bitorder="little")
        bits = stretch.reshape(count, total)
        first = 0
        for q, width in enumerate(widths):
            weights = np.left_shift(np.int64(1), np.arange(width))
            codes[start : start + count, q] = bits[:, first : first + width] @ weights
            first += width
    result = torch.from_numpy(codes)
    check_range(result, sizes)
    return result


def check_range(codes: Tensor, sizes: Sequence[int]) -> None:
    """Raise ValueError where code q of a frame [T, Q] is outside 0..sizes[q] - 1."""
    for q, size in enumerate(sizes):
        low, high = (int(value) for value in codes[:, q].aminmax()) if len(codes) else (0, 0)
        if low < 0 or high >= size:
            raise ValueError(f"codes should lie within 0..{size - 1} at place {q}, got {low}..{high}")
