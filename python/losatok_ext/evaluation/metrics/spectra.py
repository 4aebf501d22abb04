"""Distances between the spectra of audio and its reference, clip by clip: log bands, multi-resolution STFT and mel.

Every function takes batches of clips of different lengths; what lies past the length of a clip is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from losatok_ext.audio.constants import hann_window
from losatok_ext.audio.mel import mel_filter_bank
from losatok_ext.audio.stft import stft_magnitude
from losatok_ext.masks import valid_mask
from losatok_ext.models import LoSATokConfig
from losatok_ext.nn.losses import MultiScaleMelLoss

BANDS, BAND_N_FFT, BAND_HOP, BAND_FLOOR = 80, 1024, 256, 1e-4
"""Settings of :func:`log_bands`: number of bands, window and FFT in samples, hop in samples, smallest magnitude."""

WINDOWS = (512, 1024, 2048)
"""Windows in samples of the multi-resolution distances, a hop of a quarter each."""
MEL_BINS = (40, 80, 160)
"""Mel bins at each of :data:`WINDOWS`."""
MEL_LOSS = (
    "the spectral loss that tokenizers are trained with: mean absolute difference of log10 mel spectrograms at windows "
    "of 32 to 2048 samples; 1 is a factor of 10"
)
"""Definition of :func:`mel_loss`, for reports."""

_FLOOR = 1e-5  # smallest magnitude of the STFT and mel distances


def band_filters(n_fft: int = BAND_N_FFT, bands: int = BANDS) -> Tensor:
    """Means over ``bands`` equal (linear) bands of a spectrum: [n_fft // 2 + 1, bands] float32.

    Band ``i`` holds the bins from ``round(i b)`` up to ``round((i + 1) b)``, ``b = (n_fft // 2 + 1) / bands``.
    """
    edges = torch.linspace(0, n_fft // 2 + 1, bands + 1, dtype=torch.float64, device="cpu").round().long()
    filters = torch.zeros(n_fft // 2 + 1, bands, device="cpu")
    for band, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        filters[low:high, band] = 1 / (high - low)
    return filters


def log_bands(audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The log spectrum that :func:`log_band_distance` compares.

    ``ln(max(m, 1e-4))`` of the mean magnitude m in each of 80 equal bands of an STFT: Hann window and FFT of 1024
    samples, hop 256, centred, each clip reflected at its own ends.

    Args:
        audio: [B, N] floating point, at any sample rate.
        lengths: [B] int64 samples; None: all N.

    Returns:
        (log spectrum [B, F, 80] float32 with F = N // 256 + 1, frame lengths [B] int64). Frames past a frame length
        are undefined.
    """
    filters = band_filters().to(audio.device)
    return _magnitudes(
        audio, lengths, BAND_N_FFT, BAND_HOP, lambda magnitudes: (magnitudes @ filters).clamp(min=BAND_FLOOR).log()
    )


def log_band_distance(audio: Tensor, reference: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean absolute difference of :func:`log_bands` over the frames and bands of each clip: [B] float64, in nepers.

    Args:
        audio: [B, N] floating point.
        reference: [B, N], the original.
        lengths: [B] int64 samples of both; None: all N. Samples past it are not used, not even NaN.

    Raises:
        ValueError: the shapes differ.
    """
    filters = band_filters().to(audio.device)
    return clip_means(*_compare(audio, reference, lengths, BAND_N_FFT, BAND_HOP, filters, _log_difference))


def mean_log_bands(references: Iterable[Tensor]) -> Tensor:
    """The constant spectrum of a corpus: the mean of :func:`log_bands` over all frames of all its clips, [80] float64.

    Args:
        references: clips [N], read one at a time.

    Raises:
        ValueError: there is no frame.
    """
    total, count = torch.zeros(BANDS, dtype=torch.float64), 0
    for clip in references:
        bands, frames = log_bands(clip[None])
        total += bands[0].double().sum(0).cpu()
        count += int(frames[0])
    if not count:
        raise ValueError("references should hold at least one sample, got none")
    return total / count


def constant_spectrum_distance(
    reference: Tensor, lengths: Tensor | None = None, constant: Tensor | None = None
) -> Tensor:
    """The :func:`log_band_distance` [B] of audio whose log spectrum is ``constant`` in every frame.

    Args:
        reference: [B, N] floating point.
        lengths: [B] int64 samples; None: all N.
        constant: [80], from :func:`mean_log_bands` of a corpus; None: the mean over the frames of this batch.
    """
    bands, frames = log_bands(reference, lengths)
    valid = valid_mask(frames, bands.shape[1])[..., None]
    if constant is None:
        constant = torch.where(valid, bands, 0.0).double().sum((0, 1)) / frames.sum().clamp(min=1)
    return clip_means((bands.double() - constant.to(bands.device).double()).abs().mean(-1), frames)


class LogBandScore(NamedTuple):
    """Result of :func:`log_band_score`. Values are means over all frames of a corpus, so long clips have more weight.

    Attributes:
        distance: log-band distance of the audio to its reference, in nepers.
        constant: the same distance of the corpus's constant spectrum.
        ratio: ``distance / constant``: 0 is perfect, 1 no better than a constant spectrum; NaN where the references
            are a constant spectrum themselves.
    """

    distance: float
    constant: float
    ratio: float


def log_band_score(pairs: Iterable[tuple[Tensor, Tensor]]) -> LogBandScore:
    """Log-band distance of a corpus, and that of one constant spectrum: the mean log spectrum of its references.

    Args:
        pairs: (audio [N], reference [N]) of each clip. The log bands of all references are kept (20 kB per second).

    Raises:
        ValueError: there is no pair, or the two of a pair differ in length.
    """
    kept: list[Tensor] = []
    distance = 0.0
    for audio, reference in pairs:
        theirs, frames = log_bands(reference[None])
        distance += float(log_band_distance(audio[None], reference[None])) * int(frames)
        kept.append(theirs[0].cpu())
    if not kept:
        raise ValueError("pairs should hold at least one clip, got none")
    count = sum(len(bands) for bands in kept)
    centre = sum((bands.double().sum(0) for bands in kept), torch.zeros(BANDS, dtype=torch.float64)) / count
    constant = sum(float((bands.double() - centre).abs().mean(-1).sum()) for bands in kept)
    ratio = over_constant(distance / count, constant / count)
    return LogBandScore(distance / count, constant / count, float("nan") if ratio is None else ratio)


def over_constant(distance: float, constant: float) -> float | None:
    """``distance / constant``; None where all frames are one constant spectrum, up to rounding (1e-5 nepers)."""
    return distance / constant if constant > 1e-5 else None


def stft_distance(
    audio: Tensor, reference: Tensor, lengths: Tensor | None = None, windows: Sequence[int] = WINDOWS
) -> Tensor:
    """Mean absolute difference of ``log10`` STFT magnitudes (at least 1e-5), mean over ``windows``: [B] float64.

    1 is a factor of 10. Arguments and errors are those of :func:`log_band_distance`.
    """
    found = [_compare(audio, reference, lengths, size, size // 4, None, _log10_difference) for size in windows]
    return torch.stack([clip_means(*each) for each in found]).mean(0)


def mel_distance(
    audio: Tensor,
    reference: Tensor,
    sample_rate: int,
    lengths: Tensor | None = None,
    windows: Sequence[int] = WINDOWS,
    bins: Sequence[int] = MEL_BINS,
) -> Tensor:
    """Mean absolute difference of ``log10`` mel magnitudes (at least 1e-5), mean over ``windows``: [B] float64.

    1 is a factor of 10. ``bins`` are the mel bins (HTK scale) at each of ``windows`` samples, ``sample_rate`` is in Hz;
    the other arguments and errors are those of :func:`log_band_distance`.
    """
    found = []
    for size, mels in zip(windows, bins, strict=True):
        filters = mel_filter_bank(size, mels, sample_rate).to(audio.device)
        found.append(_compare(audio, reference, lengths, size, size // 4, filters, _log10_difference))
    return torch.stack([clip_means(*each) for each in found]).mean(0)


def mel_loss(sample_rate: int, device: torch.device | str = "cpu") -> MultiScaleMelLoss:
    """The multi-scale mel loss with the windows and bins that tokenizers are trained with by default.

    It is another measure than :func:`mel_distance`: more and shorter windows (32 to 2048 samples, 5 to 320 bins), and
    one mean over all frames of a batch instead of one for each clip.

    Args:
        sample_rate: Hz, of the waveforms [B, N] that it is called with.
        device: of the waveforms.
    """
    windows, bins = LoSATokConfig.mel_loss_windows, LoSATokConfig.mel_loss_bins
    return MultiScaleMelLoss(windows, bins, sample_rate).to(device)


def spectral_convergence(
    audio: Tensor, reference: Tensor, lengths: Tensor | None = None, windows: Sequence[int] = WINDOWS
) -> Tensor:
    """``||A - R|| / ||R||`` of the STFT magnitudes of each clip, mean over ``windows``: [B] float64; NaN for silence.

    Source: Arik, Jun and Diamos 2018, "Fast spectrogram inversion using multi-head convolutional neural networks".
    Arguments and errors are those of :func:`log_band_distance`.
    """
    found = []
    for size in windows:
        squares, frames = _compare(audio, reference, lengths, size, size // 4, None, _squares)
        off, norm = (clip_means(squares[..., place], frames) for place in (0, 1))
        found.append(torch.where(norm > 0, off / norm, torch.nan).sqrt())
    return torch.stack(found).mean(0)


def clip_means(per_frame: Tensor, frames: Tensor) -> Tensor:
    """Mean of ``per_frame`` [B, F] over the first ``frames`` [B] of each clip: [B] float64; NaN without frames."""
    valid = valid_mask(frames, per_frame.shape[1])
    return torch.where(valid, per_frame.double(), 0.0).sum(1) / frames


Compare = Callable[[Tensor, Tensor], Tensor]


def _log_difference(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.clamp(min=BAND_FLOOR).log() - theirs.clamp(min=BAND_FLOOR).log()).abs().mean(-1)


def _log10_difference(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.clamp(min=_FLOOR).log10() - theirs.clamp(min=_FLOOR).log10()).abs().mean(-1)


def _squares(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared norms of the difference and of ``theirs``, [..., 2]."""
    return torch.stack([(ours - theirs).double().square().sum(-1), theirs.double().square().sum(-1)], -1)


def _compare(
    audio: Tensor,
    reference: Tensor,
    lengths: Tensor | None,
    size: int,
    hop: int,
    filters: Tensor | None,
    compare: Compare,
) -> tuple[Tensor, Tensor]:
    """``compare`` of the magnitudes of both signals: ([B, F, ...], frame lengths [B]).

    Frames are processed in blocks, so an hour of audio needs the memory of one block, not of two spectrograms.
    """
    if audio.dim() != 2 or audio.shape != reference.shape:
        raise ValueError(
            f"audio and reference should be of one shape [B, N], got {list(audio.shape)} and {list(reference.shape)}; "
            "cut both to the shorter"
        )
    clips = len(audio)

    def both(magnitudes: Tensor) -> Tensor:
        magnitudes = magnitudes if filters is None else magnitudes @ filters
        found = compare(magnitudes[:clips], magnitudes[clips:])
        return torch.cat([found, found])  # as many rows as there are signals

    counts = None if lengths is None else torch.cat([lengths, lengths])
    values, frames = _magnitudes(torch.cat([audio.float(), reference.float()]), counts, size, hop, both)
    return values[:clips], frames[:clips]


def _magnitudes(
    audio: Tensor, lengths: Tensor | None, size: int, hop: int, transform: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """``transform`` of magnitudes [B, F, n_fft // 2 + 1] in float32, block by block, and frame lengths [B]."""
    if lengths is None:
        lengths = torch.full((len(audio),), audio.shape[1], dtype=torch.int64)
    window = hann_window(size).to(audio.device)
    with torch.autocast(audio.device.type, enabled=False):
        return stft_magnitude(audio.float(), lengths.to(audio.device), window, hop, 1.0, transform)
