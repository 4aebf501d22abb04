"""Pictures of generated audio: a new clip, or a recording with parts that were generated again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from losatok_ext.audio.plots import (
    SILENCE,
    check_drawable,
    check_picture,
    draw_latent,
    draw_mel,
    draw_waveforms,
    label_bar,
    mel_decibels,
    save_figure,
    stacked_axes,
)

_SPAN = "#0f766e"


def plot_generated(
    path: str | os.PathLike[str],
    audio: Tensor,
    sample_rate: int,
    latent: Tensor,
    frame_rate: float = 25.0,
    title: str = "",
) -> None:
    """Draw a generated clip, and save the complete picture or none: waveform, mel spectrogram, latent.

    Args:
        path: a .png, .pdf, .svg, .jpg or .webp file; parent folders are made.
        audio: [N] floating point.
        sample_rate: Hz.
        latent: [T, d].
        frame_rate: tokens per second.
        title: of the picture, such as the text.

    Raises:
        UserError: the suffix is not one of these, the file cannot be written, or matplotlib is not installed.
        ValueError: a tensor has another shape, is empty, or has values that are not finite.
    """
    path = check_picture(path)
    check_drawable("audio", audio, 1)
    check_drawable("latent", latent, 2)
    figure, grid, axes = stacked_axes([0.7, 1.25, 1.5], audio.shape[0] / sample_rate, title)
    draw_waveforms(axes[0], {"generated": audio}, sample_rate)
    _mels(figure, grid, axes[1:2], {"mel spectrogram": audio}, sample_rate, "dB re the peak")
    _latent(figure, grid, axes, 2, latent, frame_rate, "latent")
    save_figure(figure, path)


def plot_edit(
    path: str | os.PathLike[str],
    before: Tensor,
    after: Tensor,
    sample_rate: int,
    latent: Tensor,
    spans: Sequence[tuple[float, float]],
    inserted: Sequence[tuple[float, float]] = (),
    frame_rate: float = 25.0,
    title: str = "",
) -> None:
    """Draw a recording before and after an edit over the time axis of the result, and mark the generated spans.

    From top to bottom: both waveforms; the mel spectrogram of each on one dB scale; the latent after the edit.

    Args:
        path: a .png, .pdf, .svg, .jpg or .webp file; parent folders are made.
        before: [N] floating point; its parts are moved to their places after the edit.
        after: [N] floating point.
        sample_rate: Hz.
        latent: [T, d], after the edit.
        spans: (start, stop) in seconds of what was generated.
        inserted: (start, stop) in seconds of what ``before`` has no audio for; hatched there.
        frame_rate: tokens per second.
        title: of the picture.

    Raises:
        UserError: the suffix is not one of these, the file cannot be written, or matplotlib is not installed.
        ValueError: a tensor has another shape, is empty, or has values that are not finite.
    """
    path = check_picture(path)
    for name, tensor, dims in (("before", before, 1), ("after", after, 1), ("latent", latent, 2)):
        check_drawable(name, tensor, dims)
    figure, grid, axes = stacked_axes([0.7, 1.25, 1.25, 1.5], after.shape[0] / sample_rate, title)
    draw_waveforms(axes[0], {"before": before, "after": after}, sample_rate)
    names = {"mel spectrogram before": before, "mel spectrogram after, generated spans framed": after}
    _mels(figure, grid, axes[1:3], names, sample_rate, "dB re the peak before")
    _latent(figure, grid, axes, 3, latent, frame_rate, "latent after")
    for start, stop in spans:
        axes[0].axvspan(start, stop, color=_SPAN, alpha=0.18, linewidth=0)
        for axis in axes[2:]:
            bottom, top = axis.get_ylim()
            axis.fill_between([start, stop], bottom, top, facecolor="none", edgecolor=_SPAN, linewidth=1.6)
    for start, stop in inserted:
        axes[1].axvspan(start, stop, facecolor="#f1f3f4", edgecolor=_SPAN, hatch="///", linewidth=0)
    save_figure(figure, path)


def _mels(figure: Any, grid: Any, axes: Sequence[Any], clips: dict[str, Tensor], rate: int, label: str) -> None:
    """Draw the mel spectrogram of each clip in dB below the peak of the first, with one colour bar for all."""
    mels = [mel_decibels(audio, rate) for audio in clips.values()]
    peak = max(mels[0].max().item(), SILENCE)
    image: Any = None
    for axis, (name, audio), mel in zip(axes, clips.items(), mels, strict=True):
        image = draw_mel(axis, mel - peak, audio.shape[0] / rate, rate)
        axis.set_title(name, fontsize=9, loc="left")
    label_bar(figure.colorbar(image, cax=figure.add_subplot(grid[1 : 1 + len(axes), 1])), label)


def _latent(figure: Any, grid: Any, axes: Sequence[Any], row: int, latent: Tensor, rate: float, name: str) -> None:
    image = draw_latent(axes[row], latent, rate)
    tokens, width = latent.shape
    axes[row].set_title(f"{name}: {tokens} tokens of {width} dimensions, {rate:g} per second", fontsize=9, loc="left")
    label_bar(figure.colorbar(image, cax=figure.add_subplot(grid[row, 1]), extend="both"), "value")
