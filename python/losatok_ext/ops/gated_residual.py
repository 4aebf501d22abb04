"""A residual connection whose branch is weighed by a gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch
from losatok_ext.ops.fakes import fake
from losatok_ext.ops.reference import gated_residual as reference


@fake("gated_residual_forward")
def _forward_fake(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@fake("gated_residual_backward")
def _backward_fake(grad: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return branch.new_empty(branch.shape), gate.new_empty(gate.shape)


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, gate: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(branch, gate)
        ctx.backend = backend
        return dispatch.kernels(backend).gated_residual_forward(x, branch, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad
        grad_branch = grad_gate = None
        if need[1] or need[2]:
            grad_branch, grad_gate = dispatch.kernels(ctx.backend).gated_residual_backward(grad, *ctx.saved_tensors)
        return grad if need[0] else None, grad_branch if need[1] else None, grad_gate if need[2] else None, None


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x + gate * branch in one pass.

    Args:
        x: [B, T, C]; float32, bfloat16, float16 or float64, any strides.
        branch: [B, T, C], of x's dtype and device.
        gate: [B, C] (one for all frames of a clip) or [B, T, C], of x's dtype and device.

    Returns:
        y [B, T, C] in x's dtype, computed in float32 (float64 for float64) and rounded once: a zero gate gives x
        bit for bit, where branch is finite. Under autocast the dtypes may differ, and the tensors are taken in their
        common one.

    The gradient of x is that of y; the sum over the frames of a clip for a [B, C] gate runs in float32 (float64), in
    an order that does not depend on the number of threads. Padding is a frame like any other here: keep it finite.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
        ValueError: shapes or devices that do not fit.
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    x, branch, gate = checks.promoted(x, branch, gate)
    checks.floating("x", x)
    checks.shape("x", x, (None, None, None), "[B, T, C]")
    checks.floating("branch", branch)
    checks.same_dtype_and_device("branch", branch, "x", x)
    if branch.shape != x.shape:
        raise ValueError(f"branch should have x's shape {list(x.shape)}, got {list(branch.shape)}")
    checks.modulation("gate", gate, x)
    backend = dispatch.choose("gated_residual", x.device)
    if backend == "reference":
        return reference.gated_residual(x, branch, gate)
    if torch.is_grad_enabled() and (x.requires_grad or branch.requires_grad or gate.requires_grad):
        return _GatedResidual.apply(*checks.distinct(x, branch, gate), backend)
    return dispatch.kernels(backend).gated_residual_forward(x, branch, gate)
