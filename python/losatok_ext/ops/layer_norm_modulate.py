"""Layer norm without weights, scaled and shifted by a condition: the adaptive norm of diffusion transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch
from losatok_ext.ops.fakes import fake
from losatok_ext.ops.reference import layer_norm_modulate as reference


@fake("layer_norm_modulate_forward")
def _forward_fake(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape[:2], dtype=dtype),
        x.new_empty(x.shape[:2], dtype=dtype),
    )


@fake("layer_norm_modulate_backward")
def _backward_fake(
    grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, per_frame_shift: bool
) -> tuple[Tensor, Tensor, Tensor]:
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
        need = ctx.needs_input_grad
        return *(g if n else None for g, n in zip(grads, need[:3], strict=True)), None, None


def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """LN(x) * (1 + scale) + shift in one pass; LN over the last size, without weights of its own.

    The adaptive layer norm of DiT (Peebles and Xie, 2023), where shift and scale come from the condition.

    Args:
        x: [B, T, C]; float32, bfloat16, float16 or float64, any strides.
        shift: [B, C] (one for all frames of a clip) or [B, T, C], of x's dtype and device, as is scale.
        scale: [B, C] or [B, T, C], whatever the shape of shift.
        eps: added to the variance.

    Returns:
        y [B, T, C] in x's dtype. All is computed in float32 (float64 for float64) and rounded once. Under autocast the
        dtypes may differ, and the tensors are taken in their common one.

    For the backward, x and two numbers for each frame are kept; sums over the frames of a clip run in float32
    (float64), in an order that does not depend on the number of threads. Padding is a frame like any other here: keep
    it finite.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
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
    if torch.is_grad_enabled() and (x.requires_grad or shift.requires_grad or scale.requires_grad):
        return _LayerNormModulate.apply(*checks.distinct(x, shift, scale), eps, backend)
    y, _, _ = dispatch.kernels(backend).layer_norm_modulate_forward(x, shift, scale, eps)
    return y
