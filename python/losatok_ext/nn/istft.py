"""The last layers of the decoder: frames of log magnitude and phase to a waveform."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from losatok_ext import ops
from losatok_ext.audio.constants import Constants, hann_window
from losatok_ext.nn.linear import Linear


class ISTFTHead(Constants):
    """Linear to (log magnitude, phase) of ``n_fft // 2 + 1`` bins, then an inverse STFT with "same" padding.

    Magnitude is ``min(exp(m), 100)``; the spectrum ``magnitude (cos p + i sin p)``; each windowed inverse FFT is
    overlapped and divided by the overlapped squared window; ``(n_fft - hop) / 2`` samples are trimmed on either side,
    so that L frames give ``hop L`` samples: :func:`losatok_ext.ops.polar_istft`. The envelope ends at each clip's own
    end. A GPU is not waited for.

    Args:
        dim: channels of the input.
        n_fft: samples of a frame; a multiple of ``hop``.
        hop: samples between frames.
    """

    window: Tensor

    def __init__(self, dim: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.out = Linear(dim, n_fft + 2)
        self.add_constant("window", partial(hann_window, n_fft))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x [B, L, dim] to audio [B, hop L] float32; clips end at ``lengths`` [B] frames (None: L), zeros after that.

        The linear layer computes in the dtype of its weights, under autocast too: a bfloat16 phase of many turns is no
        phase.
        """
        with torch.autocast(x.device.type, enabled=False):
            return ops.polar_istft(self.out(x.to(self.out.weight.dtype)), self.window, self.hop, lengths)
