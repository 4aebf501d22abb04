"""Audio and its spectrogram as bytes, to be put inside the page."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from losatok_ext.audio.files import flac_bytes
from losatok_ext.audio.plots import RANGE, SILENCE, import_figure, mel_decibels
from losatok_ext.evaluation.reporting.report import Sound

LONGEST = 12.0
"""Seconds of a clip that the page holds; a longer clip is cut."""


def make_sound(label: str, audio: Tensor, sample_rate: int, peak: float | None = None) -> Sound:
    """A player of the first 12 s of ``audio``, with its mel spectrogram in dB below ``peak``.

    Args:
        label: shown above it.
        audio: [N] floating point; clipped to -1..1.
        sample_rate: Hz.
        peak: dB re 1 of the brightest colour, from :func:`loudest` of this or another clip; None: of this clip.

    Raises:
        UserError: soundfile or matplotlib is not installed.
    """
    audio = audio[: round(LONGEST * sample_rate)].detach().float().cpu().clamp(-1, 1)
    picture = _picture(mel_decibels(audio, sample_rate) - (loudest(audio, sample_rate) if peak is None else peak))
    return Sound(label, flac_bytes(audio, sample_rate), picture, len(audio) / sample_rate, sample_rate)


def loudest(audio: Tensor, sample_rate: int) -> float:
    """dB re 1 of the loudest mel bin in the first 12 s of ``audio`` [N], not below :data:`audio.plots.SILENCE`."""
    return max(float(mel_decibels(audio[: round(LONGEST * sample_rate)], sample_rate).max()), SILENCE)


def _picture(decibels: Tensor) -> bytes:
    """A PNG of a mel spectrogram [bins, F] in dB below its peak; one pixel per bin and frame, low frequencies below."""
    import_figure()  # raises UserError without matplotlib
    from matplotlib import colormaps
    from matplotlib.image import imsave

    shade = ((decibels / RANGE + 1).clamp(0, 1) * 255).to(torch.uint8).flip(0)
    buffer = io.BytesIO()
    imsave(buffer, colormaps["magma"](shade.numpy(), bytes=True), format="png")
    return buffer.getvalue()
