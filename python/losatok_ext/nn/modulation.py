"""Adaptive layer norm (adaLN): a condition decides the shift and scale of a norm and the gate of a branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext import ops

NormWeights = Literal["none", "scale", "affine"]
Gate = Literal["g", "1-g", "tanh(1-g)", "sigmoid(1-g)"]

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "g": lambda g: g,
    "1-g": lambda g: 1 - g,
    "tanh(1-g)": lambda g: torch.tanh(1 - g),
    "sigmoid(1-g)": lambda g: torch.sigmoid(1 - g),
}
"""The factor of a branch as a function of its part g of the modulation. DiT and F5-TTS use g (zero turns the branch
off); EzAudio uses 1 - g; UniFlow-Audio tanh(1 - g) for attention; stable-audio sigmoid(1 - g)."""


class Modulation(nn.Module):
    """``parts`` vectors of ``width`` from a condition: the shifts, scales and gates of a block.

    Args:
        width: of each vector.
        parts: number of vectors.
        condition_dim: width of the condition; 0: the block takes no condition, only the shared modulation.
        bias: of the linear map from the condition.
        shared: add a learned table [parts, width] to what all blocks share (adaLN-single, PixArt-alpha, arXiv
            2310.00426). Without it the block has a linear map of its own (adaLN, DiT, arXiv 2212.09748).
        rank: with ``shared`` and above 0, also add two linear maps through so many features for each part, which tell
            the blocks apart (adaLN-SOLA, EzAudio, arXiv 2409.10819; a factor alpha / rank belongs into the second).
    """

    def __init__(
        self, width: int, parts: int, condition_dim: int, bias: bool = True, shared: bool = False, rank: int = 0
    ) -> None:
        super().__init__()
        self.width, self.parts = width, parts
        self.linear = None if shared else nn.Linear(condition_dim, parts * width, bias=bias)
        self.table = nn.Parameter(torch.zeros(parts, width)) if shared else None
        self.down = nn.Linear(condition_dim, parts * rank, bias=False) if rank else None
        self.up = nn.Linear(parts * rank, parts * width, bias=False) if rank else None

    def reset_to_zero(self) -> None:
        """Make every part zero for any condition."""
        for layer in (self.linear, self.up):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.table is not None:
            nn.init.zeros_(self.table)

    def forward(self, condition: Tensor | None, shared: Tensor | None = None) -> tuple[Tensor, ...]:
        """The parts, each [B, width] or, of conditions for each frame, [B, T, width].

        Args:
            condition: [B, condition_dim] or [B, T, condition_dim], after its activation (SiLU in all models named
                here).
            shared: [B, parts * width] or [B, T, parts * width]: what all blocks share.

        Raises:
            ValueError: an input that this modulation needs is missing.
        """
        if self.linear is not None:
            if condition is None:
                raise ValueError(
                    "condition should be given ([B, C] or [B, T, C]): the block's modulation depends on it"
                )
            return self.linear(condition).chunk(self.parts, dim=-1)
        if shared is None:
            raise ValueError(
                f"shared should be given ([B, {self.parts * self.width}]): the block adds its own table to it"
            )
        total = shared
        if self.down is not None and self.up is not None:
            if condition is None:
                raise ValueError("condition should be given ([B, C]): a modulation with rank depends on it")
            total = total + self.up(self.down(condition))
        assert self.table is not None
        return (total.unflatten(-1, (self.parts, self.width)) + self.table).unbind(-2)


class ModulatedNorm(nn.Module):
    """``LN(x) * (1 + scale) + shift``, LN with or without learned weights; without modulation ``LN(x)``.

    Learned weights w and b are merged into the modulation, so that all kinds are one fused pass:
    ``(w n + b)(1 + scale) + shift = n (1 + (w (1 + scale) - 1)) + (b (1 + scale) + shift)``.

    Args:
        dim: features.
        weights: ``"none"``, ``"scale"`` (w alone) or ``"affine"`` (w and b).
        eps: added to the variance.
    """

    def __init__(self, dim: int, weights: NormWeights = "none", eps: float = 1e-6) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim)) if weights != "none" else None
        self.bias = nn.Parameter(torch.zeros(dim)) if weights == "affine" else None

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """x [B, T, dim] to the same; shift and scale [B, dim] or [B, T, dim], both or neither."""
        if shift is None or scale is None:
            return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)
        if self.bias is not None:
            shift = self.bias * (1 + scale) + shift
        if self.weight is not None:
            scale = self.weight * (1 + scale) - 1
        return ops.layer_norm_modulate(x, shift, scale, self.eps)
