"""MS-STFT, the multi-scale STFT discriminator of EnCodec (Défossez et al. 2022, arXiv 2210.13438)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from losatok_ext.nn.discriminators.base import ConvStack, Discriminator, Layer, scaled
from losatok_ext.nn.discriminators.spectrum import Spectrum


class MultiScaleSTFTDiscriminator(Discriminator):
    """Complex spectra at five scales, real and imaginary part as two channels; convolutions dilated over time.

    32 channels: 3 frames by 9 bins, then the same with a dilation of 1, 2 and 4 over time and a stride of 2 over
    frequency, 3x3, and 3x3 to the logits; leaky ReLUs of 0.2. Windows and the two channels are the paper's; kernels are
    9 bins wide, as in its code, where the paper says 8.

    Args:
        scale: of the channels.
        windows: samples of the window and the FFT of each part; the hop is a quarter.
    """

    def __init__(self, scale: float = 1.0, windows: Sequence[int] = (2048, 1024, 512, 256, 128)) -> None:
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(size, size // 4, normalized=True) for size in windows)
        width = scaled(32, scale)
        dilated = [Layer(width, (3, 9), (1, 2), (dilation, 1)) for dilation in (1, 2, 4)]
        layers = [Layer(width, (3, 9)), *dilated, Layer(width, (3, 3))]
        self.parts = nn.ModuleList(ConvStack(2, layers, last=(3, 3), slope=0.2) for _ in windows)

    def planes(self, index: int, audio: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The complex spectra at a scale: [B, 2, T, n_fft // 2 + 1]."""
        spectrum = self.spectra[index]
        assert isinstance(spectrum, Spectrum)
        return spectrum.planes(audio, lengths)
