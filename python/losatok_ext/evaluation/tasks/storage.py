"""What each way of storing latents costs in bits, in error of the latents, and in the decoded audio."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from losatok_ext.audio.files import read_audio_with_info
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.spectra import mel_loss
from losatok_ext.evaluation.tasks.measured import Measured, Progress, Sums
from losatok_ext.formats.latent_files import LatentFile, describe, load_latents, save_latents
from losatok_ext.jobs.tokenize import decode_clip, encode_clip
from losatok_ext.models import LoSATok
from losatok_ext.nn.losses import MultiScaleMelLoss
from losatok_ext.recordings.labelled import Item

FLOATS = ("float32", "float16", "int8", "int4")


@dataclass(frozen=True)
class StorageRow:
    """One storage over all recordings.

    Attributes:
        storage: ``"float32"``, ``"float16"``, ``"int8"``, ``"int4"``, or the name of a quantizer for its codes.
        bits_per_second: of the latents alone.
        file_bits_per_second: of complete files, headers included.
        latent_error: root mean square difference to the float32 latents, divided by the standard deviation of these.
        mel_loss_to_float32: mel loss (``spectra.mel_loss``) between the audio decoded from it and from float32.
        mel_loss_to_recording: mel loss between the audio decoded from it and the recording.
    """

    storage: str
    bits_per_second: float
    file_bits_per_second: float
    latent_error: float
    mel_loss_to_float32: float
    mel_loss_to_recording: float


@dataclass
class StorageResult(Measured):
    """What :func:`evaluate_storage` measured.

    Attributes:
        fingerprint: of the model.
        frame_rate: tokens per second.
        latent_dim: d.
        rows: one per storage, from the most bits to the fewest.
    """

    fingerprint: str
    frame_rate: float
    latent_dim: int
    rows: list[StorageRow] = field(default_factory=list)


@dataclass
class _Sums(Sums):
    """Sums over recordings for one storage: bits, squared latent errors, and mel losses times seconds."""

    bits: float = 0.0
    file_bits: float = 0.0
    squared: float = 0.0
    mel_to_float32: float = 0.0
    mel_to_recording: float = 0.0


def evaluate_storage(
    model: LoSATok,
    items: Sequence[Item],
    quantized: Sequence[LoSATok] = (),
    progress: Progress | None = None,
    debug: bool = False,
) -> StorageResult:
    """Store the latents of recordings in every way, read them back, decode them, and compare.

    Each is written to a temporary latent file and read from it. In means over recordings, each is weighted by its
    length in seconds.

    Args:
        model: the tokenizer, in eval mode. If it has a quantizer, continuous latents are compared with its codes.
        items: recordings.
        quantized: copies of the model with quantizers, made by
            :func:`losatok_ext.training.fitting.quantizer_fit.fit_quantizer`; one row each.
        progress: called after each recording.
        debug: raise the first error instead of collecting it.

    Raises:
        UserError: one of ``quantized`` is not a copy of the model or has no quantizer, or no recording can be measured.
        BackendUnavailableError: an op cannot run here.
    """
    if model.quantizer is not None:
        model, quantized = model.with_quantizer(None), [model, *quantized]
    names = _names(model, quantized)
    owners = dict(zip(names, quantized, strict=True))
    mel = mel_loss(model.sample_rate)
    result = StorageResult(model.fingerprint(), float(model.frame_rate), model.config.latent_dim)
    sums = {name: _Sums() for name in [*FLOATS, *names]}
    moments = torch.zeros(2, model.config.latent_dim, dtype=torch.float64)  # sum and sum of squares of the latents
    frames = 0
    with tempfile.TemporaryDirectory(prefix="losatok-") as folder:

        def work(item: Item) -> float:
            nonlocal frames
            latents, seconds, own = _measure(model, owners, item, Path(folder) / "a.losatok", mel)
            frames += len(latents)
            moments.add_(torch.stack((latents.sum(0), latents.square().sum(0))))
            for name, values in own.items():
                sums[name].add(values)
            return seconds

        result.measure(items, work, progress, debug)
    spread = float((moments[1] - moments[0].square() / frames).sum())
    result.rows = [_row(name, values, result.seconds, spread) for name, values in sums.items()]
    result.rows.sort(key=lambda row: -row.bits_per_second)
    return result


def _names(model: LoSATok, quantized: Sequence[LoSATok]) -> list[str]:
    """The names of the quantized models' rows, all different."""
    names: list[str] = []
    for other in quantized:
        if other.quantizer_name is None:
            raise UserError("a model to compare has no quantizer; pass what `losatok fit-quantizer` wrote")
        if other.with_quantizer(None).fingerprint() != model.fingerprint():
            raise UserError(
                f"model {other.fingerprint()} with {other.quantizer_name} is no copy of model {model.fingerprint()}: "
                "their latents differ; evaluate it by itself, as --model"
            )
        name = other.quantizer_name
        names.append(name if name not in names else f"{name} ({other.quantizer_fingerprint()})")
    return names


def _measure(
    model: LoSATok, quantized: dict[str, LoSATok], item: Item, place: Path, mel: MultiScaleMelLoss
) -> tuple[Tensor, float, dict[str, _Sums]]:
    """Latents [T, d] float64 and seconds of a recording, and the sums of each storage, weighted by the seconds."""
    audio, info = read_audio_with_info(item.path, model.sample_rate)
    original = encode_clip(model, audio, info)
    assert original.mu is not None
    heard = decode_clip(model, original)
    seconds = original.header.seconds
    results = {}
    for name in [*FLOATS, *quantized]:
        owner = quantized.get(name, model)
        stored = dataclasses.replace(original, storage=name) if owner is model else _as_codes(owner, original)
        save_latents(place, stored)
        read = load_latents(place)
        latents = read.mu if read.codes is None else owner.dequantize(read.codes[None])[0].float().cpu()
        assert latents is not None
        decoded = heard if name == "float32" else decode_clip(owner, read)
        facts = describe(place)
        results[name] = _Sums(
            bits=facts["latent_bits_per_second"] * seconds,
            file_bits=facts["bytes"] * 8,
            squared=float((latents.double() - original.mu.double()).square().sum()),
            mel_to_float32=seconds * float(mel(decoded[None], heard[None])),
            mel_to_recording=seconds * float(mel(decoded[None], audio[None])),
        )
    return original.mu.double(), seconds, results


def _as_codes(owner: LoSATok, original: LatentFile) -> LatentFile:
    """Latents of a model without a quantizer, as the codes that the quantizer of ``owner`` gives them."""
    assert original.mu is not None
    _, codes = owner.quantize(original.mu[None])
    assert codes is not None
    header = dataclasses.replace(
        original.header,
        fingerprint=owner.fingerprint(),
        quantizer=owner.quantizer_fingerprint(),
        quantizer_name=owner.quantizer_name,
        code_sizes=owner.code_sizes,
    )
    return LatentFile(header, None, None, codes[0].cpu().reshape(header.tokens, -1), "codes")


def _row(name: str, sums: _Sums, seconds: float, spread: float) -> StorageRow:
    error = math.sqrt(sums.squared / spread) if spread > 0 else 0.0
    return StorageRow(
        storage=name,
        bits_per_second=sums.bits / seconds,
        file_bits_per_second=sums.file_bits / seconds,
        latent_error=error,
        mel_loss_to_float32=sums.mel_to_float32 / seconds,
        mel_loss_to_recording=sums.mel_to_recording / seconds,
    )
