"""The pitch of a recording, and the error of the pitch of its reconstruction.

The tracker is YIN (de Cheveigne and Kawahara 2002, "YIN, a fundamental frequency estimator for speech and music",
steps 1 to 5): the difference function by autocorrelation, its cumulative mean normalisation, an absolute threshold and
parabolic interpolation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST, HIGHEST = 60.0, 600.0
"""Range of the pitch in Hz: all voices, and the melodies of most instruments."""
THRESHOLD = 0.15
"""A frame is periodic where its normalised difference is below this (0.1 to 0.15 in the paper)."""
STEP = 0.01
"""Seconds between frames."""

_WINDOW = 0.04  # seconds: more than two periods of the lowest pitch
_QUIET = 10 ** (-50 / 20)  # frames whose RMS is below this share of the loudest frame's are unvoiced
_SILENT = 1e-5  # RMS below which nothing is voiced
_BLOCK = 4096  # frames at once
_GROSS = 0.2  # relative error that counts as gross (Rabiner et al. 1976; Chu and Alwan 2009)


def track_pitch(audio: Tensor, sample_rate: int, lowest: float = LOWEST, highest: float = HIGHEST) -> Tensor:
    """Fundamental frequency in Hz every 10 ms: [F] float64, 0 where a frame is unvoiced.

    Frame ``t`` is centred on sample ``round(0.01 sample_rate) t``; F is ``N // hop + 1``. A frame is voiced when its
    normalised difference falls below 0.15 at some period and it is at most 50 dB quieter than the loudest frame.

    Args:
        audio: [N] floating point.
        sample_rate: Hz.
        lowest: Hz, the lowest pitch that can be found.
        highest: Hz, the highest pitch that can be found.

    Raises:
        ValueError: ``audio`` is not [N] or is empty, or not 0 < lowest < highest < sample_rate / 4.
    """
    if audio.dim() != 1 or not audio.numel():
        raise ValueError(f"audio should be [N] with at least one sample, got {list(audio.shape)}")
    if not 0 < lowest < highest < sample_rate / 4:
        raise ValueError(f"the range should be 0 < lowest < highest < {sample_rate / 4:g} Hz, got {lowest}, {highest}")
    hop, window = round(STEP * sample_rate), round(_WINDOW * sample_rate)
    shortest, longest = int(sample_rate / highest), int(sample_rate / lowest) + 2
    size = window + longest
    samples = F.pad(audio.double(), (size // 2, size))
    frames = samples.unfold(0, size, hop)[: audio.numel() // hop + 1]
    found = [_periods(block, window, shortest, longest) for block in frames.split(_BLOCK)]
    periods, loudness = (torch.cat(parts) for parts in zip(*found, strict=True))
    voiced = (periods > 0) & (loudness > max(_SILENT, _QUIET * float(loudness.max())))
    return torch.where(voiced, sample_rate / periods.clamp(min=1.0), 0.0)


def _periods(frames: Tensor, window: int, shortest: int, longest: int) -> tuple[Tensor, Tensor]:
    """Period in samples of each frame (0: none) and its RMS, both [F]."""
    size = 1 << (frames.shape[1] - 1).bit_length()  # large enough that no lag in use wraps around
    spectrum = torch.fft.rfft(frames, size)
    head = torch.fft.rfft(frames[:, :window], size)
    correlation = torch.fft.irfft(spectrum * head.conj(), size)[:, : longest + 1]
    energy = F.pad(frames.square().cumsum(1), (1, 0))
    lags = torch.arange(longest + 1, device=frames.device)
    moved = energy[:, lags + window] - energy[:, lags]
    difference = (moved[:, :1] + moved - 2 * correlation).clamp(min=0)
    total = difference[:, 1:].cumsum(1)
    normal = F.pad(difference[:, 1:] * lags[1:] / total.clamp(min=1e-12), (1, 0), value=1.0)
    dip = (normal[:, 1:-1] < THRESHOLD) & (normal[:, 1:-1] <= normal[:, :-2]) & (normal[:, 1:-1] < normal[:, 2:])
    dip[:, : shortest - 1] = False
    first = dip.int().argmax(1) + 1
    before, at, after = (normal.gather(1, (first + shift)[:, None])[:, 0] for shift in (-1, 0, 1))
    curve = before - 2 * at + after
    offset = torch.where(curve > 0, 0.5 * (before - after) / curve.clamp(min=1e-12), 0.0).clamp(-0.5, 0.5)
    period = torch.where(dip.any(1), first + offset, 0.0)
    return period, (moved[:, 0] / window).clamp(min=0).sqrt()


class PitchError(NamedTuple):
    """The error of one pitch track compared with another.

    Attributes:
        cents: root mean square of the difference in cents (1200 to the octave) over the frames voiced in both; None
            without such frames.
        fine: the same without frames that are off by more than 20 %, mostly by octaves; None where all of them are.
        gross: share of the frames voiced in both that are off by more than 20 %; None without such frames.
        voicing: share of all frames that are voiced in one and not in the other.
        voiced: frames voiced in both.
        frames: number of frames of the recording.
    """

    cents: float | None
    fine: float | None
    gross: float | None
    voicing: float
    voiced: int
    frames: int


def pitch_error(audio: Tensor, reference: Tensor, sample_rate: int) -> PitchError:
    """Compare the pitch of ``audio`` [N] with that of ``reference`` [N].

    Raises:
        ValueError: the shapes differ, are not [N], or there is no sample.
    """
    if audio.shape != reference.shape:
        raise ValueError(f"audio and reference should be as long, got {list(audio.shape)} and {list(reference.shape)}")
    ours, theirs = track_pitch(audio, sample_rate), track_pitch(reference, sample_rate)
    both = (ours > 0) & (theirs > 0)
    voicing = float(((ours > 0) != (theirs > 0)).double().mean())
    if not bool(both.any()):
        return PitchError(None, None, None, voicing, 0, len(ours))
    ratio = ours[both] / theirs[both]
    squares = (1200 * ratio.log2()).square()
    gross = (ratio - 1).abs() > _GROSS
    fine = None if bool(gross.all()) else float(squares[~gross].mean().sqrt())
    return PitchError(float(squares.mean().sqrt()), fine, float(gross.double().mean()), voicing, len(ratio), len(ours))
