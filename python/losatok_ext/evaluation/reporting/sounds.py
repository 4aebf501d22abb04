"""Audio and its spectrogram as bytes, for a page that carries both inside itself."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from losatok_ext.audio.files import flac_bytes
from losatok_ext.audio.plots import RANGE, SILENCE, import_figure, mel_decibels
from losatok_ext.evaluation.reporting.report import Sound

LONGEST = 12.0
"""Seconds of a clip that a page holds; of longer ones it holds the beginning."""


def make_sound(label: str, audio: Tensor, sample_rate: int, peak: float | None = None) -> Sound:
    """A player of the first 12 s of ``audio`` [N], with its mel spectrogram in dB below ``peak``.

    Args:
        label: over it.
        audio: [N] floating point; clipped to -1..1.
        sample_rate: Hz.
        peak: dB re 1 of the brightest colour, as :func:`loudest` gives it for another clip; None: this one's own.

    Raises:
        UserError: soundfile or matplotlib is not installed.
    """
    audio = audio[: round(LONGEST * sample_rate)].detach().float().cpu().clamp(-1, 1)
    picture = _picture(mel_decibels(audio, sample_rate) - (loudest(audio, sample_rate) if peak is None else peak))
    return Sound(label, flac_bytes(audio, sample_rate), picture, len(audio) / sample_rate, sample_rate)


def loudest(audio: Tensor, sample_rate: int) -> float:
    """dB re 1 of the loudest mel bin of the part that :func:`make_sound` shows, and at least that of silence."""
    return max(float(mel_decibels(audio[: round(LONGEST * sample_rate)], sample_rate).max()), SILENCE)


def _picture(decibels: Tensor) -> bytes:
    """A PNG of a mel [bins, F] in dB below its peak, low frequencies at the bottom, a pixel per bin and frame."""
    import_figure()  # says what to install
    from matplotlib import colormaps
    from matplotlib.image import imsave

    shade = ((decibels / RANGE + 1).clamp(0, 1) * 255).to(torch.uint8).flip(0)
    buffer = io.BytesIO()
    imsave(buffer, colormaps["magma"](shade.numpy(), bytes=True), format="png")
    return buffer.getvalue()
