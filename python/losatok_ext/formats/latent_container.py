"""The container of a latent file: a safetensors file. Every declared size is checked before anything is read."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from losatok_ext.errors import LatentFileError
from losatok_ext.files import atomic_path

FORMAT = "losatok-latents"
READABLE_VERSIONS = (1, 2, 3)

_KEY = "losatok"
_MAX_HEADER = 1 << 20  # bytes; a header takes one or two thousand
_BYTES = {"F32": 4, "F16": 2, "U8": 1}

Layout = Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]
"""Tensor name -> the dtypes that it may have (by safetensors' names), and its shape."""


@dataclass(frozen=True)
class Head:
    """The header of a latent file, before its fields are checked.

    Attributes:
        entry: the JSON object under ``"losatok"`` in the metadata; only its format and version were checked.
        tensors: the description of each tensor by safetensors, unchecked.
        payload: bytes after the header.
        size: bytes of the file.
    """

    entry: dict[str, Any]
    tensors: dict[str, Any]
    payload: int
    size: int


def write(path: Path, version: int, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a latent file of ``version``, completely or not at all. Equal content gives equal bytes.

    Args:
        path: the file; parent folders are made.
        version: one of :data:`READABLE_VERSIONS`.
        entry: the JSON object, without format, version and checksum.
        tensors: contiguous, on the CPU.

    Raises:
        LatentFileError: the file cannot be written.
    """
    metadata = {"format": FORMAT, "version": version, **entry}
    metadata["crc32"] = checksum(metadata, tensors)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(dict(tensors), {_KEY: json.dumps(metadata, sort_keys=True)}))
    except OSError as error:
        raise LatentFileError(f"{path} cannot be written: {error.strerror or error}") from error


def read_head(path: Path) -> Head:
    """Read the header of a latent file.

    Raises:
        LatentFileError: the file is missing, truncated, not a latent file, or of an unknown version.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise LatentFileError(f"{path} is not a file; pass the .losatok files in it")
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise LatentFileError(
                    f"{path} is not a latent file, or is truncated: "
                    "pass a .losatok file that `losatok encode` wrote, or encode again"
                )
            raw = file.read(length)
    except FileNotFoundError:
        raise LatentFileError(f"{path} does not exist; check the name") from None
    except OSError as error:
        raise LatentFileError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        tensors = json.loads(raw.decode())
        entry = json.loads(tensors.pop("__metadata__")[_KEY])
        if entry["format"] != FORMAT:
            raise KeyError("format")
        version = entry["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LatentFileError(
            f"{path} is not a latent file, or its header is damaged: "
            "pass a .losatok file that `losatok encode` wrote, or encode again"
        ) from error
    if type(version) is not int or version not in READABLE_VERSIONS:
        known = f"{READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]}"
        raise LatentFileError(
            f"{path} is a latent file of version {shown(version)}; this losatok_ext reads versions {known}: "
            "upgrade losatok_ext, or write the file with this release"
        )
    return Head(entry, tensors, size - 8 - length, size)


def check_tensors(path: Path, head: Head, layout: Layout) -> None:
    """Raise LatentFileError unless the tensors are those of ``layout`` and fill the file after its header exactly."""
    problem = None
    if head.entry.get("tensors") != sorted(layout) or sorted(head.tensors) != sorted(layout):
        problem = f"it should hold {', '.join(sorted(layout))}, but lists {', '.join(sorted(head.tensors)[:4])[:80]}"
    places = []
    for name, (dtypes, shape) in layout.items() if problem is None else ():
        tensor = head.tensors[name] if isinstance(head.tensors[name], dict) else {}
        offsets = tensor.get("data_offsets")
        dtype = tensor.get("dtype")
        if not isinstance(dtype, str) or dtype not in dtypes or tensor.get("shape") != list(shape):
            problem = f"{name} has another shape or dtype than its header says"
        elif not _is_span(offsets) or offsets[1] - offsets[0] != _count(shape) * _BYTES[dtype]:
            problem = f"{name} takes another number of bytes than its shape does"
        else:
            places.append((offsets[0], offsets[1], name))
    end = 0
    for first, last, name in sorted(places) if problem is None else ():
        if first != end:
            problem = f"{name} does not begin where the tensor before it ends"
        end = last
    if problem is None and end != head.payload:
        problem = f"it should hold {end} bytes of latents, and holds {head.payload}"
    if problem is not None:
        raise LatentFileError(f"{path} is truncated or damaged: {problem}; encode the recording again")


def read_tensors(path: Path, head: Head) -> dict[str, Tensor]:
    """Read the tensors of a file whose ``head`` was checked by :func:`check_tensors`, and compare the checksum.

    Raises:
        LatentFileError: the file cannot be read, or was changed since it was written.
    """
    try:
        content = path.read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError) as error:
        raise LatentFileError(f"{path} cannot be read: {error}") from error
    if len(content) != head.size or head.entry.get("crc32") != checksum(head.entry, tensors):
        raise LatentFileError(f"{path} is damaged: its content does not match its checksum; encode the recording again")
    return tensors


def checksum(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the metadata (without the checksum itself) and of the tensors in the order of their names."""
    covered = {name: value for name, value in entry.items() if name != "crc32"}
    crc = zlib.crc32(json.dumps(covered, sort_keys=True).encode())
    for name in sorted(tensors):
        if tensors[name].numel():
            crc = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, crc)
    return crc


def shown(value: Any) -> str:
    """``value`` for a message, shortened: in a malicious header it may be a megabyte long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _is_span(values: Any) -> TypeGuard[list[int]]:
    """Whether ``values`` is a list of two whole numbers of at least 0."""
    return isinstance(values, list) and len(values) == 2 and all(type(value) is int and value >= 0 for value in values)
