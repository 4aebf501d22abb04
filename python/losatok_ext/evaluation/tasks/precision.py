"""What each precision of a model costs and saves: error of latents and waveforms, speed, size and memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.audio.files import read_audio_with_info
from losatok_ext.environment import info
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.spectra import mel_loss
from losatok_ext.evaluation.tasks.measured import Measured, Progress, Sums
from losatok_ext.evaluation.tasks.side_by_side import PeakUnknownError, interleave, peak_memory
from losatok_ext.models import LoSATok
from losatok_ext.models.storage.precision import DTYPES
from losatok_ext.nn.losses import MultiScaleMelLoss
from losatok_ext.recordings.labelled import Item

REFERENCE = next(iter(DTYPES))
SPEED_SECONDS = 10.0
"""Length of the noise that is timed; the time does not depend on the sound."""


@dataclass(frozen=True)
class PrecisionRow:
    """One precision, compared with float32.

    Attributes:
        dtype: its name.
        token_error: root mean square difference of the latents to those of float32, divided by the root mean square of
            these.
        worst_token_error: the same of the recording where it is largest.
        cosine: between the latents and those of float32, mean over tokens.
        snr: decibels of float32's waveform over the difference to it, each encoded and decoded in its own precision;
            infinite where there is no difference.
        decoder_snr: the same where both decode the latents of float32.
        mel_loss: between the two waveforms of ``snr``; mean over recordings, weighted by tokens.
        encode_seconds: for ten seconds of audio, the best of all rounds.
        decode_seconds: the same for decoding.
        encode_speed: float32's seconds divided by ``encode_seconds``, from the same run.
        decode_speed: float32's seconds divided by ``decode_seconds``, from the same run.
        bytes: of the tensors in ``model.safetensors``.
        peak_bytes: peak memory of encoding and decoding beyond the model; None: the system does not report it.
    """

    dtype: str
    token_error: float
    worst_token_error: float
    cosine: float
    snr: float
    decoder_snr: float
    mel_loss: float
    encode_seconds: float
    decode_seconds: float
    encode_speed: float
    decode_speed: float
    bytes: int
    peak_bytes: int | None


@dataclass
class PrecisionResult(Measured):
    """What :func:`evaluate_precision` measured.

    Attributes:
        model: a description of what was measured.
        machine: processor or GPU, threads, version of torch.
        date: of the measurement, in ISO 8601.
        rows: one per precision, float32 first.
    """

    model: str
    machine: str
    date: str
    rows: list[PrecisionRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the failures; None for an infinite ratio."""
        values = dataclasses.asdict(self)
        del values["failures"]
        for row in values["rows"]:
            row.update({key: None for key in _RATIOS if math.isinf(row[key])})
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrecisionResult:
        """The result that :meth:`to_dict` gave ``values`` of; other keys are ignored."""
        rows = [
            PrecisionRow(**{**row, **{key: math.inf for key in _RATIOS if row[key] is None}}) for row in values["rows"]
        ]
        names = ("model", "machine", "date", "recordings", "seconds")
        return cls(**{name: values[name] for name in names}, rows=rows)


_RATIOS = ("snr", "decoder_snr")  # infinite where there is no difference, which JSON has no number for


@dataclass
class _Sums(Sums):
    """Sums over recordings for one precision: squared errors and signals, cosines, and mel losses times tokens."""

    difference: float = 0.0
    latents: float = 0.0
    worst: float = 0.0
    cosine: float = 0.0
    tokens: int = 0
    noise: float = 0.0
    decoder_noise: float = 0.0
    signal: float = 0.0
    mel: float = 0.0

    def add(self, other: _Sums) -> None:
        """Add a recording; ``worst`` becomes the larger of both."""
        worst = max(self.worst, other.worst)
        super().add(other)
        self.worst = worst


def in_each_precision(model: LoSATok) -> dict[str, LoSATok]:
    """``model``, which is in float32 and eval mode, and copies of it in all lower precisions, by name.

    Tensors that stay in float32 are shared.
    """
    models = {REFERENCE: model}
    for name, dtype in DTYPES.items():
        if name == REFERENCE:
            continue
        with torch.device("meta"):  # its random weights would be overwritten
            twin = LoSATok(model.config)
        twin.load_state_dict(model.state_dict(), assign=True)
        models[name] = twin.to(model.device).eval().cast(dtype)
    return models


