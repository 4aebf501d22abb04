"""What each precision of a model costs and saves: error of tokens and waveforms, speed, size and memory."""

from __future__ import annotations

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
from losatok_ext.evaluation.tasks.measured import Measured, Sums, mel_distance
from losatok_ext.evaluation.tasks.side_by_side import PeakUnknownError, interleave, peak_memory
from losatok_ext.models import LoSATok
from losatok_ext.models.storage.precision import DTYPES
from losatok_ext.nn.losses import MultiScaleMelLoss
from losatok_ext.recordings.find import Source

REFERENCE = next(iter(DTYPES))
SPEED_SECONDS = 10.0
"""Of the noise that is timed: time does not depend on what is heard."""


@dataclass(frozen=True)
class PrecisionRow:
    """One precision, beside float32.

    Attributes:
        dtype: its name.
        token_error: root mean square of the difference of latents to float32's, over that of these.
        worst_token_error: the same of the recording where it is the greatest.
        cosine: mean over tokens of the cosine between both latents.
        snr: decibels of float32's waveform over the difference to it, each encoded and decoded in its own precision;
            infinite where there is none.
        decoder_snr: the same where both decode float32's latents.
        mel_distance: between both waveforms of ``snr``, mean over recordings by their length.
        encode_seconds: for ten seconds of audio, the best of all rounds.
        decode_seconds: likewise.
        encode_speed: float32's seconds over these, from the same run.
        decode_speed: likewise.
        bytes: of the tensors in ``model.safetensors``.
        peak_bytes: what encoding and decoding hold at their most, beyond the model; None: the system does not tell.
    """

    dtype: str
    token_error: float
    worst_token_error: float
    cosine: float
    snr: float
    decoder_snr: float
    mel_distance: float
    encode_seconds: float
    decode_seconds: float
    encode_speed: float
    decode_speed: float
    bytes: int
    peak_bytes: int | None


@dataclass
class PrecisionReport(Measured):
    """What :func:`evaluate_precision` measured.

    Attributes:
        model: what was measured, in words.
        machine: where: processor or GPU, threads, torch.
        date: of the measurement, as ISO 8601 has it.
        rows: one per precision, float32 first.
    """

    name = "precision"

    model: str
    machine: str
    date: str
    rows: list[PrecisionRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: None for an infinite ratio."""
        values = super().to_dict()
        for row in values["rows"]:
            row.update({key: None for key in ("snr", "decoder_snr") if math.isinf(row[key])})
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrecisionReport:
        """What :meth:`to_dict` gave, without its failures."""
        rows = []
        for row in values["rows"]:
            ratios = {key: math.inf for key in ("snr", "decoder_snr") if row[key] is None}
            rows.append(PrecisionRow(**{**row, **ratios}))
        names = ("model", "machine", "date", "recordings", "seconds")
        return cls(**{name: values[name] for name in names}, rows=rows)

    def markdown(self) -> str:
        """A table for people, with lines that say what was measured."""
        columns = ["dtype", "token error", "worst clip", "cosine", "waveform SNR", "of the decoder", "mel distance"]
        columns += ["encode 10 s", "decode 10 s", "weights", "peak memory"]
        lines = [f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
        for row in self.rows:
            lines.append(
                f"| {row.dtype} | {_percent(row.token_error)} | {_percent(row.worst_token_error)} | {row.cosine:.5f} | "
                f"{_decibels(row.snr)} | {_decibels(row.decoder_snr)} | {row.mel_distance:.3f} | "
                f"{_speed(row.encode_seconds, row.encode_speed)} | {_speed(row.decode_seconds, row.decode_speed)} | "
                f"{row.bytes / 2**20:,.1f} MiB | {_memory(row.peak_bytes)} |"
            )
        said = f"{self.model}; {self.recordings} recordings, {self.seconds:.1f} s. {self.machine}, {self.date}."
        return "\n".join([*lines, "", said, ""])


EXPLANATION = (
    "Errors are against float32 of the same model: of tokens as root mean square, relative; of waveforms as signal to "
    "noise, each encoded and decoded in its own precision, and for the decoder alone from float32's tokens. Times are "
    "the best of rounds in turn, with float32's time over them; peak memory is beyond the weights"
)


def _percent(value: float) -> str:
    return "0" if value == 0 else f"{100 * value:.2f} %"


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:.1f} dB"


def _memory(size: int | None) -> str:
    return "not known" if size is None else f"{size / 2**20:,.0f} MiB"


def _speed(seconds: float, ratio: float) -> str:
    time = f"{1e3 * seconds:.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.1f} ms"
    return f"{time} ({ratio:.2f}x)"


@dataclass
class _Sums(Sums):
    """What is added up over recordings for one precision."""

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
        """Add a recording; of the worst error the larger one stays."""
        worst = max(self.worst, other.worst)
        super().add(other)
        self.worst = worst


def in_each_precision(model: LoSATok) -> dict[str, LoSATok]:
    """``model`` itself, a float32 one in eval mode, and copies of it in all lower precisions; what stays in float32 is
    shared."""
    models = {REFERENCE: model}
    for name, dtype in DTYPES.items():
        if name == REFERENCE:
            continue
        with torch.device("meta"):  # no random weights only to overwrite them
            twin = LoSATok(model.config)
        twin.load_state_dict(model.state_dict(), assign=True)
        models[name] = twin.to(model.device).eval().cast(dtype)
    return models


@torch.no_grad()
def evaluate_precision(
    models: Mapping[str, LoSATok],
    sources: Sequence[Source],
    described: str,
    date: str,
    budget: float = 4.0,
    progress: Callable[[Source], None] | None = None,
    debug: bool = False,
) -> PrecisionReport:
    """Encode and decode recordings in each precision and compare with float32; then time all of them in turn.

    Args:
        models: one model in each precision, by its name; ``"float32"`` is what the others are compared with.
        sources: recordings.
        described: the model, in words, for the report.
        date: for the report.
        budget: seconds for timing encoding, and as many for decoding; at least three rounds are run.
        progress: called after each recording.
        debug: let the first error through instead of collecting it.

    Raises:
        UserError: no recording can be measured.
        BackendUnavailableError: an op cannot run here.
    """
    exact = models[REFERENCE]
    mel = mel_distance(exact.sample_rate, exact.device)
    report = PrecisionReport(described, _machine(exact.device), date)
    sums = {name: _Sums() for name in models}

    def work(source: Source) -> float:
        audio, found = read_audio_with_info(source.path, exact.sample_rate)
        if exact.config.token_count(len(audio)) == 0:
            raise UserError("it is shorter than a token")
        for name, own in _measured(models, audio, mel).items():
            sums[name].add(own)
        return found.seconds

    report.measure(sources, work, progress, debug)
    report.rows = _rows(models, sums, budget)
    return report


def _measured(models: Mapping[str, LoSATok], audio: Tensor, mel: MultiScaleMelLoss) -> dict[str, _Sums]:
    """What a recording [N] says of each precision."""
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
                mel_distance=total.mel / total.tokens,
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
