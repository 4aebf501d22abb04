"""MRD, the multi-resolution spectrogram discriminator of UnivNet (Jang et al. 2021, arXiv 2106.07889)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from losatok_ext.nn.discriminators.base import ConvStack, Discriminator, Layer, scaled
from losatok_ext.nn.discriminators.spectrum import Spectrum


class MultiResolutionDiscriminator(Discriminator):
    """Linear magnitudes at several resolutions; convolutions of 9 frames by 3 bins, three of them halving the time.

    32 channels: 9x3, then 9x3 with stride 2 over time three times, 3x3, and 3x3 to the logits; leaky ReLUs of 0.2.

    Args:
        scale: of the channels.
        resolutions: FFT, hop and window of each part, in samples.
    """

    def __init__(
        self,
        scale: float = 1.0,
        resolutions: Sequence[tuple[int, int, int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
    ) -> None:
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(*resolution) for resolution in resolutions)
        width = scaled(32, scale)
        layers = [Layer(width, (9, 3)), *[Layer(width, (9, 3), (2, 1))] * 3, Layer(width, (3, 3))]
        self.parts = nn.ModuleList(ConvStack(1, layers, last=(3, 3), slope=0.2) for _ in resolutions)

    def planes(self, index: int, audio: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The magnitudes at a resolution: [B, 1, T, n_fft // 2 + 1]."""
        spectra, frames = self.spectra[index](audio, lengths)
        return spectra.abs().unsqueeze(1), frames
