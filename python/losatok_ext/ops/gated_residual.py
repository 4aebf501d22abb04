"""A residual connection whose branch is multiplied by a gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch, registry
from losatok_ext.ops.reference import gated_residual as reference

_OP = registry.declare("gated_residual", triton="gated_residual")


@_OP.raw("gated_residual_forward(Tensor x, Tensor branch, Tensor gate) -> Tensor")
def _forward_fake(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x, branch [B, T, C], gate [B, C] or [B, T, C], all of one dtype -> [B, T, C]."""
    return x.new_empty(x.shape)


@_OP.raw("gated_residual_backward(Tensor grad, Tensor branch, Tensor gate) -> (Tensor grad_branch, Tensor grad_gate)")
def _backward_fake(grad: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of x is grad itself."""
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
        need = ctx.needs_input_grad[:3]
        grads = (None, None)
        if any(need[1:]):
            grads = dispatch.kernels(ctx.backend).gated_residual_backward(grad, *ctx.saved_tensors)
        return *checks.wanted((grad, *grads), need), None


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x + gate * branch in one pass.

    Args:
        x: [B, T, C]; float32, bfloat16, float16 or float64, any strides.
        branch: [B, T, C], of x's dtype and device.
        gate: [B, C] (one for all frames of a clip) or [B, T, C], of x's dtype and device.

    Returns:
        y [B, T, C] in x's dtype, computed in float32 (float64 for float64) and rounded once: a zero gate gives x
        bit for bit where branch is finite. Under autocast the dtypes may differ; the tensors are then cast to the
        dtype that theirs promote to.

    The gradient of x is that of y. The gradient of a [B, C] gate is summed over the frames of a clip in float32
    (float64), in an order that does not depend on the number of threads. There are no lengths: padded frames are
    computed like all others and should hold finite values.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
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
    if checks.need_grad(x, branch, gate):
        return _GatedResidual.apply(*checks.distinct(x, branch, gate), backend)
    return dispatch.kernels(backend).gated_residual_forward(x, branch, gate)
