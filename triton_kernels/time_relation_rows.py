"""What the time-relation algorithms share, a row at a time: norms, normalised copies, and the gradient through the
normalisation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.triton_kernels import launch as L

NORM_EPS = tl.constexpr(1e-12)


@triton.jit
def _valid_row(lengths, time, features):
    """The program's row of [clips time], its clip, its frame, and how much of it is read: ``features``, or 0 past the
    clip's length.
    """
    row = tl.program_id(0).to(tl.int64)
    clip = row // time
    frame = row % time
    width = features
    if lengths is not None:
        width = tl.where(frame < tl.load(lengths + clip), features, 0)
    return row, clip, frame, width


@triton.jit
def inverse_norm_kernel(x, lengths, inverse, time, features, clip_stride, stride, BLOCK: tl.constexpr):
    """inverse [clips, time] = 1 / max(|row|, 1e-12), 0 past a length; x [clips, time, features] by strides. Grid (clips
    x time).
    """
    row, clip, frame, width = _valid_row(lengths, time, features)
    columns = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float32)
    for k in range(0, features, BLOCK):
        v = tl.load(x + clip * clip_stride + frame * stride + k + columns, mask=k + columns < width, other=0.0)
        squares += v.to(tl.float32) * v.to(tl.float32)
    result = 1.0 / tl.maximum(tl.sqrt(tl.sum(squares, 0)), NORM_EPS)
    tl.store(inverse + row, tl.where(width > 0, result, 0.0))


@triton.jit
def normalize_kernel(x, lengths, out, time, features, clip_stride, stride, BLOCK: tl.constexpr):
    """out [clips, time, features] = rows over max(their norm, 1e-12), 0 past a length; x by strides. Grid (clips x
    time).
    """
    row, clip, frame, width = _valid_row(lengths, time, features)
    columns = tl.arange(0, BLOCK)
    source = x + clip * clip_stride + frame * stride + columns
    squares = tl.zeros([BLOCK], tl.float32)
    for k in range(0, features, BLOCK):
        v = tl.load(source + k, mask=k + columns < width, other=0.0).to(tl.float32)
        squares += v * v
    inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(squares, 0)), NORM_EPS)
    for k in range(0, features, BLOCK):
        v = tl.load(source + k, mask=k + columns < width, other=0.0).to(tl.float32)
        tl.store(
            out + row * features + k + columns, (v * inverse).to(out.dtype.element_ty), mask=k + columns < features
        )


@triton.jit
def finish_gradient_kernel(
    parts, low, lengths, scale, grad, time, latent, clip_stride, stride, rows, splits, BLOCK: tl.constexpr
):
    """grad = scale (g - (g.l) l) / |row| with g the sum of parts [splits, rows, latent] and l the normalised row of
    low; grid (rows).

    grad [rows, latent] is 0 past a length. Where |row| <= 1e-12 the norm is a constant, and nothing is projected out.
    """
    row, clip, frame, width = _valid_row(lengths, time, latent)
    columns = tl.arange(0, BLOCK)
    source = low + clip * clip_stride + frame * stride + columns
    squares = tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for k in range(0, latent, BLOCK):
        mask = k + columns < width
        l_row = tl.load(source + k, mask=mask, other=0.0).to(tl.float32)
        g = tl.zeros([BLOCK], tl.float32)
        for s in range(splits):
            g += tl.load(parts + (s * rows + row) * latent + k + columns, mask=mask, other=0.0)
        squares += l_row * l_row
        products += g * l_row
        tl.store(grad + row * latent + k + columns, g, mask=k + columns < latent)
    norm = tl.sqrt(tl.sum(squares, 0))
    inverse = 1.0 / tl.maximum(norm, NORM_EPS)
    along = tl.where(norm > NORM_EPS, tl.sum(products, 0) * inverse * inverse, 0.0)
    factor = tl.load(scale) * inverse
    for k in range(0, latent, BLOCK):
        mask = k + columns < width
        l_row = tl.load(source + k, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + row * latent + k + columns, mask=mask, other=0.0)
        tl.store(grad + row * latent + k + columns, (g - along * l_row) * factor, mask=mask)


def _block(features: int) -> dict[str, int]:
    block = min(L.tile(features), 4096)
    return {"BLOCK": block, "num_warps": 1 if block <= 256 else 4}


def inverse_norms(x: Tensor, lengths: Tensor | None) -> Tensor:
    """1 / max(|row|, 1e-12) of x [B, T, C] (unit last stride), float32 [B, T]; 0 past ``lengths``, not read there."""
    clips, time, features = x.shape
    inverse = x.new_empty((clips, time), dtype=torch.float32)
    sizes = (time, features, x.stride(0), x.stride(1))
    L.launch(inverse_norm_kernel, (clips * time,), x, lengths, inverse, *sizes, **_block(features))
    return inverse


def normalized(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Rows of x [B, T, C] (unit last stride) over max(norm, 1e-12), in its dtype, contiguous; 0 past ``lengths``."""
    clips, time, features = x.shape
    out = torch.empty((clips, time, features), dtype=x.dtype, device=x.device)
    sizes = (time, features, x.stride(0), x.stride(1))
    L.launch(normalize_kernel, (clips * time,), x, lengths, out, *sizes, **_block(features))
    return out


def finish_gradient(parts: Tensor, low: Tensor, lengths: Tensor | None, scale: Tensor) -> Tensor:
    """From sums over j of E[i, j] l_j, parts [splits, B, T, d], to the gradient by low [B, T, d], float32, times
    ``scale`` [] (float64).
    """
    clips, time, latent = low.shape
    grad = low.new_empty((clips, time, latent), dtype=torch.float32)
    sizes = (time, latent, low.stride(0), low.stride(1), clips * time, parts.shape[0])
    L.launch(
        finish_gradient_kernel, (clips * time,), parts, low, lengths, scale.float(), grad, *sizes, **_block(latent)
    )
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
