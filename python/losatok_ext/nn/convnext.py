"""The decoder's backbone: ConvNeXt blocks over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 7


def zero_past(x: Tensor, valid: Tensor | None) -> Tensor:
    """``x`` [B, T, C] with zeros where ``valid`` [B, T, 1] is False (None: all valid); NaN there does not survive."""
    return x if valid is None else torch.where(valid, x, x.new_zeros(()))


class TimeConv(nn.Conv1d):
    """A convolution over the time of [B, T, C], zeros beyond both ends, as long as its input."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, KERNEL, padding=KERNEL // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C_in] to [B, T, C_out]."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """``x + gamma * fc2(GELU(fc1(LN(depthwise k7 (x)))))``.

    Args:
        dim: channels.
        hidden_dim: channels between the two linear layers.
        layer_scale: initial value of ``gamma`` [dim].
    """

    def __init__(self, dim: int, hidden_dim: int, layer_scale: float) -> None:
        super().__init__()
        self.conv = TimeConv(dim, dim, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x [B, T, dim], zero where ``valid`` [B, T, 1] is False, to the same."""
        hidden = F.gelu(self.fc1(self.norm(self.conv(x))))
        return zero_past(x + self.gamma * self.fc2(hidden), valid)


class ConvNeXtBackbone(nn.Module):
    """conv k7 -> LN -> ConvNeXt blocks -> LN, all over [B, T, C].

    A frame sees ``3 (1 + depth)`` frames either side. Every convolution finds zeros past a clip's length, as it finds
    them past the end of a clip alone.

    Args:
        in_dim: channels of the input.
        dim: channels within and of the output.
        depth: blocks; their layer scale starts at ``1 / depth``.
        hidden_dim: channels inside a block.
    """

    def __init__(self, in_dim: int, dim: int, depth: int, hidden_dim: int) -> None:
        super().__init__()
        self.embed = TimeConv(in_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, hidden_dim, 1 / depth) for _ in range(depth))
        self.final_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x [B, T, in_dim] to [B, T, dim]; ``valid`` [B, T, 1] bool marks frames within a clip's length (None: all)."""
        x = zero_past(self.norm(self.embed(zero_past(x, valid))), valid)
        for block in self.blocks:
            x = block(x, valid)
        return self.final_norm(x)
