"""Kernels over rows that the time-relation algorithms share: norms, normalised copies, and the gradient through the
normalisation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.rows import NORM_EPS, row_blocks, rows_of_clips


@triton.jit
def inverse_norm_kernel(
    x, lengths, inverse, time, features, clip_stride, stride, rows, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """inverse [clips, time] = 1 / max(|row|, 1e-12), 0 past a length; x [clips, time, features] by strides. Grid
    (blocks of the ``rows`` = clips x time).
    """
    row, clip, frame, width = rows_of_clips(lengths, 0, rows, time, features, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    source = x + (clip * clip_stride + frame * stride) + columns
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for k in range(0, features, BLOCK):
        v = tl.load(source + k, mask=k + columns < width, other=0.0).to(tl.float32)
        squares += v * v
    result = 1.0 / tl.maximum(tl.sqrt(tl.sum(squares, 1, keep_dims=True)), NORM_EPS)
    tl.store(inverse + row, tl.where(width > 0, result, 0.0), mask=row < rows)


@triton.jit
def normalize_kernel(
    x, lengths, out, time, features, clip_stride, stride, rows, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """out [clips, time, features] = rows over max(their norm, 1e-12), 0 past a length; x by strides. Grid (blocks of
    the ``rows`` = clips x time).
    """
    row, clip, frame, width = rows_of_clips(lengths, 0, rows, time, features, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    source = x + (clip * clip_stride + frame * stride) + columns
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for k in range(0, features, BLOCK):
        v = tl.load(source + k, mask=k + columns < width, other=0.0).to(tl.float32)
        squares += v * v
    inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(squares, 1, keep_dims=True)), NORM_EPS)
    target = out + row * features + columns
    for k in range(0, features, BLOCK):
        v = tl.load(source + k, mask=k + columns < width, other=0.0).to(tl.float32)
        tl.store(target + k, (v * inverse).to(out.dtype.element_ty), mask=(k + columns < features) & (row < rows))


@triton.jit
def finish_gradient_kernel(
    parts, low, lengths, scale, grad, time, latent, clip_stride, stride, rows, splits,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad = scale (g - (g.l) l) / |row| with g the sum of parts [splits, rows, latent] and l the normalised row of
    low; grid (blocks of ``rows``).

    grad [rows, latent] is 0 past a length. Where |row| <= 1e-12 the norm is a constant, and nothing is projected out.
    """
    row, clip, frame, width = rows_of_clips(lengths, 0, rows, time, latent, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    source = low + (clip * clip_stride + frame * stride) + columns
    target = grad + row * latent + columns
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    products = tl.zeros([ROWS, BLOCK], tl.float32)
    for k in range(0, latent, BLOCK):
        mask = k + columns < width
        l_rows = tl.load(source + k, mask=mask, other=0.0).to(tl.float32)
        g = tl.zeros([ROWS, BLOCK], tl.float32)
        part = parts + row * latent + k + columns
        for _ in range(splits):
            g += tl.load(part, mask=mask, other=0.0)
            part += tl.cast(rows, tl.int64) * latent
        squares += l_rows * l_rows
        products += g * l_rows
        tl.store(target + k, g, mask=(k + columns < latent) & (row < rows))
    norm = tl.sqrt(tl.sum(squares, 1, keep_dims=True))
    inverse = 1.0 / tl.maximum(norm, NORM_EPS)
    along = tl.where(norm > NORM_EPS, tl.sum(products, 1, keep_dims=True) * inverse * inverse, 0.0)
    factor = tl.load(scale) * inverse
    for k in range(0, latent, BLOCK):
        mask = k + columns < width
        l_rows = tl.load(source + k, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(target + k, mask=mask, other=0.0)
        tl.store(target + k, (g - along * l_rows) * factor, mask=mask)


def inverse_norms(x: Tensor, lengths: Tensor | None) -> Tensor:
    """1 / max(|row|, 1e-12) of x [B, T, C] (unit last stride), float32 [B, T]; 0 past ``lengths``, not read there."""
    clips, time, features = x.shape
    inverse = x.new_empty((clips, time), dtype=torch.float32)
    sizes = (time, features, x.stride(0), x.stride(1), clips * time)
    grid, blocks = row_blocks(clips * time, features)
    L.launch(inverse_norm_kernel, grid, x, lengths, inverse, *sizes, **blocks)
    return inverse


def normalized(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Rows of x [B, T, C] (unit last stride) over max(norm, 1e-12), in its dtype, contiguous; 0 past ``lengths``."""
    clips, time, features = x.shape
    out = torch.empty((clips, time, features), dtype=x.dtype, device=x.device)
    sizes = (time, features, x.stride(0), x.stride(1), clips * time)
    grid, blocks = row_blocks(clips * time, features)
    L.launch(normalize_kernel, grid, x, lengths, out, *sizes, **blocks)
    return out


def finish_gradient(parts: Tensor, low: Tensor, lengths: Tensor | None, scale: Tensor) -> Tensor:
    """From sums over j of E[i, j] l_j, parts [splits, B, T, d], to the gradient by low [B, T, d], float32, times
    ``scale`` [] (float64).
    """
    clips, time, latent = low.shape
    grad = low.new_empty((clips, time, latent), dtype=torch.float32)
    sizes = (time, latent, low.stride(0), low.stride(1), clips * time, parts.shape[0])
    grid, blocks = row_blocks(clips * time, latent)
    L.launch(finish_gradient_kernel, grid, parts, low, lengths, scale.float(), grad, *sizes, **blocks)
    return grad


def valid_pairs(clips: int, time: int, lengths: Tensor | None, window: int, device: torch.device) -> Tensor:
    """How many pairs of frames count, at least 1: [] float64 on ``device``; ``lengths`` [B] clamped to 0..T, ``window``
    -1 for none.
    """
    n = torch.full((clips,), time, dtype=torch.int64, device=device) if lengths is None else lengths
    if window < 0:
        pairs = n * n
    else:
        w = (n - 1).clamp(min=0, max=window)  # a clip of n frames has n - k pairs on each side at distance k <= w
        pairs = n + 2 * (w * n - w * (w + 1) // 2)
    return pairs.sum().clamp(min=1).double()
