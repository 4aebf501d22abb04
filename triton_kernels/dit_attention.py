"""The attention of diffusion transformers on a GPU: QK norm, rotary embedding and softmax attention, forward and
backward, without a [T, S] matrix in memory and without atomics.

*Queries* are normalised and rotated in registers by the program that uses them: once, and q is read once. *Keys* are
prepared before, by one pass into a temporary [B, S, H, h], if there is a norm or a rotation. Every block of queries
goes over all keys of its head, so inside the attention's loop the same work would be done T / BLOCK_M times. It would
also stall the pipeline there: matrix units read keys from shared memory, where asynchronous copies put them while the
previous block is multiplied, and a key changed in registers would have to be written back there first. The pass reads
and writes as much as one block of queries reads.

The backward prepares queries and keys in that way, and computes the inner products of the output and its gradient. Then
one kernel computes grad_q (it holds queries and goes over keys) and one grad_k and grad_v (it holds keys and goes over
queries); each applies the gradient of rotation and norm before it stores. Each program sums its share of the gradients
of the norms' weights; the shares are added in a fixed order.

Head sizes that are not a power of two are padded to one in registers only; memory holds the actual size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.dit_attention_kernels import (
    forward_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from losatok_ext.triton_kernels.dit_attention_rows import prepare_kernel


def _tiles(m: int, n: int, warps: int, stages: int) -> dict[str, int]:
    """BLOCK_M rows are held by a program, BLOCK_N of the other side taken at a time, ``stages`` of them in flight."""
    return {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}


_KINDS = ("sm90", "sm80", "small")
# float32: on the matrix units as TF32, else by multiply-adds, for which Triton holds whole rows of both operands in
# registers. There even the smallest tiles spill, and use_backend("native") has the better kernel.
_FLOAT = {
    **{(k, "tf32"): _tiles(64, 32, 4, 2) for k in _KINDS},
    **{(k, "fp32"): _tiles(32, 16, 8, 1) for k in _KINDS},
    ("interpreter", "any"): _tiles(16, 16, 4, 1),
}
_FLOAT_WIDE = _FLOAT | {(k, "fp32"): _tiles(16, 16, 8, 1) for k in _KINDS}
# Launch tables, by the padded head size they go up to, then by kind of device and arithmetic (launch.KINDS,
# launch.arithmetic).
FORWARD: dict[int, L.Table] = {
    64: {
        ("sm90", "half"): _tiles(128, 64, 8, 3),
        ("sm80", "half"): _tiles(128, 64, 8, 3),
        ("small", "half"): _tiles(64, 64, 4, 2),
        **_FLOAT,
    },
    128: {
        ("sm90", "half"): _tiles(128, 64, 8, 3),
        ("sm80", "half"): _tiles(128, 32, 8, 2),
        ("small", "half"): _tiles(128, 32, 8, 2),
        **_FLOAT_WIDE,
    },
    256: {**{(k, "half"): _tiles(64, 32, 8, 2) for k in _KINDS}, **_FLOAT_WIDE},
}
GRADIENT: dict[int, L.Table] = {  # of queries, and of keys and values
    64: {
        ("sm90", "half"): _tiles(128, 64, 8, 3),
        ("sm80", "half"): _tiles(128, 64, 8, 2),
        ("small", "half"): _tiles(64, 64, 4, 2),
        **_FLOAT,
    },
    128: {
        ("sm90", "half"): _tiles(64, 64, 8, 2),
        ("sm80", "half"): _tiles(128, 16, 8, 2),
        ("small", "half"): _tiles(128, 16, 8, 2),
        **_FLOAT_WIDE,
    },
    256: {**{(k, "half"): _tiles(64, 32, 8, 1) for k in _KINDS}, **_FLOAT_WIDE},
}


def _config(tables: dict[int, L.Table], q: Tensor) -> dict[str, int]:
    head = L.tile(q.shape[3])
    return L.config(tables[next(size for size in tables if head <= size)], q.device, q.dtype) | {"HEAD": head}


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Strides over clips, frames and heads."""
    return x.stride(0), x.stride(1), x.stride(2)


