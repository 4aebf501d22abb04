"""Writing shards of recordings, of a teacher's features of them, or of their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from losatok_ext import ops
from losatok_ext.audio.files import flac_bytes
from losatok_ext.audio.pcm import sixteen_bits
from losatok_ext.errors import ConfigError
from losatok_ext.jobs.tokenize import read_ahead
from losatok_ext.models import LoSATok
from losatok_ext.models.teachers.registry import Teacher
from losatok_ext.recordings.shard_index import AUDIO_RATE, FEATURES, LATENTS, RECORDINGS
from losatok_ext.recordings.token_files import DTYPES, pack_tokens
from losatok_ext.training.data.corpus import BAD_FILES, Clip, Corpus, open_corpus, read_clip
from losatok_ext.training.precompute.writing import OnProgress, Packed, ShardSummary, write_shards

T = TypeVar("T")
Storage = Literal["float32", "float16", "bfloat16"]
Precision = Literal["float32", "bfloat16"]

SHARD_MEGABYTES = 256.0
BATCH_SECONDS = 80.0
"""Audio, padding counted, that goes through a network at once; a longer clip goes alone."""

_FLAC_BYTES = 1.2  # per sample: FLAC takes a bit more than half of 16 bits


def shard_recordings(
    data: str | Path,
    output: str | Path,
    sample_rate: int = 16_000,
    shard_megabytes: float = SHARD_MEGABYTES,
    on_progress: OnProgress | None = None,
) -> ShardSummary:
    """Write the recordings of ``data`` as shards of 16-bit mono FLAC and JSON. For 16-bit recordings of that rate
    training reads the same samples from the shards as from the files, in the same order.

    The same call again goes on where it stopped. A recording that cannot be used is left out and named.

    Args:
        data: folder, manifest or shards.
        output: folder of the shards.
        sample_rate: Hz of what is written.
        shard_megabytes: about the size of a shard.
        on_progress: called now and then with the clips done and all clips.

    Raises:
        TrainingError: no recording can be used, or ``output`` holds something else or cannot be written.
    """
    _check_size(shard_megabytes)
    corpus = open_corpus(data, sample_rate, 1, 0)

    def encode(clip: Clip) -> Packed | str:
        def work() -> Packed:
            audio = read_clip(clip, sample_rate)
            values = {"seconds": len(audio) / sample_rate, "sample_rate": sample_rate}
            return Packed("flac", flac_bytes(audio, sample_rate), values)

        return _attempt(work)

    def produce(clips: Sequence[Clip], advance: Callable[[int], None]) -> Iterator[Packed | str]:
        with ThreadPoolExecutor(max_workers=max(torch.get_num_threads(), 2)) as pool:
            for packed in pool.map(encode, clips):
                yield packed
                advance(1)

    return write_shards(
        output,
        RECORDINGS,
        {},
        corpus,
        produce,
        lambda clip: clip.samples * _FLAC_BYTES,
        shard_megabytes,
        on_progress,
    )


def precompute_features(
    data: str | Path,
    output: str | Path,
    teacher: Teacher,
    storage: Storage = "float16",
    shard_megabytes: float = SHARD_MEGABYTES,
    batch_seconds: float = BATCH_SECONDS,
    on_progress: OnProgress | None = None,
    precision: Precision = "float32",
    audio: bool = False,
) -> ShardSummary:
    """Write the teacher's features of the recordings of ``data`` as shards, with what ``ops.gram_energy`` gives for
    each, and the teacher's fingerprint.

    ``train_sembo`` takes the folder in place of the recordings, and with ``audio`` so does ``train_tokenizer``; the
    teacher does not run then. The features of a crop are cut from those of the complete recording, so that the teacher
    had more context. On a CPU the same call gives the same bytes, however often it was interrupted.

    Args:
        data: folder, manifest or shards of recordings.
        output: folder of the shards.
        teacher: what :func:`losatok_ext.models.teachers.registry.open_teacher` gave, on the device to compute on.
        storage: how they are kept; 4 or 2 bytes a value.
        shard_megabytes: about the size of a shard.
        batch_seconds: audio that is computed at once.
        on_progress: called now and then with the clips done and all clips.
        precision: ``"bfloat16"`` computes under autocast, as training with ``precision: bfloat16`` would.
        audio: store each recording beside its features, as 16-bit mono FLAC at the teacher's rate. The features are
            those of the stored audio: other recordings are resampled and rounded to 16 bits first.

    Raises:
        TrainingError: as :func:`shard_recordings`.
    """
    dtype = _check_options(storage, shard_megabytes, batch_seconds)
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision should be float32 or bfloat16, got {precision!r}")
    corpus = open_corpus(data, teacher.sample_rate, teacher.samples_per_token, 0)
    device = next(teacher.encoder.parameters()).device

    def compute(clips: Sequence[Clip], heard: Tensor, lengths: Tensor) -> Iterator[Packed | str]:
        if audio:
            heard = sixteen_bits(heard).float() / 32768
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            features, counts = teacher(heard.to(device), lengths)
        for i, (clip, count, samples) in enumerate(zip(clips, counts.tolist(), lengths.tolist(), strict=True)):
            stored = features[i : i + 1, :count].to(dtype).float()  # what training will read
            values = {"seconds": samples / teacher.sample_rate, "gram_energy": float(ops.gram_energy(stored))}
            kept = heard[i, :samples] if audio else None
            yield _packed(clip, features[i, :count], dtype, values, kept, teacher.sample_rate)

    frame_rate = teacher.sample_rate // teacher.samples_per_token
    facts = _facts(teacher.fingerprint(), teacher.dim, frame_rate, precision)
    if audio:
        facts[AUDIO_RATE] = teacher.sample_rate
    return _write_tokens(output, FEATURES, facts, corpus, compute, dtype, shard_megabytes, batch_seconds, on_progress)


def precompute_latents(
    data: str | Path,
    output: str | Path,
    model: LoSATok,
    storage: Storage = "float32",
    shard_megabytes: float = SHARD_MEGABYTES,
    batch_seconds: float = BATCH_SECONDS,
    on_progress: OnProgress | None = None,
) -> ShardSummary:
    """Write the latents (means of the posterior) of the recordings of ``data`` as shards, with the model's fingerprint.

    ``train_generator`` takes the folder in place of recordings or latent files. A recording is continued with zeros to
    the end of its last token. All else is as for :func:`precompute_features`.
    """
    dtype = _check_options(storage, shard_megabytes, batch_seconds)
    multiple = model.samples_per_token * model.config.semantic_upsampling
    corpus = open_corpus(data, model.sample_rate, multiple, 0)

    def compute(clips: Sequence[Clip], audio: Tensor, lengths: Tensor) -> Iterator[Packed | str]:
        covered = torch.tensor([model.config.covering_samples(n) for n in lengths.tolist()])
        longer = int(covered.max()) - audio.shape[1]
        padded = torch.nn.functional.pad(audio, (0, max(longer, 0)))
        latents = model.encode(padded, lengths=covered)
        for clip, row, count, samples in zip(
            clips, latents.mu, latents.lengths.tolist(), lengths.tolist(), strict=True
        ):
            yield _packed(clip, row[:count], dtype, {"seconds": samples / model.sample_rate})

    precision = str(model.decoder.upsample_weight.dtype).removeprefix("torch.")
    facts = _facts(model.fingerprint(), model.config.latent_dim, model.frame_rate, precision)
    return _write_tokens(output, LATENTS, facts, corpus, compute, dtype, shard_megabytes, batch_seconds, on_progress)


Compute = Callable[[Sequence[Clip], Tensor, Tensor], Iterable[Packed | str]]
"""Clips, their audio [B, N] (zeros past each) and its lengths [B] in samples -> what shards hold of them."""


def _write_tokens(
    output: str | Path,
    kind: str,
    facts: dict[str, Any],
    corpus: Corpus,
    compute: Compute,
    dtype: torch.dtype,
    shard_megabytes: float,
    batch_seconds: float,
    on_progress: OnProgress | None,
) -> ShardSummary:
    per_sample = facts["frame_rate"] * facts["width"] * dtype.itemsize / corpus.sample_rate
    per_sample += _FLAC_BYTES if AUDIO_RATE in facts else 0.0

    def read(batch: Sequence[int], clips: Sequence[Clip]) -> list[Tensor | str]:
        return [_attempt(partial(read_clip, clips[i], corpus.sample_rate)) for i in batch]

    def produce(clips: Sequence[Clip], advance: Callable[[int], None]) -> Iterator[Packed | str]:
        results: dict[int, Packed | str] = {}
        batches = _batches(clips, int(batch_seconds * corpus.sample_rate))
        for batch, future in read_ahead(batches, lambda batch: read(batch, clips)):
            loaded = dict(zip(batch, future.result(), strict=True))
            results.update({i: sentence for i, sentence in loaded.items() if isinstance(sentence, str)})
            audio = {i: samples for i, samples in loaded.items() if isinstance(samples, Tensor)}
            if audio:
                lengths = torch.tensor([len(samples) for samples in audio.values()])
                padded = torch.zeros(len(audio), int(lengths.max()))
                for row, samples in zip(padded, audio.values(), strict=True):
                    row[: len(samples)] = samples
                made = compute([clips[i] for i in audio], padded, lengths)
                results.update(zip(audio, made, strict=True))
            advance(len(batch))
        yield from (results[i] for i in range(len(clips)))

    stored = {**facts, "storage": str(dtype).removeprefix("torch.")}
    return write_shards(
        output,
        kind,
        stored,
        corpus,
        produce,
        lambda clip: clip.samples * per_sample,
        shard_megabytes,
        on_progress,
    )


def _batches(clips: Sequence[Clip], samples: int) -> list[list[int]]:
    """Clips of about one length together, at most ``samples`` with padding; the longest first."""
    order = sorted(range(len(clips)), key=lambda i: -clips[i].samples)
    batches: list[list[int]] = []
    for i in order:
        longest = clips[batches[-1][0]].samples if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= samples:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _facts(fingerprint: str, width: int, frame_rate: int, precision: str) -> dict[str, Any]:
    return {"fingerprint": fingerprint, "width": width, "frame_rate": frame_rate, "precision": precision}


def _packed(
    clip: Clip,
    tokens: Tensor,
    dtype: torch.dtype,
    values: dict[str, float],
    audio: Tensor | None = None,
    sample_rate: int = 0,
) -> Packed | str:
    if len(tokens) == 0:
        return f"{clip.path}: too short for one token"

    def work() -> Packed:
        content = pack_tokens(tokens, dtype, str(clip.path))
        flac = None if audio is None else flac_bytes(audio, sample_rate)
        return Packed("safetensors", content, {"tokens": len(tokens), **values}, flac)

    return _attempt(work)


def _attempt(work: Callable[[], T]) -> T | str:
    """What ``work`` gives, or a sentence where a file is to blame."""
    try:
        return work()
    except BAD_FILES as error:
        return str(error)


def _check_size(shard_megabytes: float) -> None:
    if not 0 < shard_megabytes < float("inf"):
        raise ConfigError(f"the size of a shard should be a positive number of megabytes, got {shard_megabytes}")


def _check_options(storage: str, shard_megabytes: float, batch_seconds: float) -> torch.dtype:
    _check_size(shard_megabytes)
    if not 0 < batch_seconds < float("inf"):
        raise ConfigError(f"a batch should have a positive number of seconds, got {batch_seconds}")
    if storage not in DTYPES:
        raise ConfigError(f"storage should be one of {', '.join(DTYPES)}, got {storage!r}")
    return DTYPES[storage]
