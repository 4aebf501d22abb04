"""The reconstruction loss: L1 between log mel spectrograms at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from losatok_ext.audio.mel import mel_filter_bank
from losatok_ext.audio.stft import centred_magnitude, frame_count, keep_valid
from losatok_ext.nn.constants import Constants, hann_window
from losatok_ext.nn.losses import masked_mean


class MultiScaleMelLoss(Constants):
    """Mean over scales of the mean absolute difference of ``log10(max(mel, 1e-5))``.

    Source: the descript audio codec (Kumar et al. 2023, section 3.5).

    Args:
        windows: window lengths in samples; the hop is a quarter of each.
        bins: mel bins at each.
        sample_rate: Hz.
    """

    def __init__(self, windows: Sequence[int], bins: Sequence[int], sample_rate: int) -> None:
        super().__init__()
        self.windows = tuple(windows)
        for size, mels in zip(windows, bins, strict=True):
            self.add_constant(f"window_{size}", partial(hann_window, size))
            self.add_constant(f"filters_{size}", partial(mel_filter_bank, size, mels, sample_rate))

    def forward(self, audio: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compare ``audio`` [B, N] with ``target`` [B, N] up to ``lengths`` [B] samples (None: all): a float32 scalar.

        Frames are centred, with zeros beyond a clip's ends: a clip counts the same behind any padding. Each frame of
        the batch weighs the same. Gradients go to ``audio`` only.
        """
        with torch.autocast(audio.device.type, enabled=False):
            both = torch.cat([keep_valid(audio.float(), lengths), keep_valid(target.detach().float(), lengths)])
            total = audio.new_zeros((), dtype=torch.float32)
            for size in self.windows:
                window, filters = getattr(self, f"window_{size}"), getattr(self, f"filters_{size}")
                mel = (centred_magnitude(both, window, size // 4) @ filters).clamp(min=1e-5).log10()
                ours, theirs = mel.chunk(2)
                frames = None if lengths is None else frame_count(lengths, size // 4)
                assert not isinstance(frames, int)
                total = total + masked_mean((ours - theirs).abs().mean(-1), frames)
            return total / len(self.windows)