class _Preparation:
    """The norm and the rotation of one call, as the kernels take them."""

    def __init__(self, cos: Tensor | None, sin: Tensor | None, norm: str, eps: float, interleaved: bool) -> None:
        self.cos, self.sin, self.eps = cos, sin, eps
        rotary = 0 if cos is None else 2 * cos.shape[1]
        self.options = {"NORM": norm, "ROTARY": rotary, "INTERLEAVED": interleaved}
        self.changes = norm != "none" or rotary > 0

    def rows(
        self,
        x: Tensor,
        weight: Tensor | None,
        lengths: Tensor | None,
        out: Tensor | None = None,
        grad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, T, H, h] prepared (x itself where there is nothing to do), and with ``out`` the inner products of its
        rows and those of ``grad`` [B, H, T], float32.
        """
        batch, time, heads, size = x.shape
        prepared = x.new_empty(x.shape) if self.changes else None
        delta = None if out is None else x.new_empty((batch, heads, time), dtype=torch.float32)
        rows, head = batch * time * heads, L.tile(size)
        per_program = max(1, 2048 // head)
        if prepared is not None or delta is not None:
            L.launch(
                prepare_kernel, (L.ceil_div(rows, per_program),),
                x, weight, self.cos, self.sin, lengths, prepared, out, grad, delta, rows, time, heads, self.eps,
                *_strides(x), *((0, 0, 0) if grad is None else _strides(grad)),
                HEAD_SIZE=size, ROWS=per_program, HEAD=head, num_warps=4, **self.options,
            )  # fmt: skip
        return x if prepared is None else prepared, delta


def _scale(q: Tensor) -> float:
    """The factor of the scores, for a softmax that uses powers of two."""
    return math.log2(math.e) / math.sqrt(q.shape[3])


def dit_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    lengths: Tensor | None,
    key_lengths: Tensor | None,
    norm: str,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """q [B, T, H, h], k and v [B, S, H, h] of any strides -> out [B, T, H, h] and the logarithm of each row's sum of
    exponentials [B, H, T], float32, -infinity past a length and without a key.
    """
    L.check_dtype("q", q)
    q, k, v = (L.rows_contiguous(x, 1) for x in (q, k, v))
    q_weight, k_weight, cos, sin = L.contiguous(q_weight, k_weight, cos, sin)
    lengths, key_lengths = L.contiguous(lengths, key_lengths)
    batch, time, heads, size = q.shape
    keys = k.shape[1]
    out = q.new_empty(q.shape)
    lse = q.new_empty((batch, heads, time), dtype=torch.float32)
    c = _config(FORWARD, q)
    preparation = _Preparation(cos, sin, norm, eps, interleaved)
    with L.on_device(q):
        ready, _ = preparation.rows(k, k_weight, key_lengths)
        L.launch(
            forward_kernel, (batch * heads * L.ceil_div(time, c["BLOCK_M"]),),
            q, ready, v, q_weight, cos, sin, lengths, key_lengths, out, lse, time, keys, heads, _scale(q), eps,
            *_strides(q), *_strides(ready), *_strides(v),
            PRECISION=L.precision(q.dtype), HEAD_SIZE=size, **preparation.options, **c,
        )  # fmt: skip
    return out, lse


def dit_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    lengths: Tensor | None,
    key_lengths: Tensor | None,
    out: Tensor,
    lse: Tensor,
    norm: str,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k and v in their dtype, and of the weights in float32 ([0] where there is none)."""
    L.check_dtype("q", q)
    grad, q, k, v = (L.rows_contiguous(x, 1) for x in (grad, q, k, v))
    q_weight, k_weight, cos, sin = L.contiguous(q_weight, k_weight, cos, sin)
    lengths, key_lengths = L.contiguous(lengths, key_lengths)
    batch, time, heads, size = q.shape
    keys = k.shape[1]
    grad_q, grad_k, grad_v = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    preparation = _Preparation(cos, sin, norm, eps, interleaved)
    common = {"PRECISION": L.precision(q.dtype), "HEAD_SIZE": size, **preparation.options}

    def parts(weight: Tensor | None, programs: int) -> Tensor | None:
        return None if weight is None else q.new_empty((programs, size), dtype=torch.float32)

    def total(sums: Tensor | None) -> Tensor:
        return q.new_empty((0,), dtype=torch.float32) if sums is None else sums.sum(0)

    with L.on_device(q):
        ready_q, delta = preparation.rows(q, q_weight, lengths, out.contiguous(), grad)
        ready_k, _ = preparation.rows(k, k_weight, key_lengths)
        lse = lse.contiguous()
        c = _config(GRADIENT, q)
        programs = batch * heads * L.ceil_div(time, c["BLOCK_M"])
        q_parts = parts(q_weight, programs)
        L.launch(
            query_gradient_kernel, (programs,),
            grad, q, ready_k, v, ready_q, q_weight, cos, sin, lengths, key_lengths, lse, delta, grad_q, q_parts,
            time, keys, heads, _scale(q), eps,
            *_strides(grad), *_strides(q), *_strides(ready_k), *_strides(v), *_strides(ready_q), **common, **c,
        )  # fmt: skip
        programs = batch * heads * L.ceil_div(keys, c["BLOCK_M"])
        k_parts = parts(k_weight, programs)
        L.launch(
            key_gradient_kernel, (programs,),
            grad, ready_q, k, v, ready_k, k_weight, cos, sin, lengths, key_lengths, lse, delta, grad_k, grad_v, k_parts,
            time, keys, heads, _scale(q), eps,
            *_strides(grad), *_strides(ready_q), *_strides(k), *_strides(v), *_strides(ready_k), **common, **c,
        )  # fmt: skip
    return grad_q, grad_k, grad_v, total(q_parts), total(k_parts)
