"""The decoder's backbone: ConvNeXt blocks over time, on [B, T, C] throughout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext import ops
from losatok_ext.masks import keep_valid
from losatok_ext.nn.linear import Linear

KERNEL = 7
BLOCK_FRAMES = 512
"""Frames (of all clips together) in one matrix product: their neighbourhoods take 18 MB at 1280 channels in float32."""


class TimeConv(nn.Conv1d):
    """A convolution over time of [B, T, C], padded with zeros at both ends; the output is as long as the input."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, KERNEL, padding=KERNEL // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C_in] to [B, T, C_out].

        Without gradients it is one matrix product over the neighbourhoods of a block of frames at a time, which takes
        three quarters of the convolution's time in float32 and half of it in bfloat16.
        """
        if torch.is_grad_enabled() or self.groups > 1 or x.numel() == 0:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        padded, weight = F.pad(x, (0, 0, KERNEL // 2, KERNEL // 2)), self.weight.flatten(1)
        step = max(1, BLOCK_FRAMES // x.shape[0])
        blocks = [
            F.linear(padded[:, start : start + step + KERNEL - 1].unfold(1, KERNEL, 1).flatten(2), weight, self.bias)
            for start in range(0, x.shape[1], step)
        ]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


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
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x [B, T, dim] to [B, T, dim]. Values past ``lengths`` [B] (None: all T) are not read; they stay finite if
        they were."""
        conv, norm = self.conv, self.norm
        convolved = ops.depthwise_conv_norm(
            x, conv.weight, conv.bias, norm.weight, norm.bias, eps=norm.eps, lengths=lengths
        )
        return torch.addcmul(x, self.gamma, self.fc2(self.fc1(convolved, gelu=True)))


class ConvNeXtBackbone(nn.Module):
    """conv k7 -> LN -> ConvNeXt blocks -> LN, all over [B, T, C].

    The context of a frame is ``3 (1 + depth)`` frames on each side. Convolutions use zeros past a clip's length, as
    they do past the end of a single clip.

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

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x [B, T, in_dim] to [B, T, dim]. Values past ``lengths`` [B] (None: all T), even NaN, are not read; there the
        output is finite and undefined."""
        x = self.norm(self.embed(keep_valid(x, lengths)))
        for block in self.blocks:
            x = block(x, lengths)
        return self.final_norm(x)
