"""The tensors of a latent file: how latents are stored in few bytes, and how they are read back.

| storage | tensors | read back |
|---|---|---|
| ``float32`` | ``mu`` [T, d] | exactly |
| ``float16`` | ``mu`` [T, d] | to 11 bits of each value |
| ``int8``, ``int4`` | ``mu``, ``mu.scale``, ``mu.offset`` | within half a scale |
| ``codes`` | ``codes``, a stream of bits | exactly, through the model's quantizer |

Of latents that were cut to their first dimensions only those are stored, and d is their number.

Integers share a scale and an offset per dimension and block of frames: ``mu`` uint8 [ceil(T bits / 8), d], where a row
holds one frame, or with 4 bits two (the first in the low half); ``mu.scale`` and ``mu.offset`` float32 [blocks, d].
The log variance, where it is kept, is float32 with storage float32 and float16 with all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext import ops
from losatok_ext.errors import LatentFileError, UserError
from losatok_ext.formats.code_bits import pack_codes, packed_bytes, unpack_codes
from losatok_ext.formats.latent_container import Layout
from losatok_ext.formats.latent_header import LatentFile, LatentHeader

STORAGES = ("float32", "float16", "int8", "int4", "codes")
INTEGER_BITS = {"int8": 8, "int4": 4}

FRAMES_PER_SCALE = 128
"""Frames per block. Measured on 3618 frames of 64 dimensions (the demo's model on the bundled recordings), bytes per
frame and error relative to the latents: int8 with one scale per frame 72 and 0.0056, with one per dimension and 64, 128
or 256 frames 72 and 0.0033, 68 and 0.0039, 66 and 0.0046; int4 40 and 0.096 per frame, 36 and 0.067 with 128 frames.
Dimensions differ in range by a factor of four, frames hardly; 128 or 256 frames need the fewest bits for one error,
and 128 also suit recordings of a few seconds."""


@dataclass(frozen=True)
class StoreOptions:
    """How to store the latents of a recording: the options of ``losatok encode``.

    Attributes:
        storage: one of :data:`STORAGES`; None: codes for a model with a quantizer, else float32.
        logvar: store the log variance of the posterior too.
        dims: dimensions to keep, for a model with nested latents; None: all.
        target_error: keep the fewest dimensions that restore the semantic features with at most this error (mean of
            1 - cosine), for a model with nested latents; None: ``dims`` decides.

    Raises:
        UserError: there is no such storage, both ``dims`` and ``target_error`` are given, or an error outside 0..2.
    """

    storage: str | None = None
    logvar: bool = False
    dims: int | None = None
    target_error: float | None = None

    def __post_init__(self) -> None:
        if self.storage is not None and self.storage not in STORAGES:
            raise UserError(f"--store is {self.storage!r}; it takes {', '.join(STORAGES)}")
        if self.dims is not None and self.target_error is not None:
            raise UserError("--dims and --target-error were both given; the error decides the dimensions: omit one")
        if self.target_error is not None and not 0 <= self.target_error <= 2:
            raise UserError(f"--target-error is {self.target_error:g}; it is 1 - cosine, from 0 to 2")


_NAMES = {torch.float32: "F32", torch.float16: "F16"}


def layout(header: LatentHeader, storage: str, with_logvar: bool, frames_per_scale: int) -> Layout:
    """The names, dtypes and shapes of the tensors in a file of version 2 or 3; nothing is allocated.

    Args:
        header: for T, the stored dimensions and the sizes of the codes.
        storage: one of :data:`STORAGES`.
        with_logvar: whether the file has the log variance.
        frames_per_scale: frames that share a scale, for integers; a multiple of 2.
    """
    tokens, dim = header.tokens, header.stored_dims
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]]
    if storage == "codes":
        expected = {"codes": (("U8",), (packed_bytes(tokens, header.code_sizes),))}
    elif storage in INTEGER_BITS:
        rows, blocks = -(-tokens * INTEGER_BITS[storage] // 8), -(-tokens // frames_per_scale)
        expected = {"mu": (("U8",), (rows, dim))}
        expected.update({f"mu.{name}": (("F32",), (blocks, dim)) for name in ("scale", "offset")})
    else:
        expected = {"mu": ((_NAMES[_float_dtype(storage)],), (tokens, dim))}
    if with_logvar:
        expected["logvar"] = ((_NAMES[_float_dtype(storage)],), (tokens, dim))
    return expected


def layout_of_version_1(header: LatentHeader, with_logvar: bool) -> Layout:
    """The names, dtypes and shapes of the tensors in a file of version 1."""
    names = ("mu", "logvar") if with_logvar else ("mu",)
    return dict.fromkeys(names, (("F32", "F16"), (header.tokens, header.latent_dim)))


def pack(latents: LatentFile, place: str) -> dict[str, Tensor]:
    """The tensors of ``latents`` as ``latents.storage`` stores them, contiguous on the CPU.

    Raises:
        ValueError: a code is out of range.
        LatentFileError: a value is too large for float16; ``place`` names the file.
    """
    storage, sizes, kept = latents.storage, latents.header.code_sizes, latents.header.stored_dims
    tensors: dict[str, Tensor] = {}
    if storage == "codes":
        assert latents.codes is not None
        tensors["codes"] = pack_codes(latents.codes.detach().cpu().to(torch.int64), sizes)
    else:
        assert latents.mu is not None
        mu = latents.mu[:, :kept].detach().to("cpu", torch.float32)
        if storage in INTEGER_BITS:
            tensors["mu"], tensors["mu.scale"], tensors["mu.offset"] = _to_integers(mu, INTEGER_BITS[storage])
        else:
            tensors["mu"] = _to_float(mu, storage, place)
    if latents.logvar is not None:
        tensors["logvar"] = _to_float(latents.logvar[:, :kept].detach().to("cpu", torch.float32), storage, place)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def unpack(
    tensors: dict[str, Tensor], header: LatentHeader, storage: str, frames_per_scale: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """mu, logvar (float32) and codes (int64) from a file's tensors; None for what was not stored.

    Raises:
        ValueError: a code is out of range, or a value is not finite.
    """
    mu = codes = None
    if storage == "codes":
        codes = unpack_codes(tensors["codes"], header.tokens, header.code_sizes)
    elif storage in INTEGER_BITS:
        parts = tensors["mu"], tensors["mu.scale"], tensors["mu.offset"]
        mu = _from_integers(*parts, INTEGER_BITS[storage], header.tokens, frames_per_scale)
    else:
        mu = tensors["mu"].float()
    logvar = tensors["logvar"].float() if "logvar" in tensors else None
    for name, tensor in (("mu", mu), ("logvar", logvar)):
        if tensor is not None and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    absent = header.latent_dim - header.stored_dims
    mu, logvar = (F.pad(tensor, (0, absent)) if tensor is not None and absent else tensor for tensor in (mu, logvar))
    return mu, logvar, codes


def _float_dtype(storage: str) -> torch.dtype:
    return torch.float32 if storage == "float32" else torch.float16


def _to_float(values: Tensor, storage: str, place: str) -> Tensor:
    stored = values.to(_float_dtype(storage))
    if not torch.isfinite(stored).all():
        raise LatentFileError(
            f"{place} cannot be written: a latent of {values.abs().max():g} is too large for float16; store float32"
        )
    return stored


def _to_integers(mu: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """mu [T, d] to uint8 [ceil(T bits / 8), d], scale and offset [blocks, d]."""
    parts = [ops.affine_quantize(block, bits, dim=0) for block in mu.split(FRAMES_PER_SCALE)]
    packed, scale, offset = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return packed, scale, offset


def _from_integers(packed: Tensor, scale: Tensor, offset: Tensor, bits: int, tokens: int, block: int) -> Tensor:
    """The float32 values [T, d] that :func:`_to_integers` stored."""
    block = min(block, tokens + tokens % 2)
    rows = packed.split(block * bits // 8)
    sizes = [min(block, tokens - start) for start in range(0, tokens, block)]
    pieces = [
        ops.affine_dequantize(part, scale[i : i + 1], offset[i : i + 1], bits, dim=0, size=size)
        for i, (part, size) in enumerate(zip(rows, sizes, strict=True))
    ]
    return torch.cat(pieces)
