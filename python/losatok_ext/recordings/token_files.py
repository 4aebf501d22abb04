"""Sequences of vectors (teacher features or latents) in shards: a safetensors file with one tensor [T, d]."""

from __future__ import annotations

import json
import math
import struct
from typing import BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from losatok_ext.errors import ShardError
from losatok_ext.recordings.shard_files import Member

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TENSOR = "tokens"
_NAMES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER = 1 << 16  # bytes; the header of one tensor takes about a hundred


def pack_tokens(tokens: Tensor, dtype: torch.dtype, place: str) -> bytes:
    """``tokens`` [T, d] as a safetensors file of ``dtype``.

    Raises:
        ShardError: a value is not finite, or too large for ``dtype``; ``place`` names the recording in the message.
    """
    stored = tokens.detach().to("cpu", dtype).contiguous()
    if not torch.isfinite(stored).all():
        largest = float(tokens.abs().max())
        cure = "store bfloat16 or float32" if math.isfinite(largest) else "the model or its input is broken"
        raise ShardError(f"{place}: a value of {largest:g} cannot be stored as {dtype}; {cure}")
    return save({TENSOR: stored})


def read_tokens(member: Member, width: int, start: int = 0, count: int | None = None) -> Tensor:
    """Tokens ``start`` to ``start + count`` (None: to the end) of a file in a shard, [n, width] in the stored dtype.

    Only these are read. A file that is read completely is checked against its CRC-32.

    Raises:
        ShardError: the file is damaged, or has another width.
    """
    if start == 0 and count is None:
        content = member.read()
        dtype, total, offset = _head(member, content[: _MAX_HEADER + 8], width)
        values = bytearray(content[offset : offset + total * width * dtype.itemsize])
    else:
        with member.open() as file:
            dtype, total, offset = _head(member, file, width)
            start = min(start, total)
            total = min(total - start, total if count is None else count)
            file.seek(offset + start * width * dtype.itemsize)
            values = bytearray(file.read(total * width * dtype.itemsize))
    tokens = torch.frombuffer(values, dtype=dtype).view(total, width) if total else torch.empty(0, width, dtype=dtype)
    if not torch.isfinite(tokens).all():
        raise ShardError(f"{member.shard}: {member.name} is damaged: it holds NaN or infinity; write the shard again")
    return tokens


def _head(member: Member, source: bytes | BinaryIO, width: int) -> tuple[torch.dtype, int, int]:
    """(dtype, T, first byte of the values) from the header of a file, whose sizes are checked."""
    problem = None
    head = source[:8] if isinstance(source, bytes) else source.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
    if not 0 < length <= min(_MAX_HEADER, member.size - 8):
        problem = "it has no header"
    else:
        text = source[8 : 8 + length] if isinstance(source, bytes) else source.read(length)
        try:
            entry = json.loads(text)[TENSOR]
            dtype, (tokens, found), (begin, end) = _NAMES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            sizes = (tokens, found, begin, end)
            if not all(type(size) is int and size >= 0 for size in sizes) or begin != 0:
                problem = "its header has sizes that are not whole numbers"
            elif found != width:
                problem = f"its vectors have {found} values, the index says {width}"
            elif end != tokens * found * dtype.itemsize or 8 + length + end != member.size:
                problem = "its size is not what its header says"
            else:
                return dtype, tokens, 8 + length
        except (ValueError, KeyError, TypeError, RecursionError):
            problem = "its header cannot be read"
    raise ShardError(f"{member.shard}: {member.name} is damaged: {problem}; write the shard again")
