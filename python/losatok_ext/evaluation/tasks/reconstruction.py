"""How close reconstructions are to their recordings: clip by clip, by group and over all clips."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from losatok_ext.audio.files import read_audio
from losatok_ext.errors import AudioFileError, UserError
from losatok_ext.evaluation.metrics import spectra, waveform
from losatok_ext.evaluation.metrics.pitch import pitch_error
from losatok_ext.evaluation.reporting.numbers import mean_and_spread
from losatok_ext.evaluation.tasks.journal import Journal, JournalError
from losatok_ext.evaluation.tasks.measured import Progress, for_each, require_any
from losatok_ext.models import LoSATok
from losatok_ext.recordings.find import Failure
from losatok_ext.recordings.labelled import Item


class Metric(NamedTuple):
    """A figure of a clip.

    Attributes:
        title: as tables show it.
        better: ``"lower"`` or ``"higher"``.
        digits: decimals to show.
        meaning: its definition.
    """

    title: str
    better: str
    digits: int
    meaning: str


METRICS = {
    "log_band": Metric(
        "log bands",
        "lower",
        3,
        "mean absolute difference of the natural logarithm of 80 equal bands of an STFT (1024 samples, hop 256; "
        "magnitudes of at least 1e-4)",
    ),
    "log_band_ratio": Metric(
        "of a constant",
        "lower",
        3,
        "log bands, divided by the log bands of one constant spectrum (the mean log spectrum of all frames measured); "
        "both are means over frames",
    ),
    "mel_distance": Metric(
        "mel distance",
        "lower",
        3,
        "mean absolute difference of log10 magnitude mel (40, 80, 160 bins), mean over windows of 512, 1024 and 2048 "
        "samples; 1 is a factor of 10",
    ),
    "stft": Metric("STFT", "lower", 3, "the same of plain STFT magnitudes"),
    "convergence": Metric(
        "convergence", "lower", 3, "spectral convergence ||A - R|| / ||R|| of magnitudes, mean over the same windows"
    ),
    "si_sdr": Metric(
        "SI-SDR, dB", "higher", 1, "scale-invariant signal-to-distortion ratio; meaningful only where phase is kept"
    ),
    "f0_cents": Metric("F0, cents", "lower", 0, "RMSE of the pitch (YIN, 60 to 600 Hz) over the frames voiced in both"),
    "f0_fine": Metric("F0 fine, cents", "lower", 0, "the same without frames that are off by more than 20 %"),
    "f0_gross": Metric(
        "F0 gross", "lower", 3, "share of the frames voiced in both that are off by more than 20 %, mostly by octaves"
    ),
    "voicing": Metric("voicing", "lower", 3, "share of all frames voiced in one and not in the other"),
    "pesq": Metric("PESQ", "higher", 2, "wide-band PESQ (ITU-T P.862.2), where there is speech for it"),
    "stoi": Metric("STOI", "higher", 3, "short-time objective intelligibility, where there is enough for it"),
    "rtf": Metric("RTF", "lower", 4, "real-time factor: seconds to encode and decode over seconds of audio"),
}
_PER_CLIP = tuple(name for name in METRICS if name != "log_band_ratio")


@dataclass(frozen=True)
class ClipResult:
    """Figures of one clip: ``seconds`` and ``frames`` measured, and metric -> value (None: not defined for it)."""

    item: Item
    seconds: float
    frames: int
    values: dict[str, float | None]

    def known(self, name: str) -> float:
        """The value of a metric that is defined for every clip."""
        value = self.values[name]
        assert value is not None
        return value


class Aggregate(NamedTuple):
    """A metric over clips: mean, sample standard deviation over clips, and how many clips have it."""

    mean: float | None
    spread: float | None
    clips: int


@dataclass
class Group:
    """Clips with the same value of one key of the manifest, or all clips.

    Attributes:
        key: of the manifest; ``""`` for all clips.
        value: of that key; ``"all"`` for all clips.
        clips: their number.
        seconds: of audio measured.
        metrics: by name.
    """

    key: str
    value: str
    clips: int
    seconds: float
    metrics: dict[str, Aggregate]


@dataclass
class ReconstructionResult:
    """What :func:`evaluate_reconstruction` measured.

    Attributes:
        fingerprint: of the model.
        facts: model and measures that the figures depend on.
        clips: in the order of the items.
        groups: all clips first, then the groups of each key.
        constant: log-band distance of the constant spectrum over all frames.
        failures: items that could not be measured.
    """

    fingerprint: str
    facts: dict[str, Any]
    clips: list[ClipResult]
    groups: list[Group]
    constant: float
    failures: list[Failure]

    @property
    def overall(self) -> Group:
        """All clips."""
        return self.groups[0]


def perceptual_measures(pesq: bool | None, stoi: bool | None) -> tuple[list[str], dict[str, str]]:
    """Names of the perceptual measures to compute, and title -> reason of those that cannot be computed.

    Args:
        pesq: compute PESQ; None: if its package is installed.
        stoi: the same for STOI.

    Raises:
        UserError: one is asked for and its package is not installed.
    """
    chosen: list[str] = []
    notes: dict[str, str] = {}
    for name, wanted in (("pesq", pesq), ("stoi", stoi)):
        package = waveform.missing_package(name)
        if wanted and package is not None:
            raise UserError(f"--{name} needs {package}, which is not installed: pip install {package}")
        if wanted is False:
            continue
        if package is None:
            chosen.append(name)
        else:
            notes[METRICS[name].title] = f"not measured, {package} is not installed: pip install {package}"
    return chosen, notes


def evaluate_reconstruction(
    model: LoSATok,
    items: Sequence[Item],
    journal: str | os.PathLike[str],
    *,
    keys: Sequence[str] = ("domain",),
    perceptual: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
    debug: bool = False,
) -> ReconstructionResult:
    """Encode and decode each recording and compare the result with the recording.

    A recording is compared up to its last complete token: padding, and a token that the recording fills only in part,
    do not count. In means over clips each clip has the same weight; ``log_band_ratio`` and ``rtf`` are one sum divided
    by another, so long clips have more weight.

    Args:
        model: in eval mode.
        items: recordings.
        journal: file that the figures of each clip are written to at once; the same call later continues from it.
        keys: of the manifest; clips are grouped by their values.
        perceptual: measures to compute besides, of ``"pesq"`` and ``"stoi"``.
        fresh: measure again what the journal holds.
        progress: called after each item.
        debug: raise the first error instead of collecting it.

    Raises:
        UserError: nothing can be measured, or the journal is of another model or of other measures.
        BackendUnavailableError: an op cannot run here.
    """
    facts = {"model": model.fingerprint(), "measures": sorted({*_PER_CLIP} - {"pesq", "stoi"} | {*perceptual})}
    clips: list[ClipResult] = []
    centre, frames = torch.zeros(spectra.BANDS, dtype=torch.float64), 0
    warm = False
    with Journal(journal, facts, fresh) as kept:

        def work(item: Item) -> None:
            nonlocal frames, warm
            key = item.key()
            if key not in kept.done:
                audio = _complete_tokens(model, item)
                if not warm:  # the first run is slower than all others, so it is not timed
                    model.reconstruct(audio[None, : 4 * model.sample_rate])
                    warm = True
                kept.add(key, measure_clip(model, audio, perceptual))
            values = dict(kept.done[key])
            centre.add_(torch.tensor(values.pop("band_sum"), dtype=torch.float64))
            seconds, count = values.pop("seconds"), values.pop("frames")
            frames += count
            clips.append(ClipResult(item, seconds, count, {name: values.get(name) for name in METRICS}))

        failures = for_each(items, work, progress, debug, fatal=(JournalError,))
    require_any(len(clips), "there are no recordings to measure", failures)
    constants = _constant_distances(model, clips, centre / frames)
    for clip, constant in zip(clips, constants, strict=True):
        clip.values["log_band_ratio"] = spectra.over_constant(clip.known("log_band"), constant)
    groups = [_group("", "all", clips, constants)]
    for name in keys:
        for value in sorted({clip.item.values[name] for clip in clips if name in clip.item.values}):
            chosen = [i for i, clip in enumerate(clips) if clip.item.values.get(name) == value]
            groups.append(_group(name, value, [clips[i] for i in chosen], [constants[i] for i in chosen]))
    total = sum(c * clip.frames for c, clip in zip(constants, clips, strict=True)) / frames
    return ReconstructionResult(model.fingerprint(), facts, clips, groups, total, failures)


def measure_clip(model: LoSATok, audio: Tensor, perceptual: Sequence[str] = ()) -> dict[str, Any]:
    """Figures of one clip [N] of complete tokens.

    These are all metrics except ``log_band_ratio``, ``seconds``, the number of log-band ``frames``, and ``band_sum``,
    the sum of the recording's log bands over these frames.
    """
    rate = model.sample_rate
    _wait_for(model.device)
    start = time.perf_counter()
    decoded = model.reconstruct(audio[None])
    _wait_for(model.device)
    spent = time.perf_counter() - start
    ours, theirs = decoded[0].float().cpu(), audio.float().cpu()
    pair = ours[None], theirs[None]
    bands, _ = spectra.log_bands(pair[1])
    pitch = pitch_error(ours, theirs, rate)
    convergence = float(spectra.spectral_convergence(*pair))
    values = {
        "log_band": float(spectra.log_band_distance(*pair)),
        "mel_distance": float(spectra.mel_distance(*pair, rate)),
        "stft": float(spectra.stft_distance(*pair)),
        "convergence": None if convergence != convergence else convergence,  # silence has none
        "si_sdr": waveform.si_sdr(ours, theirs),
        "f0_cents": pitch.cents,
        "f0_fine": pitch.fine,
        "f0_gross": pitch.gross,
        "voicing": pitch.voicing,
        "rtf": spent * rate / len(audio),
    }
    values |= {name: {"pesq": waveform.pesq, "stoi": waveform.stoi}[name](ours, theirs, rate) for name in perceptual}
    total = [round(value, 6) for value in bands[0].double().sum(0).tolist()]
    return {"seconds": len(audio) / rate, "frames": bands.shape[1], "band_sum": total, **values}


def _wait_for(device: torch.device) -> None:
    """Wait until ``device`` has finished its work, so that the time of that work can be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _complete_tokens(model: LoSATok, item: Item) -> Tensor:
    audio = read_audio(item.path, model.sample_rate)
    samples = len(audio) // model.samples_per_token * model.samples_per_token
    if not samples:
        raise AudioFileError(f"{item.path} is shorter than one token ({model.samples_per_token} samples); leave it out")
    return audio[:samples]


