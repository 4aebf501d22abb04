"""The parts of the codebook ops that work on rows or codes: sums of chosen codes, gradients to rows and to codes.

The gradient to a code is the sum over the rows that chose it. A stable sort of the choices puts these rows next to each
other, and one program adds up the rows of a code (for one block of features) in their order: there are no atomic
additions, results repeat bit for bit, and memory beyond the result is O(N).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.rows import row_blocks


@triton.jit
def decode_kernel(
    codes, books, out, rows, used, count, features, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out [rows, features] = the sum over q of books[q, codes[row, q]], in the order of q; a code outside 0..count-1
    adds nothing. codes [rows, used], books [*, count, features]. Grid (blocks of ``rows``).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    for start in range(0, features, BLOCK):
        inside = (row < rows) & (start + columns < features)
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        for q in range(used):
            k = tl.load(codes + row * used + q, mask=row < rows, other=-1)
            at = books + (tl.cast(q, tl.int64) * count + k) * features + start + columns
            total += tl.load(at, mask=inside & (k >= 0) & (k < count), other=0.0).to(tl.float32)
        tl.store(out + row * features + start + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def distance_gradient_kernel(
    grad, x, codes, indices, out, count, time, features, x_clip_stride, x_stride, rows,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [rows, features] = 2 grad (x - codes[indices]), codes [count, features]; 0 where the index lies outside
    0..count-1 and x is not read; x by strides. Grid (blocks of the ``rows`` = clips x time).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    k = tl.load(indices + row, mask=row < rows, other=-1)
    k = tl.where(k < count, k, -1)
    g = 2.0 * tl.load(grad + row, mask=k >= 0, other=0.0)
    source = x + (row // time) * x_clip_stride + (row % time) * x_stride + columns
    for start in range(0, features, BLOCK):
        inside = start + columns < features
        v = tl.load(source + start, mask=inside & (k >= 0), other=0.0).to(tl.float32)
        c = tl.load(codes + k * features + start + columns, mask=inside & (k >= 0), other=0.0).to(tl.float32)
        value = (g * (v - c)).to(out.dtype.element_ty)
        tl.store(out + row * features + start + columns, value, mask=inside & (row < rows))


@triton.jit
def code_gradient_kernel(
    values, weights, codes, order, starts, out, rows, time, features, clip_stride, stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[k] = the sum over the rows of code k of values[row], or where ``weights`` [rows] is not None of
    2 weights[row] (codes[k] - values[row]); grid (codes, blocks of features).

    The rows of code k are order[starts[k] .. starts[k + 1]] modulo ``rows``; values [rows / time, time, features] by
    strides; codes and out [*, features].
    """
    code = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    first = tl.load(starts + code)
    last = tl.load(starts + code + 1)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    if weights is not None:
        own = tl.load(codes + code * features + columns, mask=columns < features, other=0.0).to(tl.float32)
    for position in range(first, last, ROWS):
        at = position + tl.arange(0, ROWS)[:, None]
        row = tl.load(order + at, mask=at < last, other=0) % rows
        mask = (at < last) & (columns < features)
        source = values + (row // time) * clip_stride + (row % time) * stride + columns
        v = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        if weights is not None:
            v = 2.0 * tl.load(weights + row, mask=at < last, other=0.0) * tl.where(mask, own - v, 0.0)
        total += v
    target = out + code * features + tl.arange(0, BLOCK) + tl.program_id(1) * BLOCK
    sums = tl.sum(total, 0).to(out.dtype.element_ty)
    tl.store(target, sums, mask=tl.program_id(1) * BLOCK + tl.arange(0, BLOCK) < features)


def sum_of_codes(codes: Tensor, books: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, d] in ``dtype``: the sum of what each row of codes [N, q] names in books [Q, K, d], both contiguous."""
    (rows, used), (_, count, features) = codes.shape, books.shape
    out = books.new_empty((rows, features), dtype=dtype)
    grid, blocks = row_blocks(rows, features)
    L.launch(decode_kernel, grid, codes, books, out, rows, used, count, features, **blocks)
    return out


def distance_gradient(grad: Tensor, x: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
    """2 grad (x - codes[indices]) in x's dtype, contiguous: x [B, T, d] (unit last stride), grad [B, T] float32."""
    clips, time, features = x.shape
    out = torch.empty((clips, time, features), dtype=x.dtype, device=x.device)
    sizes = (codes.shape[0], time, features, x.stride(0), x.stride(1), clips * time)
    grid, blocks = row_blocks(clips * time, features)
    L.launch(distance_gradient_kernel, grid, grad, x, codes, indices, out, *sizes, **blocks)
    return out


def code_gradient(values: Tensor, weights: Tensor | None, books: Tensor, choices: Tensor) -> Tensor:
    """[Q, K, d] like ``books``: per code the sum of what its rows add, see :func:`code_gradient_kernel`.

    values [B, T, d] (unit last stride), weights [B, T] float32 or None, choices [q, B T] with q <= Q.
    """
    (stages, count, features), (clips, time, _) = books.shape, values.shape
    total = stages * count
    stage = torch.arange(choices.shape[0], device=choices.device)[:, None]
    inside = (choices >= 0) & (choices < count)
    keys = torch.where(inside, choices + stage * count, total).flatten()
    if total < 1 << 31:
        keys = keys.to(torch.int32)  # half of what a sort moves
    keys, order = torch.sort(keys, stable=True)
    starts = torch.searchsorted(keys, torch.arange(total + 1, device=keys.device, dtype=keys.dtype))
    out = torch.empty((stages, count, features), dtype=books.dtype, device=books.device)
    block = min(L.tile(features), 128)
    grid = (total, L.ceil_div(features, block))
    sizes = (max(clips * time, 1), max(time, 1), features, values.stride(0), values.stride(1))
    L.launch(
        code_gradient_kernel, grid, values, weights, books, order, starts, out, *sizes,
        ROWS=1024 // block, BLOCK=block, num_warps=2,
    )  # fmt: skip
    return out
