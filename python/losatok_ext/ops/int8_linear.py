"""A linear layer whose weights are int8, for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from losatok_ext.ops import checks, dispatch, registry
from losatok_ext.ops.reference import int8_linear as reference
from losatok_ext.ops.reference.bottleneck import ACTIVATIONS

_OP = registry.declare("int8_linear", triton=None, cuda=False)


@_OP.raw("int8_linear_forward(Tensor x, Tensor weight, Tensor scale, Tensor? bias, str activation) -> Tensor y")
def _forward_fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    """x [N, D] of any floating dtype, weight [M, D] int8, scale and bias [M] -> y [N, M] in x's dtype."""
    return x.new_empty((x.shape[0], weight.shape[0]))


def int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """act(x weight^T * scale + bias), the weight being int8 with a scale for each of its rows.

    The weight stays int8 in memory. On the CPU, one block of it at a time is converted inside the second-level cache:
    to bfloat16 for bfloat16 x where the processor multiplies bfloat16 (AVX-512 BF16, AMX), else to float32. Both hold
    int8 values exactly. Sums, scale, bias and activation are float32 (float64), and the result is rounded once.

    Args:
        x: [..., D]; float32, bfloat16, float16, or float64 (CPU). Any strides.
        weight: [M, D] int8, on x's device.
        scale: [M] of a floating dtype, the factor of each row of weight.
        bias: [M] of a floating dtype, or None.
        activation: ``"gelu"`` (by the error function), ``"gelu_tanh"``, ``"silu"``, ``"relu"`` or ``"none"``.

    Returns:
        y [..., M] in x's dtype. Under autocast x is cast to its dtype, as ``F.linear`` casts it (float64 stays). On the
        CPU the same bits on any number of threads; float64, which is torch's own product, on the same number.

    Where x, scale or bias needs gradients, and on a GPU, it runs as the reference: PyTorch's own product with a copy of
    the weight in x's dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
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
        checks.same_device(name, tensor, "x", x)
    checks.one_of("activation", activation, ACTIVATIONS)
    (x,) = checks.under_autocast(x)
    backend = dispatch.choose("int8_linear", x.device)
    if backend == "reference" or checks.need_grad(x, scale, bias):
        with checks.without_autocast(x.device):
            return reference.int8_linear(x, weight, scale, bias, activation)
    y = dispatch.kernels(backend).int8_linear_forward(checks.as_rows(x), weight, scale, bias, activation)
    return y.view(*x.shape[:-1], weight.shape[0])
