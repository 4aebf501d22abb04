"""The gated residual, y = x + gate branch, and its gradients; the gate is per clip ([B, C]) or per frame ([B, T, C]).

The gradient of a gate per clip is computed in two steps, in a fixed order: the kernel of the branch's gradient also
sums over chunks of frames, then the chunks are added up.
"""

from __future__ import annotations

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
    row_blocks,
)


@triton.jit
def gated_residual_kernel(
    x, branch, gate, y, rows, time, features,
    x_clip_stride, x_stride, branch_clip_stride, branch_stride, gate_clip_stride, gate_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y [rows, features] = x + gate branch; ``rows`` = clips x time, grid (blocks of ROWS rows)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    clip, frame = row // time, row % time
    x += clip * x_clip_stride + frame * x_stride
    branch += clip * branch_clip_stride + frame * branch_stride
    gate += clip * gate_clip_stride + frame * gate_stride
    y += row * features
    for k in range(0, features, BLOCK):
        inside = (row < rows) & (k + columns < features)
        v = tl.load(x + (k + columns), mask=inside, other=0.0).to(tl.float32)
        b = tl.load(branch + (k + columns), mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gate + (k + columns), mask=inside, other=0.0).to(tl.float32)
        tl.store(y + (k + columns), (v + g * b).to(y.dtype.element_ty), mask=inside)


@triton.jit
def gated_residual_backward_kernel(
    grad, branch, gate, grad_branch, grad_gate, time, features, chunks, frames,
    grad_clip_stride, grad_stride, branch_clip_stride, branch_stride, gate_clip_stride, gate_stride,
    PER_FRAME: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_branch = gate grad for ``frames`` frames of a clip and BLOCK features, and the gate's gradient: grad branch
    where it is per frame, else its sums over the program's frames, in float32 [clips, chunks, features]. Grid (clips x
    chunks, blocks of features).
    """
    clip, first, last = frames_of_chunk(time, chunks, frames)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(first, last, ROWS):
        frame = (start + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (frame < last) & (columns < features)
        g = tl.load(grad + (clip * grad_clip_stride + frame * grad_stride) + columns, mask=inside, other=0.0)
        b = tl.load(branch + (clip * branch_clip_stride + frame * branch_stride) + columns, mask=inside, other=0.0)
        a = tl.load(gate + (clip * gate_clip_stride + frame * gate_stride) + columns, mask=inside, other=0.0)
        g = g.to(tl.float32)
        target = (clip * time + frame) * features + columns
        tl.store(grad_branch + target, (g * a.to(tl.float32)).to(grad_branch.dtype.element_ty), mask=inside)
        g *= b.to(tl.float32)
        if PER_FRAME:
            tl.store(grad_gate + target, g.to(grad_gate.dtype.element_ty), mask=inside)
        else:
            sums += g
    if not PER_FRAME:
        feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        at = tl.program_id(0).to(tl.int64) * features + feature
        tl.store(grad_gate + at, tl.sum(sums, 0), mask=feature < features)


def gated_residual_forward(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x and branch [B, T, C], gate [B, C] or [B, T, C] -> x + gate branch, [B, T, C]."""
    L.check_dtype("x", x)
    x, branch, gate = L.rows_contiguous(x), L.rows_contiguous(branch), L.rows_contiguous(gate)
    clips, time, features = x.shape
    y = x.new_empty(x.shape)
    grid, blocks = row_blocks(clips * time, max(features, 1))
    with L.on_device(x):
        L.launch(
            gated_residual_kernel, grid, x, branch, gate, y, clips * time, time, features,
            x.stride(0), x.stride(1), branch.stride(0), branch.stride(1), *per_clip_strides(gate), **blocks,
        )  # fmt: skip
    return y


def gated_residual_backward(grad: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of branch [B, T, C] and gate, in their dtype; that of x is grad [B, T, C] itself."""
    L.check_dtype("branch", branch)
    grad, branch, gate = L.rows_contiguous(grad), L.rows_contiguous(branch), L.rows_contiguous(gate)
    clips, time, features = branch.shape
    per_frame = gate.dim() == 3
    block = min(L.tile(max(features, 1)), 512)
    rows = 2048 // block
    blocks = L.ceil_div(features, block)
    chunks, frames = frame_chunks(clips * blocks, time, rows, branch.device)
    grad_branch = branch.new_empty(branch.shape)
    grad_gate = modulation_gradient(branch, per_frame, chunks)
    with L.on_device(branch):
        L.launch(
            gated_residual_backward_kernel, (clips * chunks, blocks),
            grad, branch, gate, grad_branch, grad_gate, time, features, chunks, frames,
            grad.stride(0), grad.stride(1), branch.stride(0), branch.stride(1), *per_clip_strides(gate),
            PER_FRAME=per_frame, ROWS=rows, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return grad_branch, add_chunks(grad_gate, per_frame, branch.dtype)
