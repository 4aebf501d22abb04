"""Pictures of a recording, its reconstruction, and the latent between them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from losatok_ext.audio.mel import MelSpectrogram
from losatok_ext.errors import UserError
from losatok_ext.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".webp")
"""Suffixes that :func:`plot_reconstruction` writes."""

_N_FFT, _MELS, _HOP = (
    1024,
    80,
    160,
)  # samples, bins, samples; fewer bins would blur, more leave empty filters at the bottom
_COLUMNS = 2400  # of a picture; in longer recordings each column stands for more samples
RANGE = 80.0
"""Range of the colours in dB, down from the loudest mel bin of the input."""
SILENCE = -40.0
"""dB re 1: recordings without a louder mel bin are drawn black, not amplified (a full-scale tone has about +48)."""
_TICKS = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)  # Hz
_GREY, _ACCENT = "#9aa0a6", "#c2410c"


def import_figure() -> type[Figure]:
    """matplotlib's Figure class, used without pyplot, so that no display and no global state are needed.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"pictures need matplotlib ({error}); pip install 'losatok-ext[cli]'") from error
    return Figure


def mel_decibels(audio: Tensor, sample_rate: int) -> Tensor:
    """Magnitude mel spectrogram of ``audio`` [N] in dB re 1: [80 bins, F] float32, with F of at most about 2400.

    Windows of 1024 samples, hop 160 samples; the hop is longer for recordings of more than 24 s (at 16 kHz).
    """
    hop = max(_HOP, -(-audio.shape[-1] // _COLUMNS))
    audio = audio.detach().to("cpu", torch.float32)
    mel, _ = MelSpectrogram(_N_FFT, _MELS, hop, 1.0, sample_rate)(audio[None], torch.tensor([audio.shape[-1]]))
    return 20 * mel[0].clamp(min=1e-7).log10().t()


def plot_reconstruction(
    path: str | os.PathLike[str],
    original: Tensor,
    reconstruction: Tensor,
    sample_rate: int,
    latent: Tensor | None = None,
    frame_rate: float = 25.0,
    title: str = "",
) -> None:
    """Draw a recording and its reconstruction over one time axis, and save the complete picture or none.

    From top to bottom: both waveforms; the mel spectrogram of each on one dB scale (relative to the loudest bin of the
    original); the latent as a heat map, dimension by dimension.

    Args:
        path: a .png, .pdf, .svg, .jpg or .webp file; parent folders are made.
        original: [N] floating point.
        reconstruction: [N'] floating point.
        sample_rate: of both, Hz.
        latent: [T, d]; None: not drawn.
        frame_rate: tokens per second.
        title: of the picture, such as the name of the recording.

    Raises:
        UserError: the suffix is not one of these, the file cannot be written, or matplotlib is not installed.
        ValueError: a tensor has another shape, is empty, or has values that are not finite.
    """
    path = check_picture(path)
    for name, tensor, dims in (("original", original, 1), ("reconstruction", reconstruction, 1), ("latent", latent, 2)):
        if tensor is not None:
            check_drawable(name, tensor, dims)
    save_figure(_draw(original, reconstruction, sample_rate, latent, frame_rate, title), path)


def check_picture(path: str | os.PathLike[str]) -> Path:
    """``path`` as a Path. Raises UserError unless its suffix is one of :data:`PICTURES`."""
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{path} cannot be drawn: {path.suffix or 'no suffix'} is none of {', '.join(PICTURES)}")
    return path


def check_drawable(name: str, tensor: Tensor, dims: int) -> None:
    """Raise ValueError unless ``tensor`` is finite, not empty, and has ``dims`` dimensions."""
    if tensor.dim() != dims or tensor.numel() == 0 or not torch.isfinite(tensor).all():
        raise ValueError(
            f"{name} should be finite and not empty, {'[N]' if dims == 1 else '[T, d]'}, got {list(tensor.shape)}"
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Save ``figure`` completely or not at all. Raises UserError if the file cannot be written."""
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=130)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _draw(
    original: Tensor, reconstruction: Tensor, rate: int, latent: Tensor | None, frame_rate: float, title: str
) -> Figure:
    heights = [0.7, 1.25, 1.25] + ([1.5] if latent is not None else [])
    seconds = max(original.shape[0], reconstruction.shape[0]) / rate
    figure, grid, axes = stacked_axes(heights, seconds, title)
    draw_waveforms(axes[0], {"input": original, "reconstruction": reconstruction}, rate)
    mels = [mel_decibels(audio, rate) for audio in (original, reconstruction)]
    peak = max(mels[0].max().item(), SILENCE)
    image: Any = None
    for axis, name, mel, audio in zip(
        axes[1:3], ("input", "reconstruction"), mels, (original, reconstruction), strict=True
    ):
        image = draw_mel(axis, mel - peak, audio.shape[0] / rate, rate)
        axis.set_title(f"mel spectrogram of the {name}", fontsize=9, loc="left")
    label_bar(figure.colorbar(image, cax=figure.add_subplot(grid[1:3, 1])), "dB re the input's peak")
    if latent is not None:
        image = draw_latent(axes[3], latent, frame_rate)
        tokens, width = latent.shape
        axes[3].set_title(
            f"latent: {tokens} tokens of {width} dimensions, {frame_rate:g} per second", fontsize=9, loc="left"
        )
        label_bar(figure.colorbar(image, cax=figure.add_subplot(grid[3, 1]), extend="both"), "value")
    return figure


def stacked_axes(heights: list[float], seconds: float, title: str) -> tuple[Figure, Any, list[Any]]:
    """(figure, grid, axes): panels of relative ``heights`` over one time axis of ``seconds``.

    The second column of the grid is for colour bars.
    """
    figure = import_figure()(figsize=(10, 1.0 + 1.55 * sum(heights)), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(h_pad=0.04, w_pad=0.05, hspace=0.02)
    grid = figure.add_gridspec(len(heights), 2, width_ratios=[1, 0.016], height_ratios=heights)
    axes: list[Any] = []
    for row in range(len(heights)):
        axes.append(figure.add_subplot(grid[row, 0], sharex=axes[0] if axes else None))
        axes[-1].tick_params(labelsize=8, labelbottom=row == len(heights) - 1)
    axes[0].set_xlim(0, seconds)
    axes[-1].set_xlabel("time (s)", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, grid, axes


def label_bar(bar: Any, label: str) -> None:
    """Label a colour bar in a small font."""
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def draw_waveforms(axis: Any, waveforms: Mapping[str, Tensor], rate: int) -> None:
    """Draw one or two waveforms, name -> [N], at ``rate`` Hz; the first of two is grey and lies below the other."""
    for (name, audio), colour in zip(waveforms.items(), (_GREY, _ACCENT)[-len(waveforms) :], strict=True):
        samples = audio.detach().float().cpu().numpy()
        step = max(1, len(samples) // _COLUMNS)
        columns = samples[: len(samples) // step * step].reshape(-1, step)
        time = np.arange(len(columns)) * step / rate
        alpha = 0.9 if colour == _GREY else 0.6
        axis.fill_between(time, columns.min(1), columns.max(1), color=colour, alpha=alpha, linewidth=0.4, label=name)
    limit = max(1e-3, *(audio.abs().max().item() for audio in waveforms.values())) * 1.05
    axis.set_ylim(-limit, limit)
    axis.set_ylabel("amplitude", fontsize=9)
    axis.set_title("waveform" if len(waveforms) == 1 else "waveforms", fontsize=9, loc="left")
    if len(waveforms) > 1:
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8, frameon=False, borderaxespad=0.1)


def draw_mel(axis: Any, decibels: Tensor, seconds: float, rate: int) -> Any:
    """Draw a mel spectrogram [80, F] in dB below the peak; returns the image, for a colour bar."""
    image = axis.imshow(
        decibels.numpy(),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0, seconds, -0.5, _MELS - 0.5),
        vmin=-RANGE,
        vmax=0,
        cmap="magma",
    )
    ticks = [hertz for hertz in _TICKS if hertz <= rate / 2]
    top = 2595 * np.log10(1 + rate / 2 / 700)
    axis.set_yticks(
        [min(2595 * np.log10(1 + hertz / 700) / top * (_MELS + 1) - 1, _MELS - 0.5) for hertz in ticks],
        [f"{hertz // 1000}k" if hertz >= 1000 else str(hertz) for hertz in ticks],
    )
    axis.set_ylim(-0.5, _MELS - 0.5)
    axis.set_ylabel("frequency (Hz)", fontsize=9)
    return image


def draw_latent(axis: Any, latent: Tensor, frame_rate: float) -> Any:
    """Draw a latent [T, d] as a heat map; returns the image, for a colour bar."""
    values = latent.detach().float().cpu()
    tokens, width = values.shape
    step = -(-tokens // _COLUMNS)
    if step > 1:  # a column is the mean of its tokens, not one of them
        values = values[: tokens // step * step].unflatten(0, (-1, step)).mean(1)
    limit = max(values.abs().flatten().kthvalue(max(1, int(0.995 * values.numel()))).values.item(), 1e-6)
    image = axis.imshow(
        values.t().numpy(),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0, tokens / frame_rate, -0.5, width - 0.5),
        vmin=-limit,
        vmax=limit,
        cmap="RdBu_r",
    )
    axis.set_ylabel("latent dimension", fontsize=9)
    return image
