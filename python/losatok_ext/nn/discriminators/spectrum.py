"""Spectra as input of discriminators: each clip as if it were alone, with zeros beyond its ends."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.audio.constants import Constants, hann_window
from losatok_ext.audio.stft import frame_count
from losatok_ext.masks import keep_valid


class Spectrum(Constants):
    """Short-time Fourier transform, frame t centred on sample ``t hop``, zeros beyond the ends of each clip.

    Args:
        n_fft: samples of the FFT, even.
        hop: samples between frames.
        size: samples of the Hann window, centred in the FFT's; None: ``n_fft``.
        normalized: divide by the square root of ``n_fft``.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int, size: int | None = None, normalized: bool = False) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.scale = n_fft**-0.5 if normalized else 1.0
        self.add_constant("window", partial(_window, n_fft, size or n_fft))

    def forward(self, audio: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """audio [B, N] float32 or float64 to (complex spectra [B, N // hop + 1, n_fft // 2 + 1], frames [B])."""
        padded = F.pad(keep_valid(audio, lengths), (self.n_fft // 2, self.n_fft // 2))
        window = self.window.to(audio.dtype) * self.scale
        frames = padded.unfold(1, self.n_fft, self.hop)[:, : audio.shape[1] // self.hop + 1]
        counts = None if lengths is None else frame_count(lengths, self.hop)
        assert not isinstance(counts, int)
        return torch.fft.rfft(frames * window), counts

    def planes(self, audio: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The spectra of :meth:`forward` with real and imaginary part as two channels: [B, 2, T, n_fft // 2 + 1]."""
        spectra, frames = self(audio, lengths)
        return torch.view_as_real(spectra).movedim(3, 1), frames


def _window(n_fft: int, size: int) -> Tensor:
    left = (n_fft - size) // 2
    return F.pad(hann_window(size), (left, n_fft - size - left))
