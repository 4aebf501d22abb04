"""Quantization without a codebook: levels per dimension (finite scalar quantization), and affine integers for files.

As in :mod:`losatok_ext.ops.quantize`, an index of -1 means "none": it stands past the end of a clip, and decodes to
zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch, registry
from losatok_ext.ops.reference import quantize as reference

_FSQ = registry.declare("fsq_quantize", triton="quantize_scalar")
_FSQ_BACK = registry.declare("fsq_dequantize", triton="quantize_scalar")
_AFFINE = registry.declare("affine_quantize", triton="quantize_scalar")
_AFFINE_BACK = registry.declare("affine_dequantize", triton="quantize_scalar")

# --- the raw ops: schemas, and what they return, for tracing ---------------------------------------------------------


@_FSQ.raw("fsq_quantize_forward(Tensor x, int[] levels, Tensor? lengths) -> (Tensor quantized, Tensor indices)")
def _fsq_quantize_fake(x: Tensor, levels: Sequence[int], lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [B, T, D], D levels -> quantized [B, T, D] in x's dtype, indices [B, T] (int64, -1 past a length)."""
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.int64)


@_FSQ.raw("fsq_quantize_backward(Tensor grad, Tensor x, int[] levels, Tensor? lengths) -> Tensor grad_x")
def _fsq_quantize_backward_fake(grad: Tensor, x: Tensor, levels: Sequence[int], lengths: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@_FSQ_BACK.raw("fsq_dequantize_forward(Tensor indices, int[] levels, ScalarType dtype) -> Tensor")
def _fsq_dequantize_fake(indices: Tensor, levels: Sequence[int], dtype: torch.dtype) -> Tensor:
    """indices [N] -> [N, D]; -1 gives zeros."""
    return indices.new_empty((indices.shape[0], len(levels)), dtype=dtype)


@_AFFINE.raw("affine_quantize_forward(Tensor x, int bits) -> (Tensor packed, Tensor scale, Tensor offset)")
def _affine_quantize_fake(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, n] -> packed [N, n or ceil(n / 2)] uint8 (4 bits: the even element in the low half), scale and offset [N]
    in float32 (float64).
    """
    rows, size = x.shape
    dtype = checks.wide(x)
    packed = x.new_empty((rows, size if bits == 8 else (size + 1) // 2), dtype=torch.uint8)
    return packed, x.new_empty((rows,), dtype=dtype), x.new_empty((rows,), dtype=dtype)


@_AFFINE_BACK.raw(
    "affine_dequantize_forward(Tensor packed, Tensor scale, Tensor offset, int bits, SymInt size, ScalarType dtype) "
    "-> Tensor"
)
def _affine_dequantize_fake(
    packed: Tensor, scale: Tensor, offset: Tensor, bits: int, size: int, dtype: torch.dtype
) -> Tensor:
    return packed.new_empty((packed.shape[0], size), dtype=dtype)


# --- autograd --------------------------------------------------------------------------------------------------------


class _Finite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, levels: tuple[int, ...], lengths: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        quantized, indices = dispatch.kernels(backend).fsq_quantize_forward(x, levels, lengths)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(x, lengths)
        ctx.levels, ctx.backend = levels, backend
        return quantized, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x, lengths = ctx.saved_tensors
        return dispatch.kernels(ctx.backend).fsq_quantize_backward(grad, x, ctx.levels, lengths), None, None, None


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    values = tuple(levels)
    if not values:
        raise ValueError("levels should name at least one dimension, got none")
    size = 1
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"levels should hold ints, got {type(value).__name__}")
        if not 2 <= value <= 65536:
            raise ValueError(f"levels should each lie within 2..65536, got {value}")
        size *= value
    if size >= 2**63:
        raise ValueError(f"levels should make fewer than 2^63 codes (an index is int64), got {size}")
    return values


def _check_bits(bits: int) -> None:
    if bits not in (4, 8):
        raise ValueError(f"bits should be 4 or 8, got {bits!r}")


def _check_output_dtype(dtype: torch.dtype) -> None:
    if dtype not in checks.FLOATING:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in checks.FLOATING)
        raise TypeError(f"dtype should be one of {allowed}, got {dtype}")


# --- the public functions --------------------------------------------------------------------------------------------


def fsq_quantize(x: Tensor, levels: Sequence[int], lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Finite scalar quantization: bound each dimension by tanh, round it to its levels, number the combination.

    Per dimension with L levels, h = (L - 1) (1 + 1e-3) / 2 and o = 1/2 for even L, else 0: the integer
    round(tanh(x + atanh(o / h)) h - o) lies within -(L // 2)..L - 1 - L // 2 and maps 0 to 0; ``quantized`` is that
    integer divided by L // 2, within -1..1. Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple" (2023),
    appendix A, with the shift as the inverse of tanh.

    Args:
        x: [..., D]; float32, bfloat16, float16 or float64, any strides. With ``lengths``, [B, T, D].
        levels: D ints within 2..65536, whose product is below 2^63.
        lengths: [B] int64, valid frames of each clip, or None for T.

    Returns:
        quantized: [..., D] in x's dtype; 0 past a length. Its gradient passes straight through the rounding: that of
            the squeezed value.
        indices: [...] int64: digits in mixed radix, the first dimension least significant; -1 past a length. No
            gradient.

    Levels are computed in float32 (float64 for float64). A NaN in x stays NaN in ``quantized``, and counts as level 0
    in the index. Autocast changes nothing here.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes that do not fit, levels out of range, or lengths outside 0..T (checked on the CPU only).
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    lengths = checks.rows(x, lengths)
    levels = _check_levels(levels)
    if x.shape[-1] != len(levels):
        raise ValueError(f"x should have as many features (its last size) as levels, {len(levels)}, got {x.shape[-1]}")
    backend = dispatch.choose("fsq_quantize", x.device)
    if backend == "reference":
        return reference.fsq_quantize(x, levels, lengths)
    rows = checks.as_batch(x)
    if checks.need_grad(x):
        quantized, indices = _Finite.apply(rows, levels, lengths, backend)
    else:
        quantized, indices = dispatch.kernels(backend).fsq_quantize_forward(rows, levels, lengths)
    return quantized.view(x.shape), indices.view(x.shape[:-1])


def fsq_dequantize(indices: Tensor, levels: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The quantized vectors that belong to the indices of :func:`fsq_quantize`.

    Args:
        indices: [...] int64; -1 gives zeros.
        levels: D ints, as in :func:`fsq_quantize`.
        dtype: of the result; float32, bfloat16, float16 or float64.

    Returns:
        [..., D], within -1..1; no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: levels out of range, or an index outside -1..(product of levels) - 1. Indices are checked on the
            CPU only: on a GPU, where that would wait for the device, such an index gives zeros.
        BackendUnavailableError: the implementation asked for cannot run on the device of ``indices``.
    """
    indices = checks.integers("indices", indices)
    levels = _check_levels(levels)
    _check_output_dtype(dtype)
    backend = dispatch.choose("fsq_dequantize", indices.device)
    if backend == "reference":
        return reference.fsq_dequantize(indices, levels, dtype)
    values = dispatch.kernels(backend).fsq_dequantize_forward(indices.reshape(-1), levels, dtype)
    return values.view((*indices.shape, len(levels)))


def affine_quantize(x: Tensor, bits: int = 8, dim: int = -1) -> tuple[Tensor, Tensor, Tensor]:
    """Store values as small integers: q = round((x - offset) / scale), one scale and offset per slice along ``dim``.

    Args:
        x: floating, any shape of one dimension or more; it gets no gradient.
        bits: 8 (one value per byte) or 4 (two per byte, the first in the low half).
        dim: the dimension whose values share a scale; for latents [T, d] with -1, each frame has its own.

    Returns:
        packed: uint8, the shape of x with n, the size of ``dim``, for 8 bits, or ceil(n / 2) for 4.
        scale: float32 (float64 for float64), the shape of x with 1 in place of n: the slice's range over 2^bits - 1,
            rounded up; 0 for a constant slice, which comes back exactly.
        offset: likewise; the slice's least value.

    :func:`affine_dequantize` is within scale / 2 of x, plus the rounding of the result in its dtype. A scale of a
    slice without values is 0.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: bits that are neither 4 nor 8, a scalar; on the CPU also a NaN, an infinity or, in float64, a range
            that overflows. On a GPU, where looking would wait for the device, such a slice comes back as NaN.
        IndexError: ``dim`` is not a dimension of x.
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    checks.floating("x", x)
    _check_bits(bits)
    if x.dim() == 0:
        raise ValueError("x should have at least one dimension, got a scalar")
    moved = x.detach().movedim(dim, -1)
    rows = checks.as_rows(moved)
    backend = dispatch.choose("affine_quantize", x.device)
    if backend == "reference":
        packed, scale, offset = reference.affine_quantize(rows, bits)
    else:
        packed, scale, offset = dispatch.kernels(backend).affine_quantize_forward(rows, bits)
    packed = packed.view((*moved.shape[:-1], packed.shape[-1])).movedim(-1, dim)
    one = (*moved.shape[:-1], 1)
    return packed.contiguous(), scale.view(one).movedim(-1, dim), offset.view(one).movedim(-1, dim)


def affine_dequantize(
    packed: Tensor,
    scale: Tensor,
    offset: Tensor,
    bits: int = 8,
    dim: int = -1,
    size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The values that :func:`affine_quantize` stored: offset + scale q.

    Args:
        packed: uint8, as :func:`affine_quantize` gives it.
        scale: float32 or float64, the shape of ``packed`` with 1 at ``dim``.
        offset: likewise.
        bits: 8 or 4, as when stored.
        dim: as when stored.
        size: n, the values along ``dim``; None: as many as ``packed`` holds. For 4 bits and an odd n it is needed,
            because a byte holds two values.
        dtype: of the result; float32, bfloat16, float16 or float64.

    Returns:
        The shape of ``packed`` with n at ``dim``; no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, bits that are neither 4 nor 8, or a size that ``packed`` does not
            hold.
        IndexError: ``dim`` is not a dimension of ``packed``.
        BackendUnavailableError: the implementation asked for cannot run on the device of ``packed``.
    """
    _check_bits(bits)
    _check_output_dtype(dtype)
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        got = packed.dtype if isinstance(packed, Tensor) else type(packed).__name__
        raise TypeError(f"packed should be a torch.Tensor of uint8, got {got}")
    if packed.dim() == 0:
        raise ValueError("packed should have at least one dimension, got a scalar")
    moved = packed.movedim(dim, -1)
    for name, tensor in (("scale", scale), ("offset", offset)):
        checks.floating(name, tensor, (torch.float32, torch.float64))
        checks.same_dtype_and_device(name, tensor, "scale", scale)
        expected = list(packed.shape)
        expected[dim] = 1
        if list(tensor.shape) != expected:
            raise ValueError(
                f"{name} should have the shape of packed with 1 at dim, {expected}, got {list(tensor.shape)}"
            )
    checks.same_device("scale", scale, "packed", packed)
    held = moved.shape[-1] * (8 // bits)
    if size is None:
        size = held
    elif not max(held - (8 // bits), -1) < size <= held:
        raise ValueError(f"size should be the number of values that packed holds along dim, {held}, got {size}")
    rows = checks.as_rows(moved)
    backend = dispatch.choose("affine_dequantize", packed.device)
    arguments = (rows, scale.detach().reshape(-1), offset.detach().reshape(-1), bits, size, dtype)
    if backend == "reference":
        values = reference.affine_dequantize(*arguments)
    else:
        values = dispatch.kernels(backend).affine_dequantize_forward(*arguments)
    return values.view((*moved.shape[:-1], size)).movedim(-1, dim)
