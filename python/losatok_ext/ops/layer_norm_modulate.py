"""Layer norm without weights, scaled and shifted by a condition: the adaptive norm of diffusion transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch, registry
from losatok_ext.ops.reference import layer_norm_modulate as reference

_OP = registry.declare("layer_norm_modulate", triton="layer_norm_modulate")


@_OP.raw(
    "layer_norm_modulate_forward(Tensor x, Tensor shift, Tensor scale, float eps) -> "
    "(Tensor y, Tensor mean, Tensor rstd)"
)
def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, T, C]; shift, scale each [B, C] or [B, T, C], in x's dtype -> y [B, T, C]; mean and rstd (1 / standard
    deviation) [B, T] in float32 (float64).
    """
    mean, rstd = (x.new_empty(x.shape[:2], dtype=checks.wide(x)) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@_OP.raw(
    "layer_norm_modulate_backward(Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor rstd, "
    "bool per_frame_shift) -> (Tensor grad_x, Tensor grad_shift, Tensor grad_scale)"
)
def _backward_fake(
    grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, per_frame_shift: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_shift is [B, T, C] with per_frame_shift, else [B, C]; all in x's dtype."""
    shift = x.shape if per_frame_shift else (x.shape[0], x.shape[2])
    return x.new_empty(x.shape), x.new_empty(shift), x.new_empty(scale.shape)


class _LayerNormModulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float, backend: str) -> Tensor:
        y, mean, rstd = dispatch.kernels(backend).layer_norm_modulate_forward(x, shift, scale, eps)
        ctx.save_for_backward(x, scale, mean, rstd)
        ctx.per_frame_shift, ctx.backend = shift.dim() == 3, backend
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = dispatch.kernels(ctx.backend).layer_norm_modulate_backward(
            grad, *ctx.saved_tensors, ctx.per_frame_shift
        )
        return *checks.wanted(grads, ctx.needs_input_grad[:3]), None, None


def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """LN(x) * (1 + scale) + shift in one pass; LN over the last dimension, without weights of its own.

    The adaptive layer norm of DiT (Peebles and Xie, 2023), where shift and scale come from the condition.

    Args:
        x: [B, T, C]; float32, bfloat16, float16 or float64, any strides.
        shift: [B, C] (one for all frames of a clip) or [B, T, C], of x's dtype and device, as is scale.
        scale: [B, C] or [B, T, C]; it need not have the shape of shift.
        eps: added to the variance.

    Returns:
        y [B, T, C] in x's dtype, computed in float32 (float64 for float64) and rounded once. Under autocast the dtypes
        may differ; the tensors are then cast to the dtype that theirs promote to.

    For the backward, x and two numbers for each frame are kept. Sums over the frames of a clip run in float32
    (float64), in an order that does not depend on the number of threads. There are no lengths: padded frames are
    computed like all others and should hold finite values.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, or C = 0.
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    x, shift, scale = checks.promoted(x, shift, scale)
    checks.floating("x", x)
    checks.shape("x", x, (None, None, None), "[B, T, C]")
    if x.shape[2] == 0:
        raise ValueError("x should have at least one channel (its last size), got 0")
    checks.modulation("shift", shift, x)
    checks.modulation("scale", scale, x)
    backend = dispatch.choose("layer_norm_modulate", x.device)
    if backend == "reference":
        return reference.layer_norm_modulate(x, shift, scale, eps)
    if checks.need_grad(x, shift, scale):
        return _LayerNormModulate.apply(*checks.distinct(x, shift, scale), eps, backend)
    y, _, _ = dispatch.kernels(backend).layer_norm_modulate_forward(x, shift, scale, eps)
    return y
