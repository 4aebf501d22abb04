"""The latent file, ``.losatok``: one recording's latents, and what is needed to turn them back into that recording.

Version 1 is a safetensors file. Its metadata has one entry, ``"losatok"``, a JSON object with the fields of
:class:`LatentHeader`, the format's name and version, the tensors it expects and a CRC-32. Its tensors are ``"mu"`` [T,
d] and, when it was asked for, ``"logvar"`` [T, d], float32 or float16.

Later versions may store tensors in another way (int8 or int4 with scales, codes). They raise ``version``; a reader
refuses what it does not know by that number. The file is written deterministically: the same latents give the same
bytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from losatok_ext.errors import LatentFileError
from losatok_ext.files import atomic_path

SUFFIX = ".losatok"
FORMAT = "losatok-latents"
VERSION = 1

_KEY = "losatok"
_MAX_HEADER = 1 << 20  # bytes; a version 1 header takes about a thousand
_DTYPES = {"F32": 4, "F16": 2}
_NAMES = ("mu", "logvar")


@dataclass(frozen=True)
class LatentHeader:
    """What a latent file says about itself.

    Attributes:
        fingerprint: of the model that encoded it (:meth:`LoSATok.fingerprint`).
        frame_rate: tokens per second (Hz).
        samples_per_token: at ``sample_rate``.
        sample_rate: of the model, Hz.
        tokens: T.
        latent_dim: d.
        samples: length of the recording at ``sample_rate``; decoding returns exactly that many.
        source_name: file name of the recording, without folders.
        source_rate: its sample rate, Hz.
        source_samples: its length in samples per channel at ``source_rate``.
    """

    fingerprint: str
    frame_rate: float
    samples_per_token: int
    sample_rate: int
    tokens: int
    latent_dim: int
    samples: int
    source_name: str
    source_rate: int
    source_samples: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class LatentFile:
    """A latent file in memory: ``header``, ``mu`` [T, d] and ``logvar`` [T, d] or None, float32 on the CPU."""

    header: LatentHeader
    mu: Tensor
    logvar: Tensor | None = None


def save_latents(path: str | os.PathLike[str], latents: LatentFile) -> None:
    """Write a version 1 latent file, whole or not at all. Parent folders are made.

    Raises:
        ValueError: a tensor is not [T, d] as the header says, or not finite.
        LatentFileError: the file cannot be written.
    """
    path = Path(path)
    header = latents.header
    tensors = {"mu": latents.mu} if latents.logvar is None else {"mu": latents.mu, "logvar": latents.logvar}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != (header.tokens, header.latent_dim):
            raise ValueError(
                f"{name} should have shape [T, d] = [{header.tokens}, {header.latent_dim}], got {list(tensor.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values; the model or its input is broken")
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    entry: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(header), "tensors": sorted(tensors)}
    entry["crc32"] = _checksum(entry, tensors)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors, {_KEY: json.dumps(entry, sort_keys=True)}))
    except OSError as error:
        raise LatentFileError(f"{path} cannot be written: {error.strerror or error}") from error


def load_latents(path: str | os.PathLike[str], fingerprint: str | None = None, force: bool = False) -> LatentFile:
    """Read a latent file.

    Sizes are checked against the file before anything is read, so that a damaged or hostile header costs no memory, and
    the content against its CRC-32.

    Args:
        path: the file.
        fingerprint: of the model that will decode it; a file of another model is refused. None: any model.
        force: accept a file of another model all the same.

    Raises:
        LatentFileError: the file is missing, damaged, truncated, no latent file, of an unknown version, or of another
        model.
    """
    path = Path(path)
    entry, size = _read_entry(path)
    header = _header(path, entry)
    if fingerprint is not None and header.fingerprint != fingerprint and not force:
        raise LatentFileError(
            f"{path} was encoded by model {header.fingerprint}, and this is model {fingerprint}; "
            "pass the folder of that model, or force decoding by this one"
        )
    try:
        content = path.read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError) as error:
        raise LatentFileError(f"{path} cannot be read: {error}") from error
    if len(content) != size or sorted(tensors) != entry["tensors"] or entry.get("crc32") != _checksum(entry, tensors):
        raise LatentFileError(f"{path} is damaged: its content does not match its checksum; encode the recording again")
    logvar = tensors.get("logvar")
    return LatentFile(header, tensors["mu"].float(), None if logvar is None else logvar.float())


def read_header(path: str | os.PathLike[str]) -> LatentHeader:
    """The header of a latent file; the tensors are not read and the checksum is not checked.

    Raises:
        LatentFileError: as :func:`load_latents`.
    """
    path = Path(path)
    return _header(path, _read_entry(path)[0])


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a latent file holds, for people and JSON: header fields, tensors, seconds, bytes and kbit/s.

    Raises:
        LatentFileError: as :func:`load_latents`.
    """
    path = Path(path)
    entry, size = _read_entry(path)
    header = _header(path, entry)
    return {
        "path": str(path),
        "format": f"{FORMAT}, version {entry['version']}",
        **asdict(header),
        "tensors": entry["tensors"],
        "seconds": header.seconds,
        "bytes": size,
        "kbit_per_second": size * 8e-3 / header.seconds,
    }


