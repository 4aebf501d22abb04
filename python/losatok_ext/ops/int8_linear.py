"""A linear layer whose weights are int8, for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.ops import checks, dispatch
from losatok_ext.ops.fakes import fake
from losatok_ext.ops.reference import int8_linear as reference
from losatok_ext.ops.reference.bottleneck import ACTIVATIONS


@fake("int8_linear_forward")
def _forward_fake(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """act(x weight^T * scale + bias), the weight being int8 with a scale for each of its rows.

    The weight stays int8 in memory. On the CPU a block of it at a time is widened inside the second cache, to bfloat16
    for bfloat16 x where the processor multiplies that (AVX-512 BF16, AMX), else to float32; int8 are exact in either.
    Sums, scale, bias and activation are float32 (float64), rounded once; rows of x are rounded nowhere else.

    Args:
        x: [..., D]; float32, bfloat16, float16, or float64 (CPU). Any strides.
        weight: [M, D] int8, on x's device.
        scale: [M] of a floating dtype: what weight's rows are multiplied by.
        bias: [M] of a floating dtype, or None.
        activation: ``"gelu"`` (by the error function), ``"gelu_tanh"``, ``"silu"``, ``"relu"`` or ``"none"``.

    Returns:
        y [..., M] in x's dtype. Under autocast x is cast to its dtype, as ``F.linear`` casts it (float64 stays). On the
        CPU the same bits on any number of threads; float64, which is torch's own product, on the same number.

    Where x, scale or bias takes gradients, and on a GPU, it runs as the reference: PyTorch's own product with a widened
    copy of the weight.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
        ValueError: shapes or devices that do not fit, or an unknown activation.
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    checks.floating("x", x)
    checks.floating("weight", weight, (torch.int8,))
    if x.dim() == 0:
        raise ValueError("x should have shape [..., D], got []")
    checks.shape("weight", weight, (None, x.shape[-1]), "[M, D (last size of x)]")
    vectors = [("scale", scale)] if bias is None else [("scale", scale), ("bias", bias)]
    for name, vector in vectors:
        checks.floating(name, vector)
        checks.shape(name, vector, (weight.shape[0],), "[M (rows of weight)]")
    for name, tensor in (("weight", weight), *vectors):
        if tensor.device != x.device:
            raise ValueError(f"{name} should be on x's device {x.device}, got {tensor.device}")
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation should be one of {known}, got {activation!r}")
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    backend = dispatch.choose("int8_linear", x.device)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, scale, bias))
    if backend == "reference" or learns:
        with torch.autocast(x.device.type, enabled=False):
            return reference.int8_linear(x, weight, scale, bias, activation)
    y = dispatch.kernels(backend).int8_linear_forward(
        x.flatten(0, -2) if x.dim() > 1 else x[None], weight, scale, bias, activation
    )
    return y.view(*x.shape[:-1], weight.shape[0])
