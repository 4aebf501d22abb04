"""The decoder's head: frames of log magnitude and phase to a waveform."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext.audio.constants import Constants, hann_window

MAX_MAGNITUDE = 100.0


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Sum frames [B, L, n] laid ``hop`` samples apart (n a multiple of hop): [B, (L - 1) hop + n]."""
    batch, count, size = frames.shape
    overlap = size // hop
    parts = frames.view(batch, count, overlap, hop)
    total = frames.new_zeros(batch, count + overlap - 1, hop)
    for shift in range(overlap):
        total = total + F.pad(parts[:, :, shift], (0, 0, shift, overlap - 1 - shift))
    return total.flatten(1)


def _squares(n_fft: int, hop: int) -> Tensor:
    """[n_fft // hop, hop]: what each of the frames over one hop adds to the envelope there, earliest first."""
    return hann_window(n_fft).square().view(-1, hop).flip(0)


class ISTFTHead(Constants):
    """Linear to (log magnitude, phase) of ``n_fft // 2 + 1`` bins, then an inverse STFT with "same" padding.

    Magnitude is ``min(exp(m), 100)``; the spectrum ``magnitude (cos p + i sin p)``; each windowed inverse FFT is
    overlapped and divided by the overlapped squared window; ``(n_fft - hop) / 2`` samples are trimmed on either side,
    so that L frames give ``hop L`` samples. The envelope ends at each clip's own end; nothing waits for the device.

    Args:
        dim: channels of the input.
        n_fft: samples of a frame; a multiple of ``hop``.
        hop: samples between frames.
    """

    window: Tensor
    squares: Tensor

    def __init__(self, dim: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.out = nn.Linear(dim, n_fft + 2)
        self.add_constant("window", partial(hann_window, n_fft))
        self.add_constant("squares", partial(_squares, n_fft, hop))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x [B, L, dim] to audio [B, hop L] float32; ``valid`` [B, L, 1] bool (None: all) decides where clips end."""
        head = self.out(x)
        with torch.autocast(x.device.type, enabled=False):
            magnitude, phase = head.float().chunk(2, dim=-1)
            spectrum = torch.polar(magnitude.clamp(max=math.log(MAX_MAGNITUDE)).exp(), phase)
            return self.waveform(spectrum, valid)

    def waveform(self, spectrum: Tensor, valid: Tensor | None = None) -> Tensor:
        """spectrum [B, L, n_fft // 2 + 1] complex64 to audio [B, hop L]; samples past a clip's frames are zero."""
        batch, count, _ = spectrum.shape
        if batch * count == 0:
            return spectrum.real.new_zeros(batch, 0)
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=-1) * self.window
        present = self.window.new_ones(1, count) if valid is None else valid[:, :, 0].to(self.window.dtype)
        if valid is not None:
            frames = torch.where(valid, frames, 0.0)
        trim = (self.n_fft - self.hop) // 2
        inside = slice(trim, trim + count * self.hop)
        audio = overlap_add(frames, self.hop)[:, inside]
        # Which of the n_fft / hop frames over each hop are there, times what each of them adds to the envelope there.
        around = F.pad(present, (len(self.squares) - 1,) * 2).unfold(1, len(self.squares), 1)
        envelope = (around @ self.squares).flatten(1)[:, inside]
        if valid is None:
            return audio / envelope
        kept = valid.expand(batch, count, self.hop).reshape(batch, count * self.hop)
        return torch.where(kept, audio / torch.where(kept, envelope, 1.0), 0.0)
