"""The latent file, ``.losatok``: the latents of one recording, and what is needed to decode them.

A safetensors file whose metadata has one entry, ``"losatok"``: a JSON object with the format's name and version, the
fields of :class:`LatentHeader`, the names of the tensors and a CRC-32 of everything. Version 2 stores latents as
floating point, small integers or codes (:mod:`losatok_ext.formats.latent_storage`). Version 3 is written for nested
latents that were cut, and stores only their first dimensions. Version 1, with ``"mu"`` and ``"logvar"`` in float32 or
float16, is still read, but no longer written. docs/latent-files.md describes all versions. Equal latents give equal
bytes.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losatok_ext.errors import LatentFileError
from losatok_ext.formats import latent_container as container
from losatok_ext.formats import latent_storage as storages
from losatok_ext.formats.latent_container import FORMAT, Head, Layout, shown
from losatok_ext.formats.latent_header import LatentFile, LatentHeader

__all__ = [
    "SUFFIX",
    "LatentFile",
    "LatentHeader",
    "describe",
    "is_latent_file",
    "load_latents",
    "read_header",
    "read_storage",
    "save_latents",
]

SUFFIX = ".losatok"


def save_latents(path: str | os.PathLike[str], latents: LatentFile) -> None:
    """Write a latent file as ``latents.storage`` says, completely or not at all. Parent folders are made.

    Raises:
        ValueError: there is no such storage; or the tensor that it stores is missing, has another shape than the header
            says, is not finite, or has a code that is out of range.
        LatentFileError: the file cannot be written, or a value is too large for float16.
    """
    header = latents.header
    if latents.storage not in storages.STORAGES:
        raise ValueError(f"storage should be one of {', '.join(storages.STORAGES)}, got {latents.storage!r}")
    _check_written(latents)
    tensors = storages.pack(latents, os.fspath(path))
    entry: dict[str, Any] = {**asdict(header), "code_sizes": list(header.code_sizes)}
    entry.update(storage=latents.storage, tensors=sorted(tensors))
    if latents.storage in storages.INTEGER_BITS:
        entry["frames_per_scale"] = storages.FRAMES_PER_SCALE
    for name in _OPTIONAL:
        if entry[name] is None:
            del entry[name]
    container.write(Path(path), 2 if header.dims is None else 3, entry, tensors)


def _check_written(latents: LatentFile) -> None:
    header = latents.header
    wanted: dict[str, tuple[Tensor | None, int]] = {"mu": (latents.mu, header.latent_dim)}
    if latents.storage == "codes":
        wanted = {"codes": (latents.codes, len(header.code_sizes))}
    if latents.logvar is not None:
        wanted["logvar"] = (latents.logvar, header.latent_dim)
    for name, (tensor, width) in wanted.items():
        if tensor is None:
            raise ValueError(f"{name} should be given: storage {latents.storage!r} stores it")
        if tuple(tensor.shape) != (header.tokens, width):
            meaning = "[T, Q]" if name == "codes" else "[T, d]"
            raise ValueError(
                f"{name} should have shape {meaning} = [{header.tokens}, {width}], got {list(tensor.shape)}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values; the model or its input is broken")
        if header.dims is not None and (name == "codes" or tensor[:, header.dims :].any()):
            raise ValueError(f"{name} should be zero from dimension {header.dims} on, since dims is {header.dims}")


def load_latents(path: str | os.PathLike[str], fingerprint: str | None = None, force: bool = False) -> LatentFile:
    """Read a latent file of any version and storage.

    Sizes are checked against the file before anything is read, so that a damaged or malicious header costs no memory.
    The content is checked against its CRC-32.

    Args:
        path: the file.
        fingerprint: of the model that will decode it; a file of another model is refused. None: any model.
        force: accept a file of another model nevertheless.

    Raises:
        LatentFileError: the file is missing, damaged, truncated, not a latent file, of an unknown version, or of
            another model.
    """
    path = Path(path)
    head, header, storage, layout = _read(path)
    if fingerprint is not None and header.fingerprint != fingerprint and not force:
        raise LatentFileError(
            f"{path} was encoded by {header.model_name}, and this is model {fingerprint}; "
            "pass the folder of that model, or force decoding by this one"
        )
    tensors = container.read_tensors(path, head)
    assert tensors.keys() == layout.keys()
    try:
        mu, logvar, codes = storages.unpack(tensors, header, storage, head.entry.get("frames_per_scale", 1))
    except ValueError as error:
        raise LatentFileError(f"{path} is damaged: {error}; encode the recording again") from error
    return LatentFile(header, mu, logvar, codes, storage)


def read_header(path: str | os.PathLike[str]) -> LatentHeader:
    """The header of a latent file. The tensors are not read, and the checksum is not compared.

    Raises:
        LatentFileError: the file is missing, truncated, not a latent file, or its header is damaged.
    """
    return _read(Path(path))[1]


def read_storage(path: str | os.PathLike[str]) -> str:
    """How a latent file is stored: one of ``latent_storage.STORAGES``. Only the header is read.

    Raises:
        LatentFileError: the file is missing, truncated, not a latent file, or its header is damaged.
    """
    return _read(Path(path))[2]


def is_latent_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a latent file of a version and storage that can be read here.

    The rest of it may be damaged or missing. Only the header is read. False where the file cannot be read.
    """
    try:
        entry = container.read_head(Path(path)).entry
    except LatentFileError:
        return False
    return entry["version"] == 1 or entry.get("storage") in storages.STORAGES


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A description of a latent file for people and JSON.

    It has the fields of the header, storage, names of the tensors, seconds, bytes of the file, and bits per second of
    the latents alone and of the file. The content is checked against its CRC-32, for which the whole file is read.

    Raises:
        LatentFileError: the file is missing, damaged, truncated, or not a latent file.
    """
    path = Path(path)
    head, header, storage, layout = _read(path)
    container.read_tensors(path, head)
    facts = asdict(header)
    del facts["quantizer_name"], facts["code_sizes"], facts["quantizer"]
    name = None if header.quantizer is None else f"{header.quantizer_name} ({header.quantizer})"
    return {
        "path": str(path),
        "format": f"{FORMAT}, version {head.entry['version']}",
        **facts,
        "storage": storage,
        "quantizer": name,
        "tensors": sorted(layout),
        "seconds": header.seconds,
        "bytes": head.size,
        "latent_bits_per_second": head.payload * 8 / header.seconds,
        "kbit_per_second": head.size * 8e-3 / header.seconds,
    }


def _read(path: Path) -> tuple[Head, LatentHeader, str, Layout]:
    """Read and check everything except the tensors: head, header, storage and layout."""
    head = container.read_head(path)
    header = _header(path, head.entry)
    with_logvar = isinstance(head.entry.get("tensors"), list) and "logvar" in head.entry["tensors"]
    if head.entry["version"] == 1:
        dtype = head.tensors.get("mu", {}).get("dtype") if isinstance(head.tensors.get("mu"), dict) else None
        layout = storages.layout_of_version_1(header, with_logvar)
        container.check_tensors(path, head, layout)
        return head, header, "float16" if dtype == "F16" else "float32", layout
    storage, block = head.entry.get("storage"), head.entry.get("frames_per_scale", 1)
    if storage not in storages.STORAGES:
        raise LatentFileError(
            f"{path} stores latents as {shown(storage)}, and this losatok_ext knows {', '.join(storages.STORAGES)}: "
            "upgrade losatok_ext, or encode the recording again"
        )
    if not _is_count(block) or (storage == "int4" and block % 2):  # a byte holds two frames of one block
        raise _damaged(path, "frames_per_scale", block)
    if storage == "codes" and not header.code_sizes:
        raise _damaged(path, "code_sizes", header.code_sizes)
    if storage == "codes" and header.dims is not None:
        raise _damaged(path, "dims", header.dims)
    layout = storages.layout(header, storage, with_logvar, block)
    container.check_tensors(path, head, layout)
    return head, header, storage, layout


_KINDS = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str, type(None)),
    "int | None": (int,),
    "tuple[int, ...]": (list,),
}
_OPTIONAL = ("dims", "source_digest", "settings")
"""Header fields that are left out where they are None."""
_SINCE = {"quantizer": 2, "quantizer_name": 2, "code_sizes": 2, "dims": 3}
"""Header field -> the first version that has it."""
_TEXTS = ("source_digest", "settings")
"""Header fields that a file of any version may have; 0.1 wrote none."""
_LARGEST = 2**63


def _header(path: Path, entry: dict[str, Any]) -> LatentHeader:
    values: dict[str, Any] = {}
    for field in fields(LatentHeader):
        value = entry.get(field.name)
        if entry["version"] < _SINCE.get(field.name, 1) or (field.name in _TEXTS and field.name not in entry):
            continue
        if type(value) not in _KINDS[str(field.type)] or (type(value) is int and abs(value) >= _LARGEST):
            raise _damaged(path, field.name, value)
        values[field.name] = value
    if "code_sizes" in values:
        if not all(_is_count(size) for size in values["code_sizes"]):
            raise _damaged(path, "code_sizes", values["code_sizes"])
        values["code_sizes"] = tuple(values["code_sizes"])
    header = LatentHeader(**values)
    if header.dims is not None and not 0 < header.dims <= header.latent_dim:
        raise _damaged(path, "dims", header.dims)
    positive = (
        header.frame_rate,
        header.samples_per_token,
        header.sample_rate,
        header.tokens,
        header.latent_dim,
        header.samples,
        header.source_rate,
    )
    # A front end encodes patches of up to four tokens (at 100 Hz); a clip may end anywhere in the last patch.
    off = abs(header.samples - header.tokens * header.samples_per_token)
    if not math.isfinite(header.frame_rate) or min(positive) <= 0 or off > 4 * header.samples_per_token:
        raise LatentFileError(
            f"{path} has a damaged header: {header.tokens} tokens of {header.latent_dim} dimensions "
            f"cannot stand for {header.samples} samples; encode the recording again"
        )
    return header


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value <= _LARGEST


def _damaged(path: Path, name: str, value: object) -> LatentFileError:
    return LatentFileError(f"{path} has a damaged header: {name} is {shown(value)}; encode the recording again")
