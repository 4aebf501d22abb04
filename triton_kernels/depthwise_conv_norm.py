"""A depthwise convolution over time, then LayerNorm, channels last: one kernel forward, two backward.

A program holds all channels of its frames in registers. It loads the frames of each tap again, mostly from the cache:
x is read from memory once, and the result of the convolution is never written there. The backward computes the
convolution again. The gradient before LayerNorm is written to memory once, in float32, between the two kernels, because
neighbouring frames need it. Gradients of parameters are computed in two steps, in a fixed order: sums over chunks of
frames, then the sum over the chunks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.rows import clip_length, frame_chunks, frames_of_chunk

HELD = 8192
"""Float32 elements of convolved frames that a program holds; half as many backward, which holds gradients as well."""

COLUMNS = 128
"""Channels of a program of the second kernel of the backward."""


@triton.jit
def normalized_frames(
    x, weight, bias, frame, last, columns, features, stride, eps, TAPS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of frames [ROWS, 1] of a clip at ``x``, valid below ``last``: the convolution [ROWS, BLOCK] centred and over its
    deviation, zeros past the channels, and 1 / deviation [ROWS, 1].
    """
    inside = columns < features
    v = tl.zeros([ROWS, BLOCK], tl.float32)
    if bias is not None:
        v += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    for j in range(TAPS):
        t = frame + (j - TAPS // 2)
        w = tl.load(weight + j * features + columns, mask=inside, other=0.0).to(tl.float32)
        v += w * tl.load(x + t * stride + columns, mask=inside & (t >= 0) & (t < last), other=0.0).to(tl.float32)
    average = tl.sum(v, 1, keep_dims=True) / features
    v = tl.where(inside, v - average, 0.0)
    rest = tl.sum(v, 1, keep_dims=True) / features  # what rounding left of the mean, large where the mean is
    v = tl.where(inside, v - rest, 0.0)
    inverse = tl.rsqrt(tl.sum(v * v, 1, keep_dims=True) / features + eps)
    return v * inverse, inverse


@triton.jit
def conv_norm_kernel(
    x, weight, bias, gain, shift, lengths, y, time, features, groups, clip_stride, stride, eps,
    TAPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y [clips, time, features]; zeros past a length. weight [TAPS, features]. Grid (clips x groups of ROWS frames)."""
    clip = (tl.program_id(0) // groups).to(tl.int64)
    frame = ((tl.program_id(0) % groups) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    last = clip_length(lengths, clip, time)
    normal, _ = normalized_frames(
        x + clip * clip_stride, weight, bias, frame, last, columns, features, stride, eps, TAPS, ROWS, BLOCK
    )
    if gain is not None:
        normal *= tl.load(gain + columns, mask=columns < features, other=0.0).to(tl.float32)
    if shift is not None:
        normal += tl.load(shift + columns, mask=columns < features, other=0.0).to(tl.float32)
    value = tl.where(frame < last, normal, 0.0).to(y.dtype.element_ty)
    tl.store(y + (clip * time + frame) * features + columns, value, mask=(frame < time) & (columns < features))


@triton.jit
def conv_norm_gradient_kernel(
    grad, x, weight, bias, gain, lengths, by, parts, time, features, chunks, frames,
    grad_clip_stride, grad_stride, clip_stride, stride, eps,
    TAPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """by [clips, time, features]: the gradient by what is convolved, in float32, written below the lengths only; the
    program's sums for gain and shift go to rows TAPS + 1 and TAPS + 2 of parts [clips x chunks, TAPS + 3, features],
    which may be None. Grid (clips x chunks).
    """
    clip, first, end = frames_of_chunk(time, chunks, frames)
    last = clip_length(lengths, clip, time)
    columns = tl.arange(0, BLOCK)[None, :]
    gain_sum = tl.zeros([BLOCK], tl.float32)
    shift_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(first, tl.minimum(end, last).to(tl.int32), ROWS):
        frame = (start + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        normal, inverse = normalized_frames(
            x + clip * clip_stride, weight, bias, frame, last, columns, features, stride, eps, TAPS, ROWS, BLOCK
        )
        inside = (frame < tl.minimum(end, last)) & (columns < features)
        source = grad + clip * grad_clip_stride + frame * grad_stride
        g = tl.load(source + columns, mask=inside, other=0.0).to(tl.float32)
        if parts is not None:
            shift_sum += tl.sum(g, 0)
            gain_sum += tl.sum(tl.where(inside, g * normal, 0.0), 0)
        if gain is not None:
            g *= tl.load(gain + columns, mask=columns < features, other=0.0).to(tl.float32)
        along_one = tl.sum(g, 1, keep_dims=True) / features
        along_normal = tl.sum(g * normal, 1, keep_dims=True) / features
        g = (g - along_one - normal * along_normal) * inverse
        tl.store(by + (clip * time + frame) * features + columns, g, mask=inside)
    if parts is not None:
        feature = tl.arange(0, BLOCK)
        at = parts + (tl.program_id(0).to(tl.int64) * (TAPS + 3) + TAPS + 1) * features + feature
        tl.store(at, gain_sum, mask=feature < features)
        tl.store(at + features, shift_sum, mask=feature < features)


@triton.jit
def conv_gradient_kernel(
    by, x, weight, lengths, grad_x, parts, time, features, chunks, frames, clip_stride, stride,
    TAPS: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With h = ``by`` the gradient by what is convolved: grad_x[t] = sum over j of weight[j] h[t + half - j], zeros
    past a length; weight[j] gets x[t] h[t + half - j] from every t, and the bias h[t]: rows 0 .. TAPS of parts. Either
    may be None. SUMS > TAPS is a power of two. Grid (clips x chunks, blocks of channels).
    """
    clip, first, end = frames_of_chunk(time, chunks, frames)
    last = clip_length(lengths, clip, time)
    stop = tl.minimum(end, last)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    which = tl.arange(0, SUMS)[:, None]
    by += clip * time * features
    x += clip * clip_stride
    sums = tl.zeros([SUMS, BLOCK], tl.float32)
    for start in range(first, end, ROWS):
        frame = (start + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (frame < stop) & (columns < features)
        v = tl.load(x + frame * stride + columns, mask=inside, other=0.0).to(tl.float32)
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        for j in tl.static_range(TAPS):
            t = frame + (TAPS // 2 - j)
            h = tl.load(by + t * features + columns, mask=inside & (t >= 0) & (t < last), other=0.0)
            if grad_x is not None:
                w = tl.load(weight + j * features + columns, mask=columns < features, other=0.0)
                total += w.to(tl.float32) * h
            if parts is not None:
                sums += tl.where(which == j, tl.sum(v * h, 0, keep_dims=True), 0.0)
                if j == TAPS // 2:
                    sums += tl.where(which == TAPS, tl.sum(h, 0, keep_dims=True), 0.0)
        if grad_x is not None:
            target = grad_x + (clip * time + frame) * features + columns
            tl.store(target, total.to(grad_x.dtype.element_ty), mask=(frame < end) & (columns < features))
    if parts is not None:
        at = parts + (tl.program_id(0).to(tl.int64) * (TAPS + 3) + which) * features + columns
        tl.store(at, sums, mask=(which <= TAPS) & (columns < features))


def _frame_blocks(features: int, held: int) -> dict[str, int]:
    """The launch configuration of a kernel whose programs hold ROWS frames of ``features``, BLOCK elements each, about
    ``held`` elements in total.
    """
    block = L.tile(features)
    rows = min(max(held // block, 1), 16)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(max(block * rows // 512, 4), 32)}


def _by_taps(conv_weight: Tensor) -> Tensor:
    """[C, 1, k] as [k, C]: the channels of a tap are next to each other, like those of x."""
    return conv_weight.squeeze(1).t().contiguous()


def depthwise_conv_norm_forward(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    lengths: Tensor | None,
) -> Tensor:
    """x [B, T, C], conv_weight [C, 1, k], all others [C] -> y [B, T, C]."""
    L.check_dtype("x", x)
    x = L.rows_contiguous(x)
    clips, time, features = x.shape
    y = x.new_empty((clips, time, features))
    blocks = _frame_blocks(features, HELD)
    groups = L.ceil_div(time, blocks["ROWS"])
    with L.on_device(x):
        L.launch(
            conv_norm_kernel, (clips * groups,), x, _by_taps(conv_weight),
            *L.contiguous(conv_bias, norm_weight, norm_bias, lengths), y, time, features, groups,
            x.stride(0), x.stride(1), eps, TAPS=conv_weight.shape[2], **blocks,
        )  # fmt: skip
    return y


def depthwise_conv_norm_backward(
    grad: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    eps: float,
    lengths: Tensor | None,
    need_x: bool,
    need_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x [B, T, C], conv_weight [C, 1, k], conv_bias, norm_weight and norm_bias [C], in x's dtype; [0]
    where not needed.
    """
    L.check_dtype("x", x)
    grad, x = L.rows_contiguous(grad), L.rows_contiguous(x)
    conv_bias, norm_weight, lengths = L.contiguous(conv_bias, norm_weight, lengths)
    (clips, time, features), taps = x.shape, conv_weight.shape[2]
    blocks = _frame_blocks(features, HELD // 2)
    chunks, frames = frame_chunks(clips, time, blocks["ROWS"], x.device)
    weight = _by_taps(conv_weight)
    by = x.new_empty((clips, time, features), dtype=torch.float32)
    grad_x = x.new_empty((clips, time, features)) if need_x else None
    parts = x.new_empty((clips * chunks, taps + 3, features), dtype=torch.float32) if need_parameters else None
    with L.on_device(x):
        L.launch(
            conv_norm_gradient_kernel, (clips * chunks,), grad, x, weight,
            conv_bias, norm_weight, lengths, by, parts, time, features, chunks, frames,
            grad.stride(0), grad.stride(1), x.stride(0), x.stride(1), eps, TAPS=taps, **blocks,
        )  # fmt: skip
        L.launch(
            conv_gradient_kernel, (clips * chunks, L.ceil_div(features, COLUMNS)), by, x, weight, lengths, grad_x,
            parts, time, features, chunks, frames, x.stride(0), x.stride(1),
            TAPS=taps, SUMS=1 << taps.bit_length(), ROWS=8, BLOCK=COLUMNS, num_warps=8,
        )  # fmt: skip
    none = x.new_empty((0,))
    if parts is None:
        return x.new_empty((0,)) if grad_x is None else grad_x, none, none.clone(), none.clone(), none.clone()
    sums = parts.sum(0).to(x.dtype)
    return (
        none if grad_x is None else grad_x,
        sums[:taps].t().contiguous().unsqueeze(1),
        sums[taps].clone(),
        sums[taps + 1].clone(),
        sums[taps + 2].clone(),
    )
