"""MPD, the multi-period discriminator of HiFi-GAN (Kong et al. 2020, arXiv 2010.05646)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext.masks import keep_valid
from losatok_ext.nn.discriminators.base import ConvStack, Discriminator, Layer, scaled


class MultiPeriodDiscriminator(Discriminator):
    """The waveform folded into rows of p samples, for several prime p; convolutions along the columns.

    Kernels of 5 (the logits' of 3) over time and 1 within a period; channels 32, 128, 512, 1024, 1024, strides 3, 3, 3,
    3, 1; leaky ReLUs of 0.1. A last row that a clip does not fill is filled with zeros.

    Args:
        scale: of the channels.
        periods: p of each part, in samples.
    """

    def __init__(self, scale: float = 1.0, periods: Sequence[int] = (2, 3, 5, 7, 11)) -> None:
        super().__init__()
        self.periods = tuple(periods)
        widths, strides = (32, 128, 512, 1024, 1024), (3, 3, 3, 3, 1)
        layers = [
            Layer(scaled(width, scale), (5, 1), (stride, 1)) for width, stride in zip(widths, strides, strict=True)
        ]
        self.parts = nn.ModuleList(ConvStack(1, layers, last=(3, 1), slope=0.1) for _ in periods)

    def planes(self, index: int, audio: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The waveform in rows of a period: [B, 1, ceil(N / p), p]."""
        period = self.periods[index]
        rows = -(-audio.shape[1] // period)
        if lengths is not None:
            audio = keep_valid(audio, lengths)
            lengths = (lengths + period - 1).div(period, rounding_mode="floor")
        folded = F.pad(audio, (0, rows * period - audio.shape[1])).view(len(audio), 1, rows, period)
        return folded, lengths
