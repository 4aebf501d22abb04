"""What the discriminators share: stacks of 2-D convolutions over the frames within each clip, and their scores.

The input of every discriminator is planes [B, C, T, W]: T is time, W is frequency or the position within a period. The
published ones pad by reflection at the ends of a batch's rows. Here the values beyond the ends of each clip are zero
before every convolution, so that the scores of a clip are the same alone, in any batch and with any padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from losatok_ext.masks import valid_mask, zero_past


class Scores(NamedTuple):
    """The output of one view of the audio; zero past the frames of each clip.

    Attributes:
        logits: [B, T', W'], high for audio that seems recorded.
        maps: feature maps, the outputs of the layers before the last after their activation, [B, C, T_i, W_i] each.
        lengths: valid T of each map and, last, of the logits, [B] int64 each; None: all are valid.
    """

    logits: Tensor
    maps: list[Tensor]
    lengths: list[Tensor] | None


@dataclass(frozen=True)
class Layer:
    """A 2-D convolution over (time, width) with zero padding that keeps the size at stride 1; kernel sizes are odd."""

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)


class ConvStack(nn.Module):
    """Weight-normalised convolutions with a leaky ReLU after each but the last, whose one channel is the logits.

    Args:
        in_channels: channels of the planes.
        layers: all convolutions but the last.
        last: kernel size of the last convolution.
        slope: of the leaky ReLU below zero.
    """

    def __init__(self, in_channels: int, layers: Sequence[Layer], last: tuple[int, int], slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.strides = [layer.stride[0] for layer in layers] + [1]
        self.convs = nn.ModuleList()
        for layer in (*layers, Layer(1, last)):
            time, width = (d * (k - 1) // 2 for k, d in zip(layer.kernel, layer.dilation, strict=True))
            conv = nn.Conv2d(in_channels, layer.channels, layer.kernel, layer.stride, (time, width), layer.dilation)
            self.convs.append(weight_norm(conv))
            in_channels = layer.channels

    def forward(self, x: Tensor, lengths: Tensor | None) -> Scores:
        """The scores of planes ``x`` [B, C, T, W]; only the frames below ``lengths`` [B] are read (None: all T)."""
        x = _keep_valid(x, lengths)
        maps: list[Tensor] = []
        kept: list[Tensor] = []
        for stride, conv in zip(self.strides, self.convs, strict=True):
            x = conv(x)
            x = F.leaky_relu(x, self.slope) if len(maps) + 1 < len(self.convs) else x
            if lengths is not None:
                lengths = (lengths + stride - 1).div(stride, rounding_mode="floor")
                kept.append(lengths)
            x = _keep_valid(x, lengths)
            maps.append(x)
        return Scores(maps.pop().squeeze(1), maps, None if lengths is None else kept)


def _keep_valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    return x if lengths is None else zero_past(x, valid_mask(lengths, x.shape[2])[:, None, :, None])


def scaled(channels: int, scale: float) -> int:
    """``channels`` times ``scale``, at least one."""
    return max(round(channels * scale), 1)


class Discriminator(nn.Module):
    """Base of all kinds: several views of the same audio, each with a network of its own in :attr:`parts`."""

    parts: nn.ModuleList

    def planes(self, index: int, audio: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The input of part ``index``: (planes [B, C, T, W], valid frames of each clip [B] or None)."""
        raise NotImplementedError

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> list[Scores]:
        """The scores of clips.

        Args:
            audio: [B, N] floating point, samples in -1..1, N >= 1. Views are computed in float32 (float64 for float64),
                whatever autocast does to the networks.
            lengths: [B] int64 samples; None: all N. Samples past a length are not read, even NaN, and take no gradient.

        Returns:
            One :class:`Scores` for each view.

        Raises:
            ValueError: ``audio`` is not [B, N] with N >= 1.
        """
        if audio.dim() != 2 or audio.shape[1] == 0:
            raise ValueError(f"audio should have shape [B, N] with N >= 1, got {list(audio.shape)}")
        scores = []
        for index, part in enumerate(self.parts):
            with torch.autocast(audio.device.type, enabled=False):
                planes, frames = self.planes(index, audio if audio.dtype == torch.float64 else audio.float(), lengths)
            scores.append(part(planes, frames))
        return scores
