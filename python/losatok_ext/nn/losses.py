"""The tokenizer's losses on features, latents and audio; each is a mean over the valid frames of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.audio.constants import Constants, hann_window
from losatok_ext.audio.mel import mel_filter_bank
from losatok_ext.audio.stft import centred_magnitude, frame_count
from losatok_ext.masks import keep_valid, valid_mask


def masked_mean(per_frame: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean of ``per_frame`` [B, T] over the frames below ``lengths`` [B] (None: all); 0 where there is none.

    A float32 (float64) scalar. Values past a length, even NaN, do not affect it. For finite gradients ``per_frame``
    should be computed from finite values there (``keep_valid``).
    """
    per_frame = per_frame if per_frame.dtype == torch.float64 else per_frame.float()
    if lengths is None:
        return per_frame.sum() / max(per_frame.numel(), 1)
    valid = valid_mask(lengths, per_frame.shape[1])
    return torch.where(valid, per_frame, 0.0).sum() / valid.sum().clamp(min=1)


def masked_mse(x: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean squared difference of ``x`` and ``target`` [B, T, C] over valid frames; no gradient to ``target``."""
    difference = keep_valid(x.float() - target.detach().float(), lengths)
    return masked_mean(difference.square().mean(-1), lengths)


def masked_cosine(x: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean of 1 - cosine of ``x`` and ``target`` [B, T, C] over valid frames; no gradient to ``target``."""
    x, target = (F.normalize(keep_valid(side.float(), lengths), dim=-1) for side in (x, target.detach()))
    return masked_mean(1.0 - (x * target).sum(-1), lengths)


SEMANTIC_DISTANCES = {"mse": masked_mse, "cosine": masked_cosine}
"""The distances of acoustic from semantic features, by name."""


def kl_divergence(mu: Tensor, logvar: Tensor, lengths: Tensor | None = None, clamp: float = 0.0) -> Tensor:
    """KL divergence in nats of ``N(mu, exp(logvar))`` from ``N(0, 1)``, summed over dimensions, mean over valid frames.

    Args:
        mu: [B, T, d].
        logvar: [B, T, d].
        lengths: [B] int64 tokens (None: all valid).
        clamp: least value in nats of each dimension of each frame; below it there is no gradient.

    Formula: ``(mu^2 + exp(logvar) - 1 - logvar) / 2`` (Kingma and Welling 2014, appendix B).
    """
    mu, logvar = keep_valid(mu.float(), lengths), keep_valid(logvar.float(), lengths)
    nats = 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar)
    return masked_mean(nats.clamp(min=clamp).sum(-1), lengths)


def logvar_energy(logvar: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Squared log variance [B, T, d], summed over dimensions, mean over valid frames: holds the variances near 1."""
    return masked_mean(keep_valid(logvar.float(), lengths).square().sum(-1), lengths)


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
            signals = keep_valid(audio.float(), lengths), keep_valid(target.detach().float(), lengths)
            total = audio.new_zeros((), dtype=torch.float32)
            for size in self.windows:
                window, filters = getattr(self, f"window_{size}"), getattr(self, f"filters_{size}")
                mels = (centred_magnitude(signal, window, size // 4) @ filters for signal in signals)
                ours, theirs = (mel.clamp(min=1e-5).log10() for mel in mels)
                frames = None if lengths is None else frame_count(lengths, size // 4)
                assert not isinstance(frames, int)
                total = total + masked_mean((ours - theirs).abs().mean(-1), frames)
            return total / len(self.windows)