def _constant_distances(model: LoSATok, clips: Iterable[ClipResult], constant: Tensor) -> list[float]:
    """Log-band distance of the constant spectrum to each clip; the clips are read again for it."""
    references = (_complete_tokens(model, clip.item)[None] for clip in clips)
    return [float(spectra.constant_spectrum_distance(audio, constant=constant)) for audio in references]


def _group(key: str, value: str, clips: Sequence[ClipResult], constants: Sequence[float]) -> Group:
    metrics = {name: Aggregate(*mean_and_spread(clip.values[name] for clip in clips)) for name in METRICS}
    seconds = sum(clip.seconds for clip in clips)
    spent = sum(clip.known("rtf") * clip.seconds for clip in clips)
    frames = sum(clip.frames for clip in clips)
    off = sum(clip.known("log_band") * clip.frames for clip in clips)
    constant = sum(distance * clip.frames for distance, clip in zip(constants, clips, strict=True))
    metrics["rtf"] = metrics["rtf"]._replace(mean=spent / seconds)
    metrics["log_band_ratio"] = metrics["log_band_ratio"]._replace(
        mean=spectra.over_constant(off / frames, constant / frames)
    )
    return Group(key, value, len(clips), seconds, metrics)


def journal_place(folder: Path) -> Path:
    """The journal of a report in ``folder``."""
    return folder / "reconstruction.clips.jsonl"
