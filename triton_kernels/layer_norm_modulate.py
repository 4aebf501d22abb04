"""LayerNorm with a modulation, y = LN(x) (1 + scale) + shift: one pass over x forward, one over x and the gradient
backward.

A program holds whole rows in registers, so that x is read once. Shift and scale are each per clip ([B, C]) or per frame
([B, T, C]). Gradients of those per clip are computed in two steps, in a fixed order: the kernel that computes grad_x
also sums over chunks of frames, then the chunks are added up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.rows import (
    add_chunks,
    frame_chunks,
    frames_of_chunk,
    modulation_gradient,
    per_clip_strides,
    whole_rows,
)


@triton.jit
def layer_norm_modulate_kernel(
    x, shift, scale, y, mean, rstd, rows, time, features, eps,
    x_clip_stride, x_stride, shift_clip_stride, shift_stride, scale_clip_stride, scale_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y [rows, features], and mean and rstd [rows] in float32; ``rows`` = clips x time. A stride over frames is 0 where
    shift or scale belongs to the clip. Grid (blocks of ROWS rows); BLOCK holds a row.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (columns < features)
    clip, frame = row // time, row % time
    v = tl.load(x + (clip * x_clip_stride + frame * x_stride) + columns, mask=inside, other=0.0).to(tl.float32)
    average = tl.sum(v, 1, keep_dims=True) / features
    v = tl.where(columns < features, v - average, 0.0)
    rest = tl.sum(v, 1, keep_dims=True) / features  # what rounding left of the mean, large where the mean is
    average += rest
    v = tl.where(columns < features, v - rest, 0.0)
    inverse = tl.rsqrt(tl.sum(v * v, 1, keep_dims=True) / features + eps)
    factor = tl.load(scale + (clip * scale_clip_stride + frame * scale_stride) + columns, mask=inside, other=0.0)
    offset = tl.load(shift + (clip * shift_clip_stride + frame * shift_stride) + columns, mask=inside, other=0.0)
    v = v * inverse * (1.0 + factor.to(tl.float32)) + offset.to(tl.float32)
    tl.store(y + row * features + columns, v.to(y.dtype.element_ty), mask=inside)
    tl.store(mean + row, average, mask=row < rows)
    tl.store(rstd + row, inverse, mask=row < rows)


@triton.jit
def layer_norm_modulate_backward_kernel(
    grad, x, scale, mean, rstd, grad_x, grad_shift, grad_scale, time, features, chunks, frames,
    grad_clip_stride, grad_stride, x_clip_stride, x_stride, scale_clip_stride, scale_stride,
    SHIFT_PER_FRAME: tl.constexpr, SCALE_PER_FRAME: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_x for ``frames`` frames of a clip, and the gradients of shift and scale: a row each where they are per
    frame, else sums over the program's frames, in float32 [clips, chunks, features]. Grid (clips x chunks).
    """
    clip, first, last = frames_of_chunk(time, chunks, frames)
    columns = tl.arange(0, BLOCK)[None, :]
    shift_sums = tl.zeros([ROWS, BLOCK], tl.float32)
    scale_sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(first, last, ROWS):
        frame = (start + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (frame < last) & (columns < features)
        g = tl.load(grad + (clip * grad_clip_stride + frame * grad_stride) + columns, mask=inside, other=0.0)
        v = tl.load(x + (clip * x_clip_stride + frame * x_stride) + columns, mask=inside, other=0.0)
        factor = tl.load(scale + (clip * scale_clip_stride + frame * scale_stride) + columns, mask=inside, other=0.0)
        row = clip * time + frame
        average = tl.load(mean + row, mask=frame < last, other=0.0)
        inverse = tl.load(rstd + row, mask=frame < last, other=0.0)
        g = g.to(tl.float32)
        normal = tl.where(inside, (v.to(tl.float32) - average) * inverse, 0.0)
        target = row * features + columns
        if SHIFT_PER_FRAME:
            tl.store(grad_shift + target, g.to(grad_shift.dtype.element_ty), mask=inside)
        else:
            shift_sums += g
        if SCALE_PER_FRAME:
            tl.store(grad_scale + target, (g * normal).to(grad_scale.dtype.element_ty), mask=inside)
        else:
            scale_sums += g * normal
        g *= 1.0 + factor.to(tl.float32)
        along_one = tl.sum(g, 1, keep_dims=True) / features
        along_normal = tl.sum(g * normal, 1, keep_dims=True) / features
        g = (g - along_one - normal * along_normal) * inverse
        tl.store(grad_x + target, g.to(grad_x.dtype.element_ty), mask=inside)
    sums_at = tl.program_id(0).to(tl.int64) * features + tl.arange(0, BLOCK)
    if not SHIFT_PER_FRAME:
        tl.store(grad_shift + sums_at, tl.sum(shift_sums, 0), mask=tl.arange(0, BLOCK) < features)
    if not SCALE_PER_FRAME:
        tl.store(grad_scale + sums_at, tl.sum(scale_sums, 0), mask=tl.arange(0, BLOCK) < features)


def layer_norm_modulate_forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, T, C], shift and scale [B, C] or [B, T, C] -> y [B, T, C] and the mean and 1 / deviation of every row,
    float32 [B, T].
    """
    L.check_dtype("x", x)
    x, shift, scale = L.rows_contiguous(x), L.rows_contiguous(shift), L.rows_contiguous(scale)
    clips, time, features = x.shape
    y = x.new_empty(x.shape)
    mean = x.new_empty((clips, time), dtype=torch.float32)
    rstd = x.new_empty((clips, time), dtype=torch.float32)
    grid, blocks = whole_rows(clips * time, features)
    if features:
        with L.on_device(x):
            L.launch(
                layer_norm_modulate_kernel, grid, x, shift, scale, y, mean, rstd, clips * time, time, features, eps,
                x.stride(0), x.stride(1), *per_clip_strides(shift), *per_clip_strides(scale), **blocks,
            )  # fmt: skip
    return y, mean, rstd


def layer_norm_modulate_backward(
    grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, per_frame_shift: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, shift and scale, in x's dtype; grad and x [B, T, C], mean and rstd [B, T] of the forward."""
    L.check_dtype("x", x)
    grad, x, scale = L.rows_contiguous(grad), L.rows_contiguous(x), L.rows_contiguous(scale)
    clips, time, features = x.shape
    per_frame_scale = scale.dim() == 3
    (_, blocks) = whole_rows(clips * time, features)
    chunks, frames = frame_chunks(clips, time, blocks["ROWS"], x.device)
    grad_x = x.new_empty(x.shape)

    grad_shift, grad_scale = (modulation_gradient(x, own, chunks) for own in (per_frame_shift, per_frame_scale))
    if features:
        with L.on_device(x):
            L.launch(
                layer_norm_modulate_backward_kernel, (clips * chunks,),
                grad, x, scale, mean.contiguous(), rstd.contiguous(), grad_x, grad_shift, grad_scale,
                time, features, chunks, frames, grad.stride(0), grad.stride(1), x.stride(0), x.stride(1),
                *per_clip_strides(scale), SHIFT_PER_FRAME=per_frame_shift, SCALE_PER_FRAME=per_frame_scale, **blocks,
            )  # fmt: skip
    return (
        grad_x,
        add_chunks(grad_shift, per_frame_shift, x.dtype),
        add_chunks(grad_scale, per_frame_scale, x.dtype),
    )
