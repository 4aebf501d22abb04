"""How a head of a query or key is prepared before the product, and its gradient after it: the norm over its features,
the norm's weight, and the rotary embedding. All in float32, on tiles [M, HEAD] whose first HEAD_SIZE columns hold
values; the others are zero.

Partners of the rotation are exchanged in registers (``tl.gather``), so one body serves half-split and interleaved
pairs, any share of the head, and head sizes that are no power of two.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(at, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile at pointers ``at``, zeros outside of masks ``rows`` (where ROWS) and ``columns`` (where COLUMNS)."""
    if ROWS and COLUMNS:
        tile = tl.load(at, mask=rows & columns, other=0.0)
    elif ROWS:
        tile = tl.load(at, mask=rows, other=0.0)
    elif COLUMNS:
        tile = tl.load(at, mask=columns, other=0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def _angles(
    cos, sin, frames, inside, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, M: tl.constexpr, HEAD: tl.constexpr
):
    """Of the rotation of rows at ``frames`` [M]: the cosine and the signed sine of every column [M, HEAD], 1 and 0 from
    ROTARY on, and the column of its partner.
    """
    columns = tl.arange(0, HEAD)
    pairs: tl.constexpr = ROTARY // 2
    if INTERLEAVED:
        pair = columns // 2
        is_first = columns % 2 == 0
        partner = columns ^ 1
    else:
        pair = columns % pairs
        is_first = columns < pairs
        partner = tl.where(is_first, columns + pairs, columns - pairs)
    partner = tl.where(columns < ROTARY, partner, columns)
    mask = inside[:, None] & (columns < ROTARY)[None, :]
    at = frames.to(tl.int64)[:, None] * pairs + pair[None, :]
    c = tl.load(cos + at, mask=mask, other=1.0)
    s = tl.load(sin + at, mask=mask, other=0.0)
    return c, tl.where(is_first[None, :], -s, s), tl.broadcast_to(partner[None, :], [M, HEAD])


@triton.jit
def _normalize(x, eps, NORM: tl.constexpr, HEAD_SIZE: tl.constexpr, HEAD: tl.constexpr):
    """Rows x [M, HEAD] over their root mean square ("rms"), less their mean before ("layer"); and what they were
    multiplied by [M, 1].
    """
    if NORM == "layer":
        x = tl.where((tl.arange(0, HEAD) < HEAD_SIZE)[None, :], x - tl.sum(x, 1, keep_dims=True) / HEAD_SIZE, 0.0)
    inverse = tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / HEAD_SIZE + eps)
    return x * inverse, inverse


@triton.jit
def _weights(weight, HEAD_SIZE: tl.constexpr, HEAD: tl.constexpr):
    columns = tl.arange(0, HEAD)
    return tl.load(weight + columns, mask=columns < HEAD_SIZE, other=0.0)[None, :]


@triton.jit
def prepare(
    x, weight, cos, sin, frames, inside, eps,
    NORM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, HEAD_SIZE: tl.constexpr, M: tl.constexpr,
    HEAD: tl.constexpr,
):  # fmt: skip
    """Rows x [M, HEAD] normalised, times ``weight`` (or None), and turned by the angles of ``frames`` [M], which are
    read where ``inside`` [M]. ROTARY: how many features are turned, 0 for none.
    """
    if NORM != "none":
        x, _ = _normalize(x, eps, NORM, HEAD_SIZE, HEAD)
        if weight is not None:
            x *= _weights(weight, HEAD_SIZE, HEAD)
    if ROTARY > 0:
        c, s, partner = _angles(cos, sin, frames, inside, ROTARY, INTERLEAVED, M, HEAD)
        x = x * c + tl.gather(x, partner, 1) * s
    return x


@triton.jit
def prepare_backward(
    grad, x, weight, cos, sin, frames, inside, eps,
    NORM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, HEAD_SIZE: tl.constexpr, M: tl.constexpr,
    HEAD: tl.constexpr,
):  # fmt: skip
    """From the gradient by what :func:`prepare` made of rows x to that by x, and what each row adds to the weight's."""
    if ROTARY > 0:
        c, s, partner = _angles(cos, sin, frames, inside, ROTARY, INTERLEAVED, M, HEAD)
        grad = grad * c - tl.gather(grad, partner, 1) * s
    by_weight = grad
    if NORM != "none":
        normal, inverse = _normalize(x, eps, NORM, HEAD_SIZE, HEAD)
        by_weight = grad * normal
        if weight is not None:
            grad *= _weights(weight, HEAD_SIZE, HEAD)
        along = tl.sum(grad * normal, 1, keep_dims=True) / HEAD_SIZE
        if NORM == "layer":
            grad -= tl.sum(grad, 1, keep_dims=True) / HEAD_SIZE
        grad = (grad - normal * along) * inverse
    return grad, by_weight


@triton.jit
def prepare_kernel(
    x, weight, cos, sin, lengths, prepared, out, grad, delta, rows, time, heads, eps, x_clip_stride, x_stride,
    x_head_stride, grad_clip_stride, grad_stride, grad_head_stride,
    NORM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, HEAD_SIZE: tl.constexpr, ROWS: tl.constexpr,
    HEAD: tl.constexpr,
):  # fmt: skip
    """prepared [clips, time, heads, HEAD_SIZE] = rows of x, prepared; delta [clips, heads, time] = the inner products
    of rows of out (contiguous) and grad; each where its output is not None. Zeros past a length, where nothing is read.
    Grid (blocks of the ``rows`` = clips x time x heads).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, HEAD)
    clip = row // (heads * time)
    frame = row // heads % time
    head = row % heads
    inside = row < rows
    if lengths is not None:
        inside &= frame < tl.load(lengths + clip, mask=inside, other=0)
    mask = inside[:, None] & (columns < HEAD_SIZE)[None, :]
    target = row[:, None] * HEAD_SIZE + columns[None, :]
    stored = (row < rows)[:, None] & (columns < HEAD_SIZE)[None, :]
    if prepared is not None:
        at = x + (clip * x_clip_stride + frame * x_stride + head * x_head_stride)[:, None] + columns[None, :]
        v = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        v = prepare(
            v, weight, cos, sin, frame, inside, eps, NORM, ROTARY, INTERLEAVED, HEAD_SIZE, ROWS, HEAD
        )  # fmt: skip
        v = tl.where(mask, v, 0.0)
        tl.store(prepared + target, v.to(prepared.dtype.element_ty), mask=stored)
    if delta is not None:
        at = grad + (clip * grad_clip_stride + frame * grad_stride + head * grad_head_stride)[:, None]
        g = tl.load(at + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        o = tl.load(out + target, mask=mask, other=0.0).to(tl.float32)
        tl.store(delta + (clip * heads + head) * time + frame, tl.sum(g * o, 1), mask=row < rows)
