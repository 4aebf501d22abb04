"""The feed-forward part of a transformer block, plain or gated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext import ops

Activation = Literal["gelu", "gelu_tanh", "geglu", "geglu_tanh", "swiglu"]

_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "geglu": F.gelu,
    "geglu_tanh": partial(F.gelu, approximate="tanh"),
    "swiglu": F.silu,
}


class FeedForward(nn.Module):
    """``fc2(act(fc1(x)))``; gated, ``fc2(value * act(gate))`` with ``value, gate = fc1(x).chunk(2)``.

    Args:
        dim: width of the input and output.
        hidden_dim: width between.
        activation: ``"gelu"`` (by the error function) or ``"gelu_tanh"``, plain, as one fused op
            (``ops.bottleneck_project``); ``"geglu"``, ``"geglu_tanh"`` or ``"swiglu"``, gated (arXiv 2002.05202): the
            rows of ``fc1`` are first those of the values, then those of the gates.
    """

    def __init__(self, dim: int, hidden_dim: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(dim, hidden_dim * (2 if activation in _GATES else 1))
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] to [..., dim]."""
        if self.activation not in _GATES:
            return ops.bottleneck_project(
                x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, self.activation
            )
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * _GATES[self.activation](gate))
