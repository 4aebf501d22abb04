"""MFD, the multi-frequency discriminator of LoSATok (arXiv 2605.27840)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from losatok_ext.nn.discriminators.base import ConvStack, Discriminator, Layer, scaled
from losatok_ext.nn.discriminators.spectrum import Spectrum

DIVISORS = (32, 16, 8, 4, 2, 1)
STRIDES = (1, 2, 1, 2, 1, 2)


class MultiFrequencyDiscriminator(Discriminator):
    """Complex spectra at several hops, real and imaginary part as two channels, 3x3 convolutions over time and
    frequency.

    The paper names the discriminator without details. Public versions of an MFD (VISinger 2, Zhang et al. 2022, and
    later singing models) agree on channels 256, 512 and 512 at hops of 128, 256 and 512 (FFTs of four hops), divided by
    32, 16, 8, 4, 2, 1, 1 over seven convolutions with strides 1, 2, 1, 2, 1, 2, 1 in both directions. The last divisor
    belongs to the convolution from the full width c to the logits: the widths are c/32 to c, then 1. This
    implementation has the same layers. The input differs: magnitude and logarithm there, the complex spectrum here, as
    in EnCodec. Activations are leaky ReLUs of 0.2 after each convolution but the last.

    Args:
        scale: of the channels.
        hops: samples between frames; the FFT is four of them.
        channels: of the widest layers at each hop.
    """

    def __init__(
        self,
        scale: float = 1.0,
        hops: Sequence[int] = (128, 256, 512),
        channels: Sequence[int] = (256, 512, 512),
    ) -> None:
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(4 * hop, hop, normalized=True) for hop in hops)
        self.parts = nn.ModuleList(
            ConvStack(
                2,
                [
                    Layer(scaled(width, scale / divisor), (3, 3), (stride, stride))
                    for divisor, stride in zip(DIVISORS, STRIDES, strict=True)
                ],
                last=(3, 3),
                slope=0.2,
            )
            for _, width in zip(hops, channels, strict=True)
        )

    def planes(self, index: int, audio: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The complex spectra at a hop: [B, 2, T, 2 hop + 1]."""
        spectrum = self.spectra[index]
        assert isinstance(spectrum, Spectrum)
        return spectrum.planes(audio, lengths)
