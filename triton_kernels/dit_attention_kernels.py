"""The attention's kernels over tiles. Launchers and launch tables, and what runs where and why, are in
``dit_attention.py``; norm and rotation of a row are in ``dit_attention_rows.py``.

A program holds BLOCK_M rows of one head (queries, or keys in the gradient of keys and values) and goes over the valid
rows of the other side in blocks of BLOCK_N: full blocks without a mask, then the rest with one. An address is a 64-bit
base for each tile plus 32-bit offsets within it. The softmax uses powers of two: ``scale`` is log2(e) / sqrt(h).
"""

import triton
import triton.language as tl

from losatok_ext.triton_kernels.dit_attention_rows import load_tile, prepare, prepare_backward

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile_of(lengths, time, heads, BLOCK_M: tl.constexpr):
    """Of the program: its clip and head (64-bit), its first row, and how many rows of the clip count."""
    blocks = tl.cdiv(time, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks) * BLOCK_M
    return head // heads, head % heads, start, _valid(lengths, head // heads, time)


@triton.jit
def _valid(lengths, clip, time):
    """How many of a clip's rows count."""
    n = time
    if lengths is not None:
        n = tl.minimum(tl.maximum(tl.load(lengths + clip), 0), time).to(tl.int32)
    return n


@triton.jit
def _attend(
    acc, highest, total, queries, k_at, v_at, left, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """One block of keys and values, of which ``left`` rows count where MASKED, joins the running softmax."""
    rows = tl.arange(0, BLOCK_N) < left
    columns = tl.arange(0, HEAD) < HEAD_SIZE
    padded: tl.constexpr = HEAD_SIZE < HEAD
    keys = load_tile(k_at, rows[None, :], columns[:, None], MASKED, padded)
    scores = tl.dot(queries, keys, input_precision=PRECISION)
    if MASKED:
        scores = tl.where(rows[None, :], scores, float("-inf"))
    new = tl.maximum(highest, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new[:, None])
    shrink = tl.exp2(highest - new)
    total = total * shrink + tl.sum(weights, 1)
    values = load_tile(v_at, rows[:, None], columns[None, :], MASKED, padded)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
    return acc, new, total


@triton.jit
def forward_kernel(
    q, k, v, q_weight, cos, sin, lengths, key_lengths, out, lse, time, keys, heads, scale, eps,
    q_clip_stride, q_stride, q_head_stride, k_clip_stride, k_stride, k_head_stride,
    v_clip_stride, v_stride, v_head_stride,
    NORM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """out [clips, time, heads, HEAD_SIZE] and lse [clips, heads, time]; q is prepared here, k comes prepared. Rows past
    a length get zeros and -infinity, as do rows without a key. Grid (clips x heads x blocks of queries).
    """
    clip, head, start, n = _tile_of(lengths, time, heads, BLOCK_M)
    others = _valid(key_lengths, clip, keys)
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HEAD)
    inside = rows < n - start
    read = inside[:, None] & (columns < HEAD_SIZE)[None, :]
    q_tile = q + clip * q_clip_stride + head * q_head_stride + start.to(tl.int64) * q_stride
    queries = tl.load(q_tile + (rows[:, None] * q_stride + columns[None, :]), mask=read, other=0.0)
    if NORM != "none" or ROTARY > 0:
        ready = prepare(
            queries.to(tl.float32), q_weight, cos, sin, start + rows, inside, eps,
            NORM, ROTARY, INTERLEAVED, HEAD_SIZE, BLOCK_M, HEAD,
        )  # fmt: skip
        queries = ready.to(queries.dtype)

    acc = tl.zeros([BLOCK_M, HEAD], tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    columns_n = tl.arange(0, BLOCK_N)
    k_at = k + clip * k_clip_stride + head * k_head_stride + (columns_n[None, :] * k_stride + columns[:, None])
    v_at = v + clip * v_clip_stride + head * v_head_stride + (columns_n[:, None] * v_stride + columns[None, :])
    others = tl.where(start < n, others, 0)
    whole = others // BLOCK_N * BLOCK_N
    for _ in range(0, whole, BLOCK_N):
        acc, highest, total = _attend(
            acc, highest, total, queries, k_at, v_at, BLOCK_N, scale, False, PRECISION, HEAD_SIZE, BLOCK_N, HEAD
        )
        k_at += BLOCK_N * k_stride
        v_at += BLOCK_N * v_stride
    if whole < others:
        acc, highest, total = _attend(
            acc, highest, total, queries, k_at, v_at, others - whole, scale, True, PRECISION, HEAD_SIZE, BLOCK_N, HEAD
        )

    total = tl.where(total == 0.0, 1.0, total)  # without a key acc is 0 and highest -infinity: both stay
    acc = tl.where(inside[:, None], acc / total[:, None], 0.0)
    stored = (rows < time - start)[:, None] & (columns < HEAD_SIZE)[None, :]
    target = out + ((clip * time + start) * heads + head) * HEAD_SIZE
    tl.store(target + (rows[:, None] * (heads * HEAD_SIZE) + columns[None, :]), acc.to(out.dtype.element_ty), stored)
    sums = tl.where(inside, highest * LN2 + tl.log(total), float("-inf"))
    tl.store(lse + (clip * heads + head) * time + start + rows, sums, mask=rows < time - start)


@triton.jit
def _query_step(
    acc, queries, grads, lse, delta, k_at, v_at, left, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """What one block of keys and values adds to the gradient by the queries."""
    rows = tl.arange(0, BLOCK_N) < left
    columns = tl.arange(0, HEAD) < HEAD_SIZE
    padded: tl.constexpr = HEAD_SIZE < HEAD
    keys = load_tile(k_at, rows[:, None], columns[None, :], MASKED, padded)
    values = load_tile(v_at, rows[:, None], columns[None, :], MASKED, padded)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    weights = tl.exp2(scores * scale - lse[:, None])
    by_weights = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
    by_scores = weights * (by_weights - delta[:, None])
    if MASKED:
        by_scores = tl.where(rows[None, :], by_scores, 0.0)
    return tl.dot(by_scores.to(keys.dtype), keys, acc, input_precision=PRECISION)


@triton.jit
def query_gradient_kernel(
    grad, q, k, v, ready, q_weight, cos, sin, lengths, key_lengths, lse, delta, grad_q, weight_parts,
    time, keys, heads, scale, eps,
    grad_clip_stride, grad_stride, grad_head_stride, q_clip_stride, q_stride, q_head_stride,
    k_clip_stride, k_stride, k_head_stride, v_clip_stride, v_stride, v_head_stride,
    ready_clip_stride, ready_stride, ready_head_stride,
    NORM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """grad_q [clips, time, heads, HEAD_SIZE], and in weight_parts [programs, HEAD_SIZE] what the program's rows add to
    the weight's gradient. ``ready`` and k come prepared; q is what ``ready`` was made of. Grid as the forward's.
    """
    clip, head, start, n = _tile_of(lengths, time, heads, BLOCK_M)
    others = _valid(key_lengths, clip, keys)
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HEAD)
    inside = rows < n - start
    read = inside[:, None] & (columns < HEAD_SIZE)[None, :]
    tile = ready + clip * ready_clip_stride + head * ready_head_stride + start.to(tl.int64) * ready_stride
    queries = tl.load(tile + (rows[:, None] * ready_stride + columns[None, :]), mask=read, other=0.0)
    tile = grad + clip * grad_clip_stride + head * grad_head_stride + start.to(tl.int64) * grad_stride
    grads = tl.load(tile + (rows[:, None] * grad_stride + columns[None, :]), mask=read, other=0.0)
    row_at = (clip * heads + head) * time + start + rows
    sums = tl.load(lse + row_at, mask=inside, other=0.0) * LOG2E
    along = tl.load(delta + row_at, mask=inside, other=0.0)

    acc = tl.zeros([BLOCK_M, HEAD], tl.float32)
    rows_n = tl.arange(0, BLOCK_N)
    k_at = k + clip * k_clip_stride + head * k_head_stride + (rows_n[:, None] * k_stride + columns[None, :])
    v_at = v + clip * v_clip_stride + head * v_head_stride + (rows_n[:, None] * v_stride + columns[None, :])
    others = tl.where(start < n, others, 0)
    whole = others // BLOCK_N * BLOCK_N
    for _ in range(0, whole, BLOCK_N):
        acc = _query_step(
            acc, queries, grads, sums, along, k_at, v_at, BLOCK_N, scale, False, PRECISION, HEAD_SIZE, BLOCK_N, HEAD
        )
        k_at += BLOCK_N * k_stride
        v_at += BLOCK_N * v_stride
    if whole < others:
        acc = _query_step(
            acc, queries, grads, sums, along, k_at, v_at, others - whole, scale, True, PRECISION, HEAD_SIZE, BLOCK_N,
            HEAD,
        )  # fmt: skip
    _store_gradient(
        acc * (scale * LN2), q + clip * q_clip_stride + head * q_head_stride, grad_q, q_weight, cos, sin, weight_parts,
        clip, head, start, n, time, heads, q_stride, eps,
        NORM, ROTARY, INTERLEAVED, HEAD_SIZE, BLOCK_M, HEAD,
    )  # fmt: skip


@triton.jit
def _store_gradient(
    acc, x, grad_x, weight, cos, sin, weight_parts, clip, head, start, n, time, heads, x_stride, eps,
    NORM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Take the gradient by prepared rows through the preparation, and store it [clips, time, heads, HEAD_SIZE], zeros
    from row ``n`` on; x: the head's first row.
    """
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HEAD)
    inside = rows < n - start
    if NORM != "none" or ROTARY > 0:
        rows_x = x
        if NORM != "none":
            read = inside[:, None] & (columns < HEAD_SIZE)[None, :]
            x_at = x + start.to(tl.int64) * x_stride + (rows[:, None] * x_stride + columns[None, :])
            rows_x = tl.load(x_at, mask=read, other=0.0).to(tl.float32)
        acc, by_weight = prepare_backward(
            acc, rows_x, weight, cos, sin, start + rows, inside, eps,
            NORM, ROTARY, INTERLEAVED, HEAD_SIZE, BLOCK_M, HEAD,
        )  # fmt: skip
        if weight_parts is not None:
            by_weight = tl.where(inside[:, None], by_weight, 0.0)
            part_at = weight_parts + tl.program_id(0).to(tl.int64) * HEAD_SIZE + columns
            tl.store(part_at, tl.sum(by_weight, 0), mask=columns < HEAD_SIZE)
    acc = tl.where(inside[:, None], acc, 0.0)
    stored = (rows < time - start)[:, None] & (columns < HEAD_SIZE)[None, :]
    target = grad_x + ((clip * time + start) * heads + head) * HEAD_SIZE
    tl.store(
        target + (rows[:, None] * (heads * HEAD_SIZE) + columns[None, :]), acc.to(grad_x.dtype.element_ty), mask=stored
    )


@triton.jit
def _key_step(
    by_keys, by_values, keys, values, q_at, grad_at, lse_at, delta_at, left, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """What one block of queries adds to the gradients by the keys and values."""
    rows = tl.arange(0, BLOCK_N) < left
    columns = tl.arange(0, HEAD) < HEAD_SIZE
    padded: tl.constexpr = HEAD_SIZE < HEAD
    queries = load_tile(q_at, rows[:, None], columns[None, :], MASKED, padded)
    grads = load_tile(grad_at, rows[:, None], columns[None, :], MASKED, padded)
    sums = load_tile(lse_at, rows, rows, MASKED, False) * LOG2E
    along = load_tile(delta_at, rows, rows, MASKED, False)
    scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
    weights = tl.exp2(scores * scale - sums[None, :])
    if MASKED:
        weights = tl.where(rows[None, :], weights, 0.0)
    by_values = tl.dot(weights.to(grads.dtype), grads, by_values, input_precision=PRECISION)
    by_weights = tl.dot(values, tl.trans(grads), input_precision=PRECISION)
    by_scores = weights * (by_weights - along[None, :])
    by_keys = tl.dot(by_scores.to(queries.dtype), queries, by_keys, input_precision=PRECISION)
    return by_keys, by_values


@triton.jit
def key_gradient_kernel(
    grad, q, k, v, ready, k_weight, cos, sin, lengths, key_lengths, lse, delta, grad_k, grad_v, weight_parts,
    time, keys, heads, scale, eps,
    grad_clip_stride, grad_stride, grad_head_stride, q_clip_stride, q_stride, q_head_stride,
    k_clip_stride, k_stride, k_head_stride, v_clip_stride, v_stride, v_head_stride,
    ready_clip_stride, ready_stride, ready_head_stride,
    NORM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """grad_k and grad_v [clips, keys, heads, HEAD_SIZE], and in weight_parts [programs, HEAD_SIZE] what the program's
    rows add to the weight's gradient. ``ready`` and q come prepared; k is what ``ready`` was made of. Grid (clips x
    heads x blocks of keys).
    """
    clip, head, start, n = _tile_of(key_lengths, keys, heads, BLOCK_M)
    others = _valid(lengths, clip, time)
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HEAD)
    inside = rows < n - start
    read = inside[:, None] & (columns < HEAD_SIZE)[None, :]
    tile = ready + clip * ready_clip_stride + head * ready_head_stride + start.to(tl.int64) * ready_stride
    own_keys = tl.load(tile + (rows[:, None] * ready_stride + columns[None, :]), mask=read, other=0.0)
    tile = v + clip * v_clip_stride + head * v_head_stride + start.to(tl.int64) * v_stride
    own_values = tl.load(tile + (rows[:, None] * v_stride + columns[None, :]), mask=read, other=0.0)

    by_keys = tl.zeros([BLOCK_M, HEAD], tl.float32)
    by_values = tl.zeros([BLOCK_M, HEAD], tl.float32)
    rows_n = tl.arange(0, BLOCK_N)
    q_at = q + clip * q_clip_stride + head * q_head_stride + (rows_n[:, None] * q_stride + columns[None, :])
    grad_at = grad + clip * grad_clip_stride + head * grad_head_stride
    grad_at += rows_n[:, None] * grad_stride + columns[None, :]
    lse_at = lse + (clip * heads + head) * time + rows_n
    delta_at = delta + (clip * heads + head) * time + rows_n
    others = tl.where(start < n, others, 0)
    whole = others // BLOCK_N * BLOCK_N
    for _ in range(0, whole, BLOCK_N):
        by_keys, by_values = _key_step(
            by_keys, by_values, own_keys, own_values, q_at, grad_at, lse_at, delta_at, BLOCK_N, scale,
            False, PRECISION, HEAD_SIZE, BLOCK_N, HEAD,
        )  # fmt: skip
        q_at += BLOCK_N * q_stride
        grad_at += BLOCK_N * grad_stride
        lse_at += BLOCK_N
        delta_at += BLOCK_N
    if whole < others:
        by_keys, by_values = _key_step(
            by_keys, by_values, own_keys, own_values, q_at, grad_at, lse_at, delta_at, others - whole, scale,
            True, PRECISION, HEAD_SIZE, BLOCK_N, HEAD,
        )  # fmt: skip
    by_values = tl.where(inside[:, None], by_values, 0.0)
    stored = (rows < keys - start)[:, None] & (columns < HEAD_SIZE)[None, :]
    target = grad_v + ((clip * keys + start) * heads + head) * HEAD_SIZE
    offsets = rows[:, None] * (heads * HEAD_SIZE) + columns[None, :]
    tl.store(target + offsets, by_values.to(grad_v.dtype.element_ty), mask=stored)
    _store_gradient(
        by_keys * (scale * LN2), k + clip * k_clip_stride + head * k_head_stride, grad_k, k_weight, cos, sin,
        weight_parts, clip, head, start, n, keys, heads, k_stride, eps,
        NORM, ROTARY, INTERLEAVED, HEAD_SIZE, BLOCK_M, HEAD,
    )  # fmt: skip
