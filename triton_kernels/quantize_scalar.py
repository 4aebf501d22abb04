"""Quantization without a codebook on a GPU: levels per dimension, and affine integers.

Both are limited by memory bandwidth: a program computes a block of rows and reads every value once (where one block of
columns holds a row). Levels are compile-time constants: a new list of levels compiles a new kernel, and no table has to
be copied to the device. Affine integers are computed in float64 and equal those of the CPU bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.ops.reference.quantize import FSQ_MARGIN
from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.rows import row_blocks, rows_of_clips

LEVEL_ROWS = 128
"""Rows of a program that quantizes to levels."""

LARGEST = tl.constexpr(3.4028234663852886e38)
ROUND_FLOAT = tl.constexpr(12582912.0)
"""1.5 2^23: added and taken away again, it rounds float32 below 2^22 to the nearest integer, halves to even."""
ROUND_DOUBLE = tl.constexpr(6755399441055744.0)
"""1.5 2^52: likewise for float64 below 2^51."""


@triton.jit
def _tanh(x):
    """tanh in float32, to some 1e-7 of 1: (1 - e) / (1 + e) of e = exp(-2 |x|), by its series where that cancels."""
    size = tl.abs(x)
    e = tl.exp(-2.0 * size)
    square = x * x
    series = ((-0.053968253968253971 * square + 0.13333333333333333) * square - 0.33333333333333333) * square
    large = (1.0 - e) / (1.0 + e)
    value = tl.where(size < 0.125, size + size * series, large)
    value = tl.where(x < 0.0, -value, value)
    return tl.where(x == x, value, x)


@triton.jit
def fsq_quantize_kernel(
    x, lengths, quantized, indices, time, clip_stride, stride, feature_stride, rows,
    LEVELS: tl.constexpr, SHIFTS: tl.constexpr, RANGES: tl.constexpr, OFFSETS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """quantized [rows, features] and indices [rows] of x [clips, time, features] by strides; 0 and -1 past a length.
    Grid (blocks of the ``rows`` = clips x time). RANGES are the half ranges of the bound.
    """
    features: tl.constexpr = len(LEVELS)
    row, clip, frame, width = rows_of_clips(lengths, 0, rows, time, features, ROWS)
    source = x + (clip * clip_stride + frame * stride)
    index = tl.zeros([ROWS, 1], tl.int64)
    weight = tl.full([1, 1], 1, tl.int64)
    for j in tl.static_range(features):
        half = LEVELS[j] // 2
        v = tl.load(source + j * feature_stride, mask=width > 0, other=0.0).to(tl.float32)
        bound = _tanh(v + SHIFTS[j]) * RANGES[j] - OFFSETS[j]
        level = (bound + ROUND_FLOAT) - ROUND_FLOAT
        level = tl.where(level < -half, -half, level)  # written so that a NaN stays one
        level = tl.where(level > LEVELS[j] - 1 - half, LEVELS[j] - 1 - half, level)
        value = tl.where(width > 0, tl.div_rn(level, tl.full([1, 1], half, tl.float32)), 0.0)
        tl.store(quantized + row * features + j, value.to(quantized.dtype.element_ty), mask=row < rows)
        index += (tl.where(level == level, level, 0.0).to(tl.int64) + half) * weight
        weight = weight * LEVELS[j]
    tl.store(indices + row, tl.where(width > 0, index, -1), mask=row < rows)


@triton.jit
def fsq_gradient_kernel(
    grad, x, lengths, out, time, clip_stride, stride, feature_stride, rows,
    SHIFTS: tl.constexpr, SLOPES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out [rows, features] = grad SLOPES (1 - tanh(x + SHIFTS)^2), 0 past a length; grad [rows, features], x by
    strides. Grid (blocks of the ``rows`` = clips x time).
    """
    features: tl.constexpr = len(SHIFTS)
    row, clip, frame, width = rows_of_clips(lengths, 0, rows, time, features, ROWS)
    source = x + (clip * clip_stride + frame * stride)
    for j in tl.static_range(features):
        v = tl.load(source + j * feature_stride, mask=width > 0, other=0.0).to(tl.float32)
        g = tl.load(grad + row * features + j, mask=width > 0, other=0.0).to(tl.float32)
        squeezed = _tanh(v + SHIFTS[j])
        value = g * SLOPES[j] * (1.0 - squeezed * squeezed)
        value = tl.where(width > 0, value, 0.0)
        tl.store(out + row * features + j, value.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def fsq_dequantize_kernel(indices, out, rows, size, LEVELS: tl.constexpr, ROWS: tl.constexpr):
    """out [rows, features] of indices [rows]; zeros for an index outside 0..size-1. Grid (blocks of ``rows``)."""
    features: tl.constexpr = len(LEVELS)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rest = tl.load(indices + row, mask=row < rows, other=-1)
    known = (rest >= 0) & (rest < size)
    rest = tl.where(known, rest, 0)
    for j in tl.static_range(features):
        half = LEVELS[j] // 2
        digit = (rest % LEVELS[j]).to(tl.int32)
        rest = rest // LEVELS[j]
        value = tl.div_rn((digit - half).to(tl.float32), tl.full([1], half, tl.float32))
        value = tl.where(known, value, 0.0)
        tl.store(out + row * features + j, value.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def _integers(source, columns, size, low, divisor, TOP: tl.constexpr):
    """round((x - low) / divisor), at most TOP, of the columns below ``size``; 0 elsewhere and for a NaN."""
    v = tl.load(source + columns, mask=columns < size, other=0.0).to(tl.float32).to(tl.float64)
    q = (v - low) / divisor
    q = tl.where(q > TOP, TOP, tl.where(q > 0.0, q, 0.0))
    q = (q + ROUND_DOUBLE) - ROUND_DOUBLE
    return tl.where(columns < size, q.to(tl.int32), 0)


@triton.jit
def affine_quantize_kernel(
    x, packed, scales, offsets, rows, size, stride, held, BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """packed [rows, held], scales and offsets [rows] of x [rows, size], rows ``stride`` apart; grid (blocks of rows).

    A row with a value that is not finite gets NaN for both. Four bits: the even value in the low half of a byte.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    source = x + tl.minimum(row, rows - 1) * stride
    lows = tl.full([ROWS, BLOCK], LARGEST, tl.float32)
    highs = tl.full([ROWS, BLOCK], -LARGEST, tl.float32)
    bad = tl.zeros([ROWS, BLOCK], tl.int32)
    for start in range(0, size, BLOCK):
        inside = start + columns < size
        v = tl.load(source + start + columns, mask=inside, other=0.0).to(tl.float32)
        lows = tl.where(inside & (v < lows), v, lows)
        highs = tl.where(inside & (v > highs), v, highs)
        bad = tl.where(tl.abs(v) <= LARGEST, bad, 1)
    low = tl.min(lows, 1, keep_dims=True)
    high = tl.max(highs, 1, keep_dims=True)
    finite = tl.max(bad, 1, keep_dims=True) == 0
    top: tl.constexpr = 2**BITS - 1
    least = low.to(tl.float64)
    span = high.to(tl.float64) - least
    scale = (span / top).to(tl.float32)
    # Never below the range: one step of the float further where rounding went down.
    up = (scale.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
    scale = tl.where(scale.to(tl.float64) * top < span, up, scale)
    divisor = tl.where(scale > 0.0, scale.to(tl.float64), 1.0)  # not its inverse, which may overflow
    nan = tl.full([ROWS, 1], float("nan"), tl.float32)
    tl.store(scales + row, tl.where(finite, scale, nan), mask=row < rows)
    tl.store(offsets + row, tl.where(finite, low, nan), mask=row < rows)
    target = packed + row * held
    for start in range(0, held, BLOCK):
        at = start + columns
        if BITS == 8:
            q = _integers(source, at, size, least, divisor, top)
        else:
            q = _integers(source, 2 * at, size, least, divisor, top)
            q = q | (_integers(source, 2 * at + 1, size, least, divisor, top) << 4)
        tl.store(target + at, q.to(tl.uint8), mask=(row < rows) & (at < held))


@triton.jit
def affine_dequantize_kernel(
    packed, scales, offsets, out, rows, size, held, BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """out [rows, size] = offsets + scales q of packed [rows, held]; grid (blocks of rows)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    scale = tl.load(scales + row, mask=row < rows, other=0.0).to(tl.float64)
    offset = tl.load(offsets + row, mask=row < rows, other=0.0).to(tl.float64)
    for start in range(0, size, BLOCK):
        at = start + columns
        inside = (row < rows) & (at < size)
        if BITS == 8:
            q = tl.load(packed + row * held + at, mask=inside, other=0).to(tl.int32)
        else:
            q = tl.load(packed + row * held + at // 2, mask=inside, other=0).to(tl.int32)
            q = (q >> (4 * (at % 2))) & 15
        value = offset + scale * q.to(tl.float64)
        tl.store(out + row * size + at, value.to(tl.float32).to(out.dtype.element_ty), mask=inside)


def _constants(levels: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """Of each dimension: the shift that maps 0 to 0, the half range of the bound and its offset, as float64 sees them;
    see :func:`losatok_ext.ops.fsq_quantize`.
    """
    ranges = tuple((count - 1) * (1 + FSQ_MARGIN) / 2 for count in levels)
    offsets = tuple(0.0 if count % 2 else 0.5 for count in levels)
    shifts = tuple(math.atanh(offset / half) for offset, half in zip(offsets, ranges, strict=True))
    return {"SHIFTS": shifts, "RANGES": ranges, "OFFSETS": offsets}


def _frames(x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, tuple[int, ...], tuple[int]]:
    """Lengths clamped, the sizes and strides that kernels take of x [B, T, D], and their grid."""
    if lengths is not None:
        lengths = lengths.to(device=x.device, dtype=torch.int64).clamp(0, x.shape[1])
    rows = x.shape[0] * x.shape[1]
    return lengths, (x.shape[1], *x.stride(), rows), (L.ceil_div(rows, LEVEL_ROWS),)


def fsq_quantize_forward(x: Tensor, levels: Sequence[int], lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [B, T, D], D levels -> quantized [B, T, D] in x's dtype, indices [B, T] (int64, -1 past a length)."""
    L.check_dtype("x", x)
    quantized = torch.empty(tuple(x.shape), dtype=x.dtype, device=x.device)
    indices = x.new_empty(x.shape[:-1], dtype=torch.int64)
    lengths, sizes, grid = _frames(x, lengths)
    with L.on_device(x):
        L.launch(
            fsq_quantize_kernel, grid, x, lengths, quantized, indices, *sizes,
            LEVELS=tuple(levels), **_constants(levels), ROWS=LEVEL_ROWS, num_warps=4,
        )  # fmt: skip
    return quantized, indices


def fsq_quantize_backward(grad: Tensor, x: Tensor, levels: Sequence[int], lengths: Tensor | None) -> Tensor:
    """The gradient of x [B, T, D] in its dtype, straight through the rounding; grad [B, T, D]."""
    L.check_dtype("x", x)
    out = torch.empty(tuple(x.shape), dtype=x.dtype, device=x.device)
    constants = _constants(levels)
    slopes = tuple(half / (count // 2) for half, count in zip(constants["RANGES"], levels, strict=True))
    lengths, sizes, grid = _frames(x, lengths)
    with L.on_device(x):
        L.launch(
            fsq_gradient_kernel, grid, grad.contiguous(), x, lengths, out, *sizes,
            SHIFTS=constants["SHIFTS"], SLOPES=slopes, ROWS=LEVEL_ROWS, num_warps=4,
        )  # fmt: skip
    return out


def _check_output(dtype: torch.dtype) -> None:
    if dtype not in L.DTYPES:
        raise TypeError(
            f"dtype should be float32, bfloat16 or float16 for the Triton kernels, got "
            f"{str(dtype).removeprefix('torch.')}; use_backend('reference') gives it, and on the CPU 'native'"
        )


def fsq_dequantize_forward(indices: Tensor, levels: Sequence[int], dtype: torch.dtype) -> Tensor:
    """indices [N] -> [N, D] in ``dtype``; one outside 0..(product of levels) - 1 gives zeros."""
    _check_output(dtype)
    rows = indices.shape[0]
    out = indices.new_empty((rows, len(levels)), dtype=dtype)
    with L.on_device(indices):
        L.launch(
            fsq_dequantize_kernel, (L.ceil_div(rows, LEVEL_ROWS),), indices.contiguous(), out, rows, math.prod(levels),
            LEVELS=tuple(levels), ROWS=LEVEL_ROWS, num_warps=4,
        )  # fmt: skip
    return out


def affine_quantize_forward(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, n] -> packed [N, n or ceil(n / 2)] uint8, scale and offset [N], float32; NaN where x is not finite."""
    L.check_dtype("x", x)
    x = L.rows_contiguous(x)
    rows, size = x.shape
    held = size if bits == 8 else (size + 1) // 2
    packed = x.new_empty((rows, held), dtype=torch.uint8)
    if size == 0:
        zeros = x.new_zeros((rows,), dtype=torch.float32)
        return packed, zeros, zeros.clone()
    scale, offset = (x.new_empty((rows,), dtype=torch.float32) for _ in range(2))
    grid, blocks = row_blocks(rows, size)
    with L.on_device(x):
        L.launch(
            affine_quantize_kernel, grid, x, packed, scale, offset, rows, size, x.stride(0), held,
            BITS=bits, enable_fp_fusion=False, **blocks,
        )  # fmt: skip
    return packed, scale, offset


def affine_dequantize_forward(
    packed: Tensor, scale: Tensor, offset: Tensor, bits: int, size: int, dtype: torch.dtype
) -> Tensor:
    """packed [N, n or ceil(n / 2)], scale and offset [N] -> [N, size] in ``dtype``: offset + scale q, by float64."""
    _check_output(dtype)
    rows, held = packed.shape
    out = packed.new_empty((rows, size), dtype=dtype)
    grid, blocks = row_blocks(rows, max(size, 1))
    with L.on_device(packed):
        if size:
            L.launch(
                affine_dequantize_kernel, grid, packed.contiguous(), scale.contiguous(), offset.contiguous(), out,
                rows, size, held, BITS=bits, **blocks,
            )  # fmt: skip
    return out
