"""The bottleneck's kernels. Launchers and launch tables, and what is fused and why, are in ``bottleneck.py``.

Rows and hidden features past the last one are read as the last one and not stored. An address is a 64-bit base for
each tile plus 32-bit offsets within it.
"""

import triton
import triton.language as tl

from losatok_ext.triton_kernels.activation import activate, derivative
from losatok_ext.triton_kernels.products import rows_by_rows


@triton.jit
def project_kernel(
    x, weight_in, bias_in, weight_out, bias_out, z, hidden, n, features, hiddens, outputs, x_stride, per_split,
    ACTIVATION: tl.constexpr, KEEP: tl.constexpr, SPLIT: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """z = act(x W_in^T + b_in) W_out^T + b_out for BLOCK_M rows and all ``outputs``; grid (blocks of rows, splits).

    With SPLIT, program_id(1) takes ``per_split`` hidden features (a multiple of BLOCK_N) and writes its share of the
    outputs, float32 and without b_out, to z [splits, n, outputs]. KEEP stores the values before the activation in
    ``hidden`` [n, hiddens]. EVEN: the blocks divide features and hiddens.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    count = tl.minimum(n - start, BLOCK_M).to(tl.int32)
    x += start * x_stride
    x_offsets = tl.minimum(rows, count - 1) * x_stride
    outs = tl.arange(0, BLOCK_OUT)
    acc = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    first = 0
    last = hiddens
    if SPLIT:
        first = tl.program_id(1) * per_split
        last = tl.minimum(first + per_split, hiddens)
    for h in range(first, last, BLOCK_N):
        hs = tl.arange(0, BLOCK_N)
        left = hiddens - h
        weights = weight_in + tl.cast(h, tl.int64) * features
        w_offsets = tl.minimum(hs, left - 1) * features
        pre = rows_by_rows(x, x_offsets, weights, w_offsets, features, EVEN, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        if bias_in is not None:
            pre += tl.load(bias_in + h + tl.minimum(hs, left - 1)).to(tl.float32)[None, :]
        if KEEP:
            at = hidden + start * hiddens + h + (rows[:, None] * hiddens + hs[None, :])
            if EVEN:
                tl.store(at, pre.to(hidden.dtype.element_ty), mask=rows[:, None] < count)
            else:
                tl.store(at, pre.to(hidden.dtype.element_ty), mask=(rows[:, None] < count) & (hs[None, :] < left))
        act = activate(pre, ACTIVATION)
        w_at = weight_out + h + (outs[None, :] * hiddens + hs[:, None])
        if EVEN:
            w = tl.load(w_at, mask=outs[None, :] < outputs, other=0.0)
        else:
            act = tl.where(hs[None, :] < left, act, 0.0)
            w = tl.load(w_at, mask=(outs[None, :] < outputs) & (hs[:, None] < left), other=0.0)
        acc = tl.dot(act.to(x.dtype.element_ty), w, acc, input_precision=PRECISION)
    z += start * outputs
    if SPLIT:
        z += tl.program_id(1).to(tl.int64) * n * outputs
    elif bias_out is not None:
        acc += tl.load(bias_out + outs, mask=outs < outputs, other=0.0).to(tl.float32)[None, :]
    inside = (rows[:, None] < count) & (outs[None, :] < outputs)
    tl.store(z + (rows[:, None] * outputs + outs[None, :]), acc.to(z.dtype.element_ty), mask=inside)


@triton.jit
def add_splits_kernel(parts, bias, z, size, outputs, splits, BLOCK: tl.constexpr):
    """z [n, outputs] = the sum of parts [splits, n, outputs] in order + bias; ``size`` = n outputs, grid (blocks of
    BLOCK elements).
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    acc = tl.zeros([BLOCK], tl.float32)
    sources = parts + index
    for _ in range(splits):
        acc += tl.load(sources, mask=inside, other=0.0)
        sources += size
    if bias is not None:
        acc += tl.load(bias + index % outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(z + index, acc.to(z.dtype.element_ty), mask=inside)


@triton.jit
def _product_tile(n, hiddens, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of the program's tile of [n, hiddens]: its block of rows, first row (64-bit) and hidden feature, and how many it
    has of each. Programs that share rows follow each other, so that the rows are read from memory once.
    """
    blocks = tl.cdiv(hiddens, BLOCK_N)
    block = tl.program_id(0) // blocks
    start = block.to(tl.int64) * BLOCK_M
    h = (tl.program_id(0) % blocks) * BLOCK_N
    return block, start, h, tl.minimum(n - start, BLOCK_M).to(tl.int32), hiddens - h


@triton.jit
def hidden_kernel(
    x, weight, bias, pre_out, act_out, n, features, hiddens, x_stride,
    ACTIVATION: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """pre = x W^T + b and act(pre), [n, hiddens], each where its output is not None; grid (tiles of [n, hiddens])."""
    _, start, h, count, left = _product_tile(n, hiddens, BLOCK_M, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    hs = tl.arange(0, BLOCK_N)
    x_offsets = tl.minimum(rows, count - 1) * x_stride
    weights = weight + h.to(tl.int64) * features
    w_offsets = tl.minimum(hs, left - 1) * features
    x += start * x_stride
    pre = rows_by_rows(x, x_offsets, weights, w_offsets, features, EVEN, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    if bias is not None:
        pre += tl.load(bias + h + tl.minimum(hs, left - 1)).to(tl.float32)[None, :]
    base = start * hiddens + h
    offsets = rows[:, None] * hiddens + hs[None, :]
    inside = (rows[:, None] < count) & (hs[None, :] < left)
    if pre_out is not None:
        tl.store(pre_out + base + offsets, pre.to(pre_out.dtype.element_ty), mask=inside)
    if act_out is not None:
        tl.store(act_out + base + offsets, activate(pre, ACTIVATION).to(act_out.dtype.element_ty), mask=inside)


@triton.jit
def grad_hidden_kernel(
    grad, weight_out, hidden, grad_hidden, act_out, bias_parts, n, outputs, hiddens, grad_stride,
    ACTIVATION: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """grad_hidden = (grad W_out) act'(hidden), [n, hiddens]; grid (tiles of [n, hiddens]).

    Where they are not None: act_out = act(hidden), and bias_parts [blocks of rows, hiddens], the column sums of
    grad_hidden, float32.
    """
    block, start, h, count, left = _product_tile(n, hiddens, BLOCK_M, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    hs = tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    g_at = grad + start * grad_stride + ((tl.minimum(rows, count - 1) * grad_stride)[:, None] + ks[None, :])
    w_at = weight_out + h + (ks[:, None] * hiddens + hs[None, :])
    for k in range(0, outputs, BLOCK_K):
        if EVEN:
            g = tl.load(g_at)
            w = tl.load(w_at)
        else:
            g = tl.load(g_at, mask=(k + ks)[None, :] < outputs, other=0.0)
            w = tl.load(w_at, mask=((k + ks)[:, None] < outputs) & (hs[None, :] < left), other=0.0)
        acc = tl.dot(g, w, acc, input_precision=PRECISION)
        g_at += BLOCK_K
        w_at += BLOCK_K * hiddens
    base = start * hiddens + h
    offsets = rows[:, None] * hiddens + hs[None, :]
    inside = (rows[:, None] < count) & (hs[None, :] < left)
    pre = tl.load(hidden + base + offsets, mask=inside, other=0.0).to(tl.float32)
    if act_out is not None:
        tl.store(act_out + base + offsets, activate(pre, ACTIVATION).to(act_out.dtype.element_ty), mask=inside)
    acc = tl.where(inside, acc * derivative(pre, ACTIVATION), 0.0)
    tl.store(grad_hidden + base + offsets, acc.to(grad_hidden.dtype.element_ty), mask=inside)
    if bias_parts is not None:
        tl.store(bias_parts + block.to(tl.int64) * hiddens + h + hs, tl.sum(acc, 0), mask=hs < left)