@torch.no_grad()
def evaluate_precision(
    models: Mapping[str, LoSATok],
    items: Sequence[Item],
    described: str,
    date: str,
    budget: float = 4.0,
    progress: Progress | None = None,
    debug: bool = False,
) -> PrecisionResult:
    """Encode and decode recordings in each precision and compare with float32; then time all of them in turn.

    Args:
        models: one model in each precision, by its name; the others are compared with ``"float32"``.
        items: recordings.
        described: a description of the model for the report.
        date: for the report.
        budget: seconds for timing encoding, and as many for decoding; at least three rounds are run.
        progress: called after each recording.
        debug: raise the first error instead of collecting it.

    Raises:
        UserError: no recording can be measured.
        BackendUnavailableError: an op cannot run here.
    """
    exact = models[REFERENCE]
    mel = mel_loss(exact.sample_rate, exact.device)
    result = PrecisionResult(described, _machine(exact.device), date)
    sums = {name: _Sums() for name in models}

    def work(item: Item) -> float:
        audio, found = read_audio_with_info(item.path, exact.sample_rate)
        if exact.config.token_count(len(audio)) == 0:
            raise UserError("it is shorter than a token")
        for name, own in _measured(models, audio, mel).items():
            sums[name].add(own)
        return found.seconds

    result.measure(items, work, progress, debug)
    result.rows = _rows(models, sums, budget)
    return result


def _measured(models: Mapping[str, LoSATok], audio: Tensor, mel: MultiScaleMelLoss) -> dict[str, _Sums]:
    """The sums of each precision for one recording [N]."""
    exact, found = models[REFERENCE], {}
    latents = exact.encode(audio)
    z, waveform = latents.mu.double(), exact.decode(latents.mu)
    size, signal = float(z.square().sum()), float(waveform.double().square().sum())
    for name, model in models.items():
        ours = model.encode(audio).mu
        heard, decoded = model.decode(ours), model.decode(latents.mu)
        difference = float((ours.double() - z).square().sum())
        found[name] = _Sums(
            difference=difference,
            latents=size,
            worst=math.sqrt(difference / size) if size else 0.0,
            cosine=float(F.cosine_similarity(ours.double(), z, dim=-1).sum()),
            tokens=z.shape[1],
            noise=float((heard.double() - waveform).square().sum()),
            decoder_noise=float((decoded.double() - waveform).square().sum()),
            signal=signal,
            mel=float(mel(heard, waveform)) * z.shape[1],
        )
    return found


def _rows(models: Mapping[str, LoSATok], sums: dict[str, _Sums], budget: float) -> list[PrecisionRow]:
    """The row of each precision, with times and memory measured in turn."""
    exact = models[REFERENCE]
    device = exact.device.type
    generator = torch.Generator().manual_seed(0)
    audio = (torch.randn(int(SPEED_SECONDS * exact.sample_rate), generator=generator) / 10).to(exact.device)
    z = exact.encode(audio).mu
    encoding = interleave({name: _bound(model.encode, audio) for name, model in models.items()}, device, budget, 3)
    decoding = interleave({name: _bound(model.decode, z) for name, model in models.items()}, device, budget, 3)
    rows = []
    for name, model in models.items():
        total = sums[name]
        peak: int | None
        try:
            peak = max(peak_memory(_bound(model.encode, audio), device), peak_memory(_bound(model.decode, z), device))
        except PeakUnknownError:
            peak = None
        rows.append(
            PrecisionRow(
                dtype=name,
                token_error=math.sqrt(total.difference / total.latents) if total.latents else 0.0,
                worst_token_error=total.worst,
                cosine=total.cosine / total.tokens,
                snr=_ratio(total.signal, total.noise),
                decoder_snr=_ratio(total.signal, total.decoder_noise),
                mel_loss=total.mel / total.tokens,
                encode_seconds=encoding[name].best,
                decode_seconds=decoding[name].best,
                encode_speed=encoding[REFERENCE].best / encoding[name].best,
                decode_speed=decoding[REFERENCE].best / decoding[name].best,
                bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
                peak_bytes=peak,
            )
        )
    return rows


def _bound(function: Callable[[Tensor], object], x: Tensor) -> Callable[[], object]:
    return lambda: function(x)


def _ratio(signal: float, noise: float) -> float:
    """``signal`` over ``noise``, energies, in decibels."""
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def _machine(device: torch.device) -> str:
    """The GPU's name, or the processor's with its cores, and the version of torch."""
    facts = info()
    processor = facts["processor"]
    where = f"{processor['cores']} cores of {processor['name']}, {processor['threads']} threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return f"{where}, torch {torch.__version__}"