def _checksum(entry: dict[str, Any], tensors: dict[str, Tensor]) -> int:
    """CRC-32 of the metadata (without the checksum itself) and of the tensors in the order of their names."""
    covered = {name: value for name, value in entry.items() if name != "crc32"}
    crc = zlib.crc32(json.dumps(covered, sort_keys=True).encode())
    for name in sorted(tensors):
        crc = (
            zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, crc) if tensors[name].numel() else crc
        )
    return crc


def _read_entry(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON object under ``"losatok"`` and the file's size in bytes; every declared size was checked."""
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
        head = json.loads(raw.decode())
        entry = json.loads(head.pop("__metadata__")[_KEY])
        if entry["format"] != FORMAT:
            raise KeyError("format")
        version = entry["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LatentFileError(
            f"{path} is not a latent file, or its header is damaged: "
            "pass a .losatok file that `losatok encode` wrote, or encode again"
        ) from error
    if version != VERSION:
        raise LatentFileError(
            f"{path} is a latent file of version {version!r}; this losatok_ext reads version {VERSION}: "
            "upgrade losatok_ext, or write the file with this release"
        )
    _check_tensors(path, head, entry, size - 8 - length)
    return entry, size


def _check_tensors(path: Path, head: dict[str, Any], entry: dict[str, Any], available: int) -> None:
    """Raise LatentFileError unless the tensors are those that version 1 has and fill the rest of the file exactly."""
    problem = None
    names = entry.get("tensors")
    if names not in (["mu"], ["logvar", "mu"]) or sorted(head) != names:
        problem = f"it should hold the tensor mu, and at most logvar, but lists {sorted(head)[:4]}"
    else:
        expected = [entry.get("tokens"), entry.get("latent_dim")]
        total = 0
        for name in names:
            tensor = head[name] if isinstance(head[name], dict) else {}
            shape, offsets = tensor.get("shape"), tensor.get("data_offsets")
            if tensor.get("dtype") not in _DTYPES or shape != expected or not _counts(expected) or not _counts(offsets):
                problem = f"{name} has another shape or dtype than its header says"
                break
            if len(offsets) != 2 or offsets[1] - offsets[0] != shape[0] * shape[1] * _DTYPES[tensor["dtype"]]:
                problem = f"{name} takes another number of bytes than its shape does"
                break
            total += offsets[1] - offsets[0]
        if problem is None and total != available:
            problem = f"it should hold {total} bytes of latents, and holds {available}"
    if problem is not None:
        raise LatentFileError(f"{path} is truncated or damaged: {problem}; encode the recording again")


def _counts(values: Any) -> TypeGuard[list[int]]:
    """Whether ``values`` is a list of whole numbers that are not negative."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _header(path: Path, entry: dict[str, Any]) -> LatentHeader:
    kinds = {"str": (str,), "int": (int,), "float": (int, float)}
    values: dict[str, Any] = {}
    for field in fields(LatentHeader):
        value = entry.get(field.name)
        if type(value) not in kinds[str(field.type)]:
            raise LatentFileError(f"{path} has a damaged header: {field.name} is {value!r}; encode the recording again")
        values[field.name] = value
    header = LatentHeader(**values)
    positive = (header.frame_rate, header.samples_per_token, header.sample_rate, header.samples, header.source_rate)
    # A front end encodes whole patches of up to four tokens (at 100 Hz); a clip may end anywhere in the last.
    off = abs(header.samples - header.tokens * header.samples_per_token)
    if (
        not math.isfinite(header.frame_rate)
        or min(positive) <= 0
        or header.tokens <= 0
        or off > 4 * header.samples_per_token
    ):
        raise LatentFileError(
            f"{path} has a damaged header: {header.tokens} tokens "
            f"cannot stand for {header.samples} samples; encode the recording again"
        )
    return header
