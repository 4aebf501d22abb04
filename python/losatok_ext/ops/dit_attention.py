"""The attention of diffusion transformers: QK norm, rotary embedding and softmax attention in one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch, registry
from losatok_ext.ops.reference import dit_attention as reference

NORMS = ("rms", "layer", None)
LAYOUTS = ("BTHh", "BHTh")
MAX_HEAD_SIZE = 256

_OP = registry.declare("dit_attention", triton="dit_attention")

# --- the raw ops: schemas, and what they return, for tracing ---------------------------------------------------------


@_OP.raw(
    "dit_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, "
    "Tensor? lengths, Tensor? key_lengths, str norm, float eps, bool interleaved) -> (Tensor out, Tensor lse)"
)
def _forward_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """q [B, T, H, h], k and v [B, S, H, h], of one dtype and any strides; q_weight, k_weight [h] and cos, sin
    [T, h_rope / 2] in float32 (float64); norm "none", "rms" or "layer"; key_lengths None means all S keys. ->
    out [B, T, H, h]; lse [B, H, T] in float32 (float64), the logarithm of each row's sum of exponentials, -infinity for
    rows past a length or without a key.
    """
    batch, time, heads, _size = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, time), dtype=checks.wide(q))


@_OP.raw(
    "dit_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? q_weight, Tensor? k_weight, "
    "Tensor? cos, Tensor? sin, Tensor? lengths, Tensor? key_lengths, Tensor out, Tensor lse, str norm, float eps, "
    "bool interleaved) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_q_weight, Tensor grad_k_weight)"
)
def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    """The gradients of the weights are in float32 (float64), [0] where there is no weight."""
    weights = [(0,) if weight is None else weight.shape for weight in (q_weight, k_weight)]
    return *(x.new_empty(x.shape) for x in (q, k, v)), *(q.new_empty(s, dtype=checks.wide(q)) for s in weights)


# --- autograd -------------------------------------------------------------------------------------------------------


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: tuple[str, float, bool], backend: str, *tensors: Tensor | None) -> Tensor:
        out, lse = dispatch.kernels(backend).dit_attention_forward(*tensors, *options)
        ctx.save_for_backward(*tensors, out, lse)
        ctx.options, ctx.backend = options, backend
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = dispatch.kernels(ctx.backend).dit_attention_backward(grad, *ctx.saved_tensors, *ctx.options)
        return None, None, *checks.wanted(grads, ctx.needs_input_grad[2:7]), *[None] * 4


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
    checks.one_of("norm", norm, NORMS)
    checks.eps(eps)
    for name, weight in weights.items():
        if weight is None:
            continue
        if norm is None:
            raise ValueError(f"{name} should be None without a norm; give norm='rms' or 'layer' to use it")
        checks.floating(name, weight)
        checks.shape(name, weight, (q.shape[3],), "[h]")
        checks.same_device(name, weight, "q", q)


def _check_rope(
    rope: tuple[Tensor, Tensor] | None, q: Tensor, k: Tensor, interleaved: bool
) -> tuple[Tensor | None, Tensor | None]:
    """cos and sin as the raw ops take them: [T, h_rope / 2] in float32 (float64), contiguous."""
    if rope is None:
        return None, None
    if not isinstance(rope, (tuple, list)) or len(rope) != 2:
        raise TypeError(f"rope should be a pair (cos, sin) of tensors or None, got {type(rope).__name__}")
    if k.shape[1] != q.shape[1]:
        raise ValueError(
            f"rope should be None in cross-attention: it turns queries and keys of the same {q.shape[1]} frames, and k "
            f"has {k.shape[1]}"
        )
    cos, sin = (_angles(name, angles, q, interleaved) for name, angles in zip(("cos", "sin"), rope, strict=True))
    if sin.shape[1] != cos.shape[1]:
        raise ValueError(
            f"rope's cos and sin should have one shape, got {list(rope[0].shape)} and {list(rope[1].shape)}"
        )
    return cos, sin


def _angles(name: str, angles: Tensor, q: Tensor, interleaved: bool) -> Tensor:
    """cos or sin of any form that is allowed, as [T, h_rope / 2] in float32 (float64)."""
    _, time, heads, size = q.shape
    checks.floating(f"rope's {name}", angles)
    checks.same_device(f"rope's {name}", angles, "q", q)
    given, half = angles, size // 2
    if angles.dim() == 3 and angles.shape[0] == 1:
        angles = angles[0]
    if angles.dim() == 2 and angles.shape[0] == heads != time:
        raise ValueError(
            f"rope's {name} has {heads} rows, and q has {time} frames and {heads} heads: q, k and v look like "
            "[B, H, T, h]; give layout='BHTh', or transpose(1, 2)"
        )
    wide = angles.dim() == 2 and angles.shape[1] > half  # [T, h_rope]: other libraries write each angle twice
    if (
        angles.dim() != 2
        or angles.shape[0] != time
        or not 1 <= angles.shape[1] <= size
        or (wide and angles.shape[1] % 2)
    ):
        raise ValueError(
            f"rope's {name} should have shape [T, h_rope / 2] = [{time}, 1..{half}], or [T, h_rope] with each angle "
            f"twice, got {list(given.shape)}"
        )
    if wide:
        pairs = (angles[:, ::2], angles[:, 1::2]) if interleaved else angles.chunk(2, dim=1)
        looks = angles.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks and not torch.equal(*pairs):
            where = "neighbours" if interleaved else "two halves"
            raise ValueError(f"rope's {name} of {angles.shape[1]} columns should hold each angle twice, as {where}")
        angles = pairs[0]
    return angles.detach().to(checks.wide(q)).contiguous()


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
    layout: str = "BTHh",
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
        rope: (cos, sin), each [T, h_rope / 2] or [1, T, h_rope / 2] of any floating dtype: rotates the first
            h_rope <= h features of every query and key by the angles of its frame; None rotates nothing. Where h_rope
            is more than h / 2, [T, h_rope] is taken too, with each angle twice: as two halves, or as neighbours if
            ``interleaved``. It gets no gradient, and needs S = T.
        lengths: valid frames of each clip, [B] int64 within 0..T, or a bool mask [B, T] that is True for the first
            frames of each clip; None: all. Rows past a length come out zero and have zero gradients.
        norm: of each head over its h features: ``"rms"``, x / sqrt(mean(x^2) + eps); ``"layer"``, the same after the
            mean of x is subtracted; None leaves q and k as they are, and then there are no weights.
        eps: of the norm.
        interleaved: rope rotates the pairs (2 i, 2 i + 1) instead of (i, i + h_rope / 2).
        key_lengths: valid keys of each clip, [B] int64 within 0..S, or such a mask [B, S]. None: ``lengths`` where
            S = T, else all. Values past it in k and v, NaN included, change nothing. A clip without a valid key gives
            zeros.
        layout: ``"BHTh"``: q, k, v and the result are [B, H, T, h], as ``F.scaled_dot_product_attention`` has them;
            they are read where they lie.

    Returns:
        [B, T, H, h] in q's dtype. Under autocast q, k and v are taken in its dtype, as
        ``F.scaled_dot_product_attention`` takes them.

    No [T, S] matrix is stored; for the backward the inputs, the output and one number for each row and head are kept.
    Norm, rotation, softmax and sums are in float32 (float64). In bfloat16, Q, K and the attention weights are rounded
    to bfloat16 before they are multiplied, as in every fused attention. On a CPU a result does not depend on the number
    of threads: each works on blocks of queries (in the backward, on pairs of a clip and a head). Float16 is computed as
    float32 there, from converted copies.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, an unknown norm or layout, a weight without a norm, rope with
            S != T, lengths out of range, a mask with gaps, or wide angles that are not there twice (values are checked
            on the CPU only: on a GPU it would wait for the device).
        BackendUnavailableError: the implementation asked for cannot run on q's device.
    """
    checks.one_of("layout", layout, LAYOUTS)
    if layout == "BHTh":
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            checks.floating(name, tensor)
            checks.shape(name, tensor, (None, None, None, None), "[B, H, T, h]")
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out = dit_attention(q, k, v, q_weight, k_weight, rope, lengths, norm, eps, interleaved, key_lengths)
        return out.transpose(1, 2)
    q, k, v = checks.under_autocast(q, k, v)
    _check_heads(q, k, v)
    _check_norm(norm, eps, {"q_weight": q_weight, "k_weight": k_weight}, q)
    cos, sin = _check_rope(rope, q, k, interleaved)
    lengths = checks.lengths(lengths, q.shape[0], q.shape[1], q.device)
    if key_lengths is not None:
        key_lengths = checks.lengths(key_lengths, k.shape[0], k.shape[1], k.device, "key_lengths")
    elif lengths is not None and k.shape[1] == q.shape[1]:
        key_lengths = lengths
    dtype = checks.wide(q)
    q_weight, k_weight = (w if w is None else w.to(dtype).contiguous() for w in (q_weight, k_weight))

    backend = dispatch.choose("dit_attention", q.device)
    if backend == "reference":
        angles = None if cos is None or sin is None else (cos, sin)
        with torch.autocast(q.device.type, enabled=False):  # q, k and v have its dtype already; sums stay wide
            return reference.dit_attention(
                q, k, v, q_weight, k_weight, angles, lengths, norm, eps, interleaved, key_lengths
            )
    tensors = checks.distinct(q, k, v, q_weight, k_weight, cos, sin, lengths, key_lengths)
    options = (norm or "none", float(eps), interleaved)
    if checks.need_grad(*tensors[:5]):
        return _Attention.apply(options, backend, *tensors)
    out, _ = dispatch.kernels(backend).dit_attention_forward(*tensors, *options)
    return out
