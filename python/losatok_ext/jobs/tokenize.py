"""Encoding and decoding many files. A file that cannot be used does not stop the others."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch.nn.functional as F
from torch import Tensor

from losatok_ext.audio.files import AudioInfo, read_audio_with_info, write_audio
from losatok_ext.errors import LatentFileError, UserError, is_out_of_memory
from losatok_ext.files import digest
from losatok_ext.formats.latent_files import (
    LatentFile,
    LatentHeader,
    is_latent_file,
    load_latents,
    save_latents,
)
from losatok_ext.formats.latent_storage import StoreOptions
from losatok_ext.jobs.outputs import Record, StaleError, differences, settings_text
from losatok_ext.models.storage.precision import dtype_name
from losatok_ext.models.tokenizer.nested import require_nested
from losatok_ext.ops.dispatch import BackendUnavailableError
from losatok_ext.recordings.find import Failure, Source
from losatok_ext.text import name_as_text

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok

Result = TypeVar("Result")
Item = TypeVar("Item")
OnSource = Callable[[Source], None]
"""Called after each source, whether it was written, kept or failed."""


@dataclass
class JobSummary:
    """The result of a job over many files.

    Attributes:
        written: outputs written.
        kept: outputs that existed and were left alone.
        again: of those written, the ones that existed, and why they were made again.
        damaged: of those written, the ones whose recording holds less than its file promises.
        failures: inputs that failed, each with one sentence.
        audio_seconds: duration of the written outputs, in seconds.
        wall_seconds: time that the job took, reading and writing included.
    """

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    again: dict[Path, str] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0


class JobInterrupted(KeyboardInterrupt):
    """A job was stopped from the keyboard; ``summary`` says what was done until then."""

    def __init__(self, summary: JobSummary) -> None:
        super().__init__()
        self.summary = summary


def encode_clip(model: LoSATok, audio: Tensor, info: AudioInfo, store: StoreOptions | None = None) -> LatentFile:
    """Encode a recording to the content of its latent file.

    The recording is padded with zeros to the end of its last token, so that all of it can be decoded.

    Args:
        model: the tokenizer, in eval mode.
        audio: [N] float32 at ``model.sample_rate``.
        info: of the file that it was read from.
        store: how it is to be stored; None: the defaults of :class:`StoreOptions`.

    Raises:
        UserError: the model cannot store latents in that way (:func:`check_store`).
    """
    store = check_store(model, store or StoreOptions())
    samples = audio.shape[-1]
    padded = F.pad(audio, (0, model.config.covering_samples(samples) - samples))
    cut = {"dims": store.dims, "target_error": store.target_error}
    latents = model.encode(padded[None], sample_rate=model.sample_rate, **cut)  # type: ignore[arg-type]
    kept = None if latents.dims is None else int(latents.dims[0])
    mu = latents.mu[0].float().cpu()
    codes = None if latents.codes is None else latents.codes[0].cpu().reshape(mu.shape[0], -1)
    header = LatentHeader(
        fingerprint=model.fingerprint(),
        frame_rate=float(model.frame_rate),
        samples_per_token=model.samples_per_token,
        sample_rate=model.sample_rate,
        tokens=mu.shape[0],
        latent_dim=mu.shape[1],
        samples=samples,
        source_name=name_as_text(info.path.name),
        source_rate=info.sample_rate,
        source_samples=info.frames,
        quantizer=model.quantizer_fingerprint(),
        quantizer_name=model.quantizer_name,
        code_sizes=model.code_sizes,
        dims=None if kept == mu.shape[1] else kept,
    )
    logvar = latents.logvar[0].float().cpu() if store.logvar else None
    assert store.storage is not None
    return LatentFile(header, mu, logvar, codes, store.storage)


def check_store(model: LoSATok, store: StoreOptions) -> StoreOptions:
    """``store`` with the storage that it stands for with ``model``.

    Raises:
        UserError: codes of a model without a quantizer, dimensions that the model's latents cannot be cut to, or a
            model without nested latents.
    """
    storage = store.storage or ("float32" if model.quantizer is None else "codes")
    if storage == "codes" and model.quantizer is None:
        raise UserError(
            "--store codes: this model has no quantizer; `losatok fit-quantizer` makes a copy of it that has one"
        )
    if store.dims is not None or store.target_error is not None:
        sizes = require_nested(model.config, "--dims" if store.target_error is None else "--target-error")
        if store.dims is not None and store.dims not in sizes:
            raise UserError(
                f"--dims is {store.dims}; this model has latents of {', '.join(map(str, sizes))} dimensions"
            )
    return dataclasses.replace(store, storage=storage)


def decoder_input(model: LoSATok, latents: LatentFile) -> Tensor:
    """The input of the model's decoder for a latent file: z [1, T, d] on the model's device.

    A model with a quantizer decodes the codes of the file; where the file has none, it quantizes ``mu`` first.

    Raises:
        LatentFileError: the latents are of another width or token rate than the model's, or codes that its quantizer
            does not have.
    """
    header = latents.header
    theirs = (header.latent_dim, header.samples_per_token, header.sample_rate)
    ours = (model.config.latent_dim, model.samples_per_token, model.sample_rate)
    if theirs != ours:
        raise LatentFileError(
            f"the latents of {header.source_name} do not fit this model: they have {theirs[0]} dimensions, "
            f"{theirs[1]} samples per token and {theirs[2]} Hz, the model has {ours[0]}, {ours[1]} and {ours[2]}; "
            "decode them with the model that encoded them"
        )
    if latents.codes is None or model.quantizer is None:
        if latents.mu is None:
            raise LatentFileError(
                f"the latents of {header.source_name} are codes of the quantizer {header.quantizer_name}, and this "
                "model has no quantizer; decode them with the model that encoded them"
            )
        return model.quantize(latents.mu[None])[0]
    if header.code_sizes != model.code_sizes:
        raise LatentFileError(
            f"the latents of {header.source_name} are codes of the quantizer {header.quantizer_name}, and this model "
            f"has {model.quantizer_name}; decode them with the model that encoded them"
        )
    return model.dequantize(latents.codes[None])


def decode_clip(model: LoSATok, latents: LatentFile) -> Tensor:
    """The audio [N] (float32, CPU, at the model's rate) of a latent file, as long as the recording was.

    Raises:
        LatentFileError: the latents do not fit the model (:func:`decoder_input`).
    """
    header = latents.header
    audio = model.decode(decoder_input(model, latents))[0].float().cpu()
    return F.pad(audio, (0, max(0, header.samples - audio.shape[0])))[: header.samples]


def encode_files(
    model: LoSATok,
    sources: Sequence[Source],
    outputs: Sequence[Path],
    store: StoreOptions | None = None,
    *,
    overwrite: bool = False,
    on_source: OnSource | None = None,
    debug: bool = False,
) -> JobSummary:
    """Encode each source to its output, a latent file. The next file is read while one is encoded.

    An output that exists is kept, unless ``overwrite``, if it is what would be written: this model's latents of this
    recording, computed and stored as asked, undamaged. Where the recording has changed since, or the output is damaged,
    it is made again. Otherwise, and where it is no latent file, the source counts as failed.

    Args:
        model: in eval mode.
        sources: what to read.
        outputs: where to write each, from :func:`~losatok_ext.recordings.place_outputs`.
        store: how to store the latents; None: the defaults of :class:`StoreOptions`.
        overwrite: encode again what exists.
        on_source: called after each source.
        debug: let the first error through instead of collecting it.

    Raises:
        BackendUnavailableError: an op cannot run here, so no file could be encoded.
        UserError: the model cannot store latents in that way.
        JobInterrupted: stopped from the keyboard.
    """
    store = check_store(model, store or StoreOptions())
    fingerprint = model.fingerprint()
    settings = settings_text(
        dtype=dtype_name(model), logvar=store.logvar, dims=store.dims, target_error=store.target_error
    )

    def check_kept(source: Source, output: Path) -> None:
        try:
            stored = load_latents(output)
        except LatentFileError as error:
            if is_latent_file(output):
                raise StaleError("the latent file was damaged") from None
            raise LatentFileError(
                f"{output} exists and is not a latent file that can be read; pass --overwrite or another folder"
            ) from error
        header = stored.header
        if header.fingerprint != fingerprint:
            problem = f"exists, written by another model ({header.fingerprint})"
        elif header.source_name != name_as_text(source.path.name):
            problem = f"exists and holds {header.source_name}"
        elif stored.storage != store.storage:
            problem = f"exists and stores {stored.storage}"
        elif store.target_error is None and header.stored_dims != (store.dims or header.latent_dim):
            problem = f"exists and stores {header.stored_dims} dimensions"
        elif header.settings not in (None, settings):
            problem = f"exists, made with {differences(header.settings or '', settings)}"
        elif (stored.logvar is not None) != store.logvar:
            problem = f"exists and stores {'no' if store.logvar else 'a'} log variance"
        elif header.source_digest not in (None, _digest(source.path)):
            raise StaleError("the recording has changed")
        else:
            return
        raise LatentFileError(f"{output} {problem}; pass --overwrite or another folder")

    def work(output: Path, loaded: tuple[Tensor, AudioInfo, str]) -> float:
        audio, info, source_digest = loaded
        latents = encode_clip(model, audio, info, store)
        header = dataclasses.replace(latents.header, source_digest=source_digest, settings=settings)
        save_latents(output, dataclasses.replace(latents, header=header))
        if info.damage is not None:
            summary.damaged.append(output)
        return info.seconds

    def read(source: Source) -> tuple[Tensor, AudioInfo, str]:
        content = _digest(source.path)
        return *read_audio_with_info(source.path, model.sample_rate), content

    summary = JobSummary()
    return _run(sources, outputs, read, work, check_kept, overwrite, on_source, debug, summary)


def decode_files(
    model: LoSATok,
    sources: Sequence[Source],
    outputs: Sequence[Path],
    *,
    overwrite: bool = False,
    force: bool = False,
    on_source: OnSource | None = None,
    debug: bool = False,
) -> JobSummary:
    """Decode each source, a latent file, to its output, an audio file at the model's rate.

    An output that exists is kept, unless ``overwrite``, if it was decoded from this latent file by this model, and not
    changed since (:class:`~losatok_ext.jobs.outputs.Record`). Where the latent file has changed since, it is made
    again. Otherwise the source counts as failed.

    Args:
        model, sources, outputs, overwrite, on_source, debug: as for :func:`encode_files`.
        force: decode latents of another model too.

    Raises:
        BackendUnavailableError: an op cannot run here, so no file could be decoded.
        JobInterrupted: stopped from the keyboard.
    """
    fingerprint = model.fingerprint()
    settings = settings_text(model=fingerprint, dtype=dtype_name(model))
    record = cache(Record)

    def check_kept(source: Source, output: Path) -> None:
        found = record(output.parent).find(output)
        if found is None:
            problem = "exists, and is not as `losatok decode` wrote it"
        elif found["settings"] != settings:
            problem = f"exists, made with {differences(found['settings'], settings)}"
        elif found["source"] != _digest(source.path):
            raise StaleError("the latent file has changed")
        else:
            return
        raise LatentFileError(f"{output} {problem}; pass --overwrite or another folder")

    def work(output: Path, loaded: tuple[LatentFile, str]) -> float:
        latents, content = loaded

        def keep_record(written: Path) -> None:
            record(output.parent).add(output, written, content, settings)

        write_audio(output, decode_clip(model, latents), model.sample_rate, keep_record)
        return latents.header.seconds

    def read(source: Source) -> tuple[LatentFile, str]:
        content = _digest(source.path)
        return load_latents(source.path, fingerprint, force), content

    return _run(sources, outputs, read, work, check_kept, overwrite, on_source, debug, JobSummary())


def _digest(path: Path) -> str:
    """The digest of an input; ``""`` where it cannot be read, which the one who reads it says better."""
    try:
        return digest(path)
    except OSError:
        return ""


def _run(
    sources: Sequence[Source],
    outputs: Sequence[Path],
    read: Callable[[Source], Result],
    work: Callable[[Path, Result], float],
    check_kept: Callable[[Source, Path], None],
    overwrite: bool,
    on_source: OnSource | None,
    debug: bool,
    summary: JobSummary,
) -> JobSummary:
    """``read`` and ``work`` for each source whose output does not exist or is stale, ``check_kept`` for the others.
    What was done is added to ``summary``."""
    start = time.perf_counter()
    todo: list[tuple[Source, Path]] = []
    stale: dict[Path, str] = {}

    def attempt(source: Source, function: Callable[[], None]) -> None:
        try:
            function()
        except (BackendUnavailableError, StaleError):
            raise  # the first would be the same for every file
        except Exception as error:
            if debug:
                raise
            summary.failures.append(Failure(source.path, sentence(source.path, error)))
        if on_source is not None:
            on_source(source)

    def keep(source: Source, output: Path) -> None:
        check_kept(source, output)
        summary.kept.append(output)

    def write(output: Path, loaded: Future[Result]) -> None:
        summary.audio_seconds += work(output, loaded.result())
        summary.written.append(output)
        if output in stale:
            summary.again[output] = stale[output]

    try:
        for source, output in zip(sources, outputs, strict=True):
            if overwrite or not os.path.lexists(output):
                todo.append((source, output))
            else:
                try:
                    attempt(source, partial(keep, source, output))
                except StaleError as error:
                    stale[output] = str(error)
                    todo.append((source, output))
        for (source, output), loaded in read_ahead(todo, lambda item: read(item[0])):
            attempt(source, partial(write, output, loaded))
    except KeyboardInterrupt:
        raise JobInterrupted(summary) from None
    finally:
        summary.wall_seconds = time.perf_counter() - start
    return summary


def read_ahead(items: Sequence[Item], read: Callable[[Item], Result]) -> Iterator[tuple[Item, Future[Result]]]:
    """Each item with the future of ``read(item)``, which runs in a thread, one item ahead of the caller."""
    with ThreadPoolExecutor(1, thread_name_prefix="losatok-read") as pool:
        following = pool.submit(read, items[0]) if items else None
        for index, item in enumerate(items):
            current = following
            assert current is not None
            following = pool.submit(read, items[index + 1]) if index + 1 < len(items) else None
            yield item, current


def sentence(path: Path, error: Exception) -> str:
    """One sentence about ``error`` that names ``path``, for commands over many files."""
    if is_out_of_memory(error):
        return f"{path} does not fit in memory; cut it into shorter files, or pass --device cpu"
    text = " ".join(str(error).split())
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text.partition('. ')[0][:300]}"  # --debug shows all of it
    return text if str(path) in text else f"{path}: {text}"
