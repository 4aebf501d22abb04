"""The mel front ends of both encoders. They are computed in float32, whatever the dtype of the model.

Mel scale: HTK, ``2595 log10(1 + f / 700)``; triangular filters without area normalisation.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from losatok_ext.audio.constants import Constants, hann_window
from losatok_ext.audio.stft import stft_magnitude


def mel_filter_bank(
    n_fft: int, n_mels: int, sample_rate: int, f_min: float = 0.0, f_max: float | None = None
) -> Tensor:
    """Triangular filters [n_fft // 2 + 1, n_mels] in float32.

    The corners are ``n_mels + 2`` points equally spaced on the HTK mel scale from ``f_min`` to ``f_max`` (Hz; None:
    half of ``sample_rate``); each filter rises from 0 to 1 and falls back to 0 over three neighbouring points. Computed
    in float32, like the filters of the published checkpoint: in float64 they would differ from those by up to 1e-5.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    low, high = (2595.0 * math.log10(1.0 + f / 700.0) for f in (f_min, f_max))
    corners = 700.0 * (
        10.0 ** (torch.linspace(low, high, n_mels + 2, dtype=torch.float32, device="cpu") / 2595.0) - 1.0
    )
    bins = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float32, device="cpu")
    widths = corners[1:] - corners[:-1]
    distance = corners - bins[:, None]
    return torch.minimum(-distance[:, :-2] / widths[:-1], distance[:, 2:] / widths[1:]).clamp(min=0.0)


class MelSpectrogram(Constants):
    """Mel spectrogram [B, F, n_mels] of clips: Hann window of n_fft, centred, reflected at each clip's own ends.

    Args:
        n_fft: samples of the window and the FFT.
        n_mels: filters from 0 Hz to half of ``sample_rate``.
        hop: samples between frames.
        power: 1 for filters on magnitudes, 2 on power.
        sample_rate: Hz.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, n_fft: int, n_mels: int, hop: int, power: float, sample_rate: int) -> None:
        super().__init__()
        self.n_mels, self.hop, self.power = n_mels, hop, power
        self.add_constant("window", partial(hann_window, n_fft))
        self.add_constant("filters", partial(mel_filter_bank, n_fft, n_mels, sample_rate))

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """audio [B, N] and lengths [B] (samples, int64) to (mel [B, F, n_mels] float32, frame lengths [B] int64).

        F is ``N // hop + 1`` (0 for N = 0); frames past a clip's own ``lengths // hop + 1`` are zero.
        """
        with torch.autocast(audio.device.type, enabled=False):
            return stft_magnitude(
                audio.float(), lengths, self.window, self.hop, self.power, lambda frames: frames @ self.filters
            )


class SemanticMel(MelSpectrogram):
    """The semantic encoder's front end: power mel to decibels, ``10 log10(max(., 1e-10))``.

    Values are limited to at most ``top_db`` below the peak of the same clip; other clips of the batch do not matter.
    """

    def __init__(self, n_fft: int, n_mels: int, hop: int, top_db: float, sample_rate: int) -> None:
        super().__init__(n_fft, n_mels, hop, 2.0, sample_rate)
        self.top_db = top_db

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """audio [B, N], lengths [B] (samples) to (decibels [B, F, n_mels], frame lengths [B]); see MelSpectrogram."""
        mel, frame_lengths = super().forward(audio, lengths)
        if mel.numel() == 0:
            return mel, frame_lengths
        # Frames past a length are zero, the smallest possible power, so they are never the peak.
        floor = mel.amax(dim=(1, 2), keepdim=True).clamp(min=1e-10).log10() * 10.0 - self.top_db
        return torch.maximum(mel.clamp(min=1e-10).log10() * 10.0, floor), frame_lengths


class AcousticMel(MelSpectrogram):
    """The acoustic encoder's front end: magnitude mel to natural logarithm, ``ln(max(., 1e-7))``."""

    def __init__(self, n_fft: int, n_mels: int, hop: int, sample_rate: int) -> None:
        super().__init__(n_fft, n_mels, hop, 1.0, sample_rate)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """audio [B, N], lengths [B] (samples) to (log mel [B, F, n_mels], frame lengths [B]); see MelSpectrogram."""
        mel, frame_lengths = super().forward(audio, lengths)
        return mel.clamp(min=1e-7).log(), frame_lengths
