"""The activations of the bottleneck inside kernels, and their derivatives, in float32."""

import triton
import triton.language as tl

# gelu: x/2 (1 + erf(x / sqrt 2)). gelu_tanh: x/2 (1 + tanh u) = x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3).


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of ``x``, float32 of any shape. NaN stays NaN."""
    if ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "relu":
        y = tl.where(x < 0, 0.0, x)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
        y = x
    return y


@triton.jit
def derivative(x, ACTIVATION: tl.constexpr):
    """The derivative of the activation at ``x``, float32 of any shape."""
    if ACTIVATION == "gelu":
        dy = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        dy = s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(x)
        dy = s * (1.0 + x * (1.0 - s))
    elif ACTIVATION == "relu":
        dy = tl.where(x > 0, 1.0, 0.0)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
        dy = x * 0.0 + 1.0
    return dy
