"""The attention of diffusion transformers: QK norm, rotary embedding and softmax attention in one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch
from losatok_ext.ops.fakes import fake
from losatok_ext.ops.reference import dit_attention as reference

NORMS = ("rms", "layer", None)
MAX_HEAD_SIZE = 256

# --- what the raw ops return, for tracing ---------------------------------------------------------------------------


@fake("dit_attention_forward")
def _forward_fake(
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
    batch, time, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, time), dtype=reference.wide(q))


@fake("dit_attention_backward")
def _backward_fake(
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
    def weight_grad(weight: Tensor | None) -> Tensor:
        return q.new_empty((0,) if weight is None else weight.shape, dtype=reference.wide(q))

    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    return grad_q, grad_k, grad_v, weight_grad(q_weight), weight_grad(k_weight)


# --- autograd -------------------------------------------------------------------------------------------------------


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
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
        backend: str,
    ) -> Tensor:
        tensors = (q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths)
        out, lse = dispatch.kernels(backend).dit_attention_forward(*tensors, norm, eps, interleaved)
        ctx.save_for_backward(*tensors, out, lse)
        ctx.options, ctx.backend = (norm, eps, interleaved), backend
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = dispatch.kernels(ctx.backend).dit_attention_backward(grad, *ctx.saved_tensors, *ctx.options)
        need = ctx.needs_input_grad
        return *(g if n else None for g, n in zip(grads, need[:5], strict=True)), *[None] * 8


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    checks.floating("q", q)
    checks.shape("q", q, (None, None, None, None), "[B, T, H, h]")
    batch, _, heads, size = q.shape
    if not 1 <= size <= MAX_HEAD_SIZE:
        raise ValueError(f"q should have heads of 1 to {MAX_HEAD_SIZE} features (its last size h), got {size}")
    for name, tensor in (("k", k), ("v", v)):
        checks.floating(name, tensor)
        checks.same_dtype_and_device(name, tensor, "q", q)
        checks.shape(name, tensor, (batch, None, heads, size), "[B, S, H, h], B, H and h those of q,")
    if v.shape[1] != k.shape[1]:
        raise ValueError(f"v should have as many frames as k, {k.shape[1]} (S), got {v.shape[1]}")


def _check_norm(norm: str | None, eps: float, weights: dict[str, Tensor | None], q: Tensor) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm should be one of {', '.join(map(repr, NORMS))}, got {norm!r}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"eps should be a float, got {type(eps).__name__}")
    if eps < 0:
        raise ValueError(f"eps should be at least 0, got {eps}")
    for name, weight in weights.items():
        if weight is None:
            continue
        if norm is None:
            raise ValueError(f"{name} should be None without a norm; give norm='rms' or 'layer' to use it")
        checks.floating(name, weight)
        checks.shape(name, weight, (q.shape[3],), "[h]")
        if weight.device != q.device:
            raise ValueError(f"{name} should be on q's device {q.device}, got {weight.device}")


def _check_rope(rope: tuple[Tensor, Tensor] | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """cos and sin as the raw ops take them: in float32 (float64), contiguous."""
    if rope is None:
        return None, None
    if not isinstance(rope, (tuple, list)) or len(rope) != 2:
        raise TypeError(f"rope should be a pair (cos, sin) of tensors or None, got {type(rope).__name__}")
    if k.shape[1] != q.shape[1]:
        raise ValueError(
            f"rope should be None in cross-attention: it turns queries and keys of the same {q.shape[1]} frames, and k "
            f"has {k.shape[1]}"
        )
    cos, sin = rope
    for name, angles in (("rope's cos", cos), ("rope's sin", sin)):
        checks.floating(name, angles)
        checks.shape(name, angles, (q.shape[1], None), "[T, h_rope / 2]")
        if angles.device != q.device:
            raise ValueError(f"{name} should be on q's device {q.device}, got {angles.device}")
    if sin.shape[1] != cos.shape[1]:
        raise ValueError(f"rope's cos and sin should have one shape, got {list(cos.shape)} and {list(sin.shape)}")
    if not 1 <= cos.shape[1] <= q.shape[3] // 2:
        raise ValueError(
            f"rope's cos should have 1 to {q.shape[3] // 2} angles (half the head size), got {cos.shape[1]}"
        )
    dtype = reference.wide(q)
    return cos.detach().to(dtype).contiguous(), sin.detach().to(dtype).contiguous()


# --- the public function --------------------------------------------------------------------------------------------


def dit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
    norm: str | None = "rms",
    eps: float = 1e-6,
    interleaved: bool = False,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """softmax(Q K^T / sqrt(h)) V for each head; Q, K: q and k, normalised and rotated inside the same kernel.

    Args:
        q: [B, T, H, h], h of 1 to 256; float32, bfloat16, float16 or float64. Any strides, as of k and v: views of one
            packed projection are read where they lie (the last dimension has to be contiguous for that). Split a
            packed one with ``unbind``, whose backward is one copy.
        k: [B, S, H, h], of q's dtype and device. S = T is self-attention; any other S is cross-attention.
        v: [B, S, H, h], likewise.
        q_weight: [h] or None, multiplies the normalised heads of q; any floating dtype, kept in float32 (float64).
        k_weight: [h] or None, likewise for k.
        rope: (cos, sin), each [T, h_rope / 2] of any floating dtype, turning the first h_rope <= h features of every
            query and key by the angles of its frame; None turns nothing. It takes no gradient, and needs S = T.
        lengths: valid frames of each clip, [B] int64 within 0..T; None: all. Rows past a length come out zero and
            have zero gradients.
        norm: of each head over its h features: ``"rms"``, x / sqrt(mean(x^2) + eps); ``"layer"``, that of x less its
            mean; None leaves q and k as they are, and takes no weights.
        eps: of the norm.
        interleaved: rope turns the pairs (2 i, 2 i + 1), not (i, i + h_rope / 2).
        key_lengths: valid keys of each clip, [B] int64 within 0..S. None: ``lengths`` where S = T, else all. What lies
            past it in k and v, NaN included, changes nothing. A clip without a valid key gives zeros.

    Returns:
        [B, T, H, h] in q's dtype. Under autocast q, k and v are taken in its dtype, as
        ``F.scaled_dot_product_attention`` takes them.

    No [T, S] matrix is stored; for the backward the inputs, the output and one number for each row and head are kept.
    Norm, rotation, softmax and sums are in float32 (float64). In bfloat16 Q, K and the attention weights are rounded to
    it before they are multiplied, as in every fused attention. On a CPU a result does not depend on the number of
    threads, which share out blocks of queries (in the backward, pairs of a clip and a head); float16 is computed as
    float32 there, from converted copies.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
        ValueError: shapes or devices that do not fit, an unknown norm, a weight without a norm, rope with S != T, or
            lengths out of range (looked at on the CPU only: on a GPU that would wait for the device).
        BackendUnavailableError: the implementation asked for cannot run on q's device.
    """
    if isinstance(q, Tensor) and torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = (
            x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 else x
            for x in (q, k, v)
        )
    _check_heads(q, k, v)
    _check_norm(norm, eps, {"q_weight": q_weight, "k_weight": k_weight}, q)
    cos, sin = _check_rope(rope, q, k)
    lengths = checks.lengths(lengths, q.shape[0], q.shape[1], q.device)
    if key_lengths is not None:
        key_lengths = checks.lengths(key_lengths, k.shape[0], k.shape[1], k.device, "key_lengths")
    elif lengths is not None and k.shape[1] == q.shape[1]:
        key_lengths = lengths
    wide = reference.wide(q)
    q_weight, k_weight = (w if w is None else w.to(wide).contiguous() for w in (q_weight, k_weight))

    backend = dispatch.choose("dit_attention", q.device)
    if backend == "reference":
        angles = None if cos is None or sin is None else (cos, sin)
        with torch.autocast(q.device.type, enabled=False):  # its dtype was taken above; sums stay wide
            return reference.dit_attention(
                q, k, v, q_weight, k_weight, angles, lengths, norm, eps, interleaved, key_lengths
            )
    tensors = checks.distinct(q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths)
    options = (norm or "none", float(eps), interleaved)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors[:5]):
        return _Attention.apply(*tensors, *options, backend)
    out, _ = dispatch.kernels(backend).dit_attention_forward(*tensors, *options)
    return out
