"""How near a model's reconstruction of recordings comes to them, clip by clip, by group and in all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from losatok_ext.audio.files import read_audio
from losatok_ext.errors import AudioFileError, UserError
from losatok_ext.evaluation.metrics import spectra, waveform
from losatok_ext.evaluation.metrics.pitch import pitch_error
from losatok_ext.evaluation.reporting.report import mean_and_spread
from losatok_ext.evaluation.tasks.journal import Journal, JournalError
from losatok_ext.jobs.tokenize import sentence
from losatok_ext.models import LoSATok
from losatok_ext.ops.dispatch import BackendUnavailableError
from losatok_ext.recordings.find import Failure
from losatok_ext.recordings.labelled import Item


class Metric(NamedTuple):
    """A figure of a clip: what it is called, what is ``better`` (``"lower"`` or ``"higher"``), decimals to show, and
    what it means."""

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
        "log bands, over what one constant spectrum scores: the mean log spectrum of all frames measured; both are "
        "means over frames",
    ),
    "mel": Metric(
        "mel",
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
        "SI-SDR, dB", "higher", 1, "scale-invariant signal-to-distortion ratio; of use where phase is kept"
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
    """Figures of one clip: name of a metric -> value, None where it has none."""

    item: Item
    seconds: float
    frames: int
    values: dict[str, float | None]

    def known(self, name: str) -> float:
        """A metric that every clip has."""
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
    """Clips that have something in common.

    Attributes:
        key: of the manifest; ``""`` for all clips.
        value: that they share.
        clips: how many; ``seconds``: of audio measured.
        metrics: by name.
    """

    key: str
    value: str
    clips: int
    seconds: float
    metrics: dict[str, Aggregate]


@dataclass
class Reconstruction:
    """What :func:`evaluate_reconstruction` measured.

    Attributes:
        fingerprint: of the model.
        facts: what else the figures rest on.
        clips: in the order of the items.
        groups: all clips first, then by each key.
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
    """Which of PESQ and STOI to compute (None: where its package is installed), and by title why others are not.

    Raises:
        UserError: one is wanted and its package is not installed.
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
    progress: Callable[[Item], None] | None = None,
    debug: bool = False,
) -> Reconstruction:
    """Encode and decode each recording and compare it with what it was.

    What is compared is a recording up to its last whole token: neither padding nor the token that it breaks off in
    counts. Means over clips weigh each the same; ``log_band_ratio`` and ``rtf`` are sums over sums.

    Args:
        model: in eval mode.
        items: recordings.
        journal: file that figures of clips are kept in as they are found; the same call again goes on from it.
        keys: of the manifest, by whose values clips are grouped.
        perceptual: of ``"pesq"`` and ``"stoi"``, those to compute.
        fresh: measure again what the journal holds.
        progress: called after each item.
        debug: let the first error through instead of collecting it.

    Raises:
        UserError: nothing can be measured, or the journal is of another model or of other measures.
        BackendUnavailableError: an op cannot run here.
    """
    facts = {"model": model.fingerprint(), "measures": sorted({*_PER_CLIP} - {"pesq", "stoi"} | {*perceptual})}
    failures: list[Failure] = []
    clips: list[ClipResult] = []
    centre, frames = torch.zeros(spectra.BANDS, dtype=torch.float64), 0
    warm = False
    with Journal(journal, facts, fresh) as kept:
        for item in items:
            key = item.key()
            try:
                if key not in kept.done:
                    audio = _whole_tokens(model, item)
                    if not warm:  # the first run of anything is slower than all that follow
                        model.reconstruct(audio[None, : 4 * model.sample_rate])
                        warm = True
                    kept.add(key, measure_clip(model, audio, perceptual))
            except (BackendUnavailableError, JournalError):
                raise  # it would be the same for every recording
            except Exception as error:
                if debug:
                    raise
                failures.append(Failure(item.path, sentence(item.path, error)))
            else:
                values = dict(kept.done[key])
                centre += torch.tensor(values.pop("band_sum"), dtype=torch.float64)
                seconds, count = values.pop("seconds"), values.pop("frames")
                frames += count
                clips.append(ClipResult(item, seconds, count, {name: values.get(name) for name in METRICS}))
            if progress is not None:
                progress(item)
    if not clips:
        reason = f"; the first: {failures[0].message}" if failures else ""
        raise UserError(f"there are no recordings to measure{reason}")
    constants = _constant_distances(model, clips, centre / frames)
    for clip, constant in zip(clips, constants, strict=True):
        clip.values["log_band_ratio"] = spectra.over_constant(clip.known("log_band"), constant)
    groups = [_group("", "all", clips, constants)]
    for name in keys:
        for value in sorted({clip.item.values[name] for clip in clips if name in clip.item.values}):
            chosen = [i for i, clip in enumerate(clips) if clip.item.values.get(name) == value]
            groups.append(_group(name, value, [clips[i] for i in chosen], [constants[i] for i in chosen]))
    total = sum(c * clip.frames for c, clip in zip(constants, clips, strict=True)) / frames
    return Reconstruction(model.fingerprint(), facts, clips, groups, total, failures)


def measure_clip(model: LoSATok, audio: Tensor, perceptual: Sequence[str] = ()) -> dict[str, Any]:
    """Figures of one clip [N] of whole tokens: the metrics but ``log_band_ratio``; ``seconds``; log-band ``frames`` and
    the sum over them of the reference's log bands, ``band_sum``."""
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
        "mel": float(spectra.mel_distance(*pair, rate)),
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
    """Wait until ``device`` has done what was asked of it, so that a clock tells the time it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _whole_tokens(model: LoSATok, item: Item) -> Tensor:
    audio = read_audio(item.path, model.sample_rate)
    samples = len(audio) // model.samples_per_token * model.samples_per_token
    if not samples:
        raise AudioFileError(f"{item.path} is shorter than one token ({model.samples_per_token} samples); leave it out")
    return audio[:samples]


def _constant_distances(model: LoSATok, clips: Iterable[ClipResult], constant: Tensor) -> list[float]:
    """Log-band distance of the constant spectrum to each clip, which is read again for it."""
    references = (_whole_tokens(model, clip.item)[None] for clip in clips)
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
    """Where a report's folder keeps the figures of its clips."""
    return folder / "reconstruction.clips.jsonl"
