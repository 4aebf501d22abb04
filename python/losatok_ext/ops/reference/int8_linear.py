"""A linear layer with int8 weights in plain PyTorch: the definition, and the oracle of every test of the op."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from losatok_ext.ops.reference.bottleneck import ACTIVATIONS


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """``act(x weight^T * scale + bias)`` in x's dtype; x [..., D], weight [M, D] int8, scale and bias [M]."""
    y = F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)
    return ACTIVATIONS[activation](y if bias is None else y + bias.to(x.dtype))
