"""Files in, files out: encoding, decoding and reconstructing recordings, one bad file never stopping the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.audio.files import AudioInfo, read_audio_with_info, write_audio
from losatok_ext.errors import LatentFileError, UserError
from losatok_ext.formats.latent_files import (
    LatentFile,
    LatentHeader,
    load_latents,
    read_header,
    read_storage,
    save_latents,
)
from losatok_ext.formats.latent_storage import STORAGES
from losatok_ext.models.tokenizer.nested import require_nested
from losatok_ext.ops.dispatch import BackendUnavailableError
from losatok_ext.recordings.find import Failure, Source

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok

Result = TypeVar("Result")
Progress = Callable[[Source], None]


@dataclass
class Summary:
    """What a job over many files did.

    Attributes:
        written: outputs written.
        kept: outputs that were there already and were left alone.
        failures: inputs that failed, each with one sentence.
        audio_seconds: duration of what was written, in seconds.
        wall_seconds: time it took, reading and writing included.
    """

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0


def encode_clip(
    model: LoSATok,
    audio: Tensor,
    info: AudioInfo,
    logvar: bool = False,
    storage: str = "float32",
    dims: int | None = None,
    target_error: float | None = None,
) -> LatentFile:
    """Encode a recording to what its latent file holds.

    It is continued with zeros to the end of its last token, so that all of it is decoded.

    Args:
        model: the tokenizer, in eval mode.
        audio: [N] float32 at ``model.sample_rate``.
        info: of the file it was read from.
        logvar: keep the posterior's log variance too.
        storage: how it is to be stored, one of ``latent_storage.STORAGES``.
        dims: dimensions to keep, of a model with nested latents; see :meth:`LoSATok.encode`.
        target_error: keep the fewest dimensions that restore the semantic features with at most this error; likewise.
    """
    samples = audio.shape[-1]
    padded = F.pad(audio, (0, model.config.covering_samples(samples) - samples))
    latents = model.encode(padded[None], sample_rate=model.sample_rate, dims=dims, target_error=target_error)
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
        source_name=os.fsencode(info.path.name).decode("utf-8", "replace"),
        source_rate=info.sample_rate,
        source_samples=info.frames,
        quantizer=model.quantizer_fingerprint(),
        quantizer_name=model.quantizer_name,
        code_sizes=model.code_sizes,
        dims=None if kept == mu.shape[1] else kept,
    )
    return LatentFile(header, mu, latents.logvar[0].float().cpu() if logvar else None, codes, storage)


def decoder_input(model: LoSATok, latents: LatentFile) -> Tensor:
    """What the model's decoder hears of a latent file: z [1, T, d] on the model's device.

    A model with a quantizer decodes the codes where there are any, else those that it finds for ``mu``.

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
        LatentFileError: as :func:`decoder_input`.
    """
    header = latents.header
    audio = model.decode(decoder_input(model, latents))[0].float().cpu()
    return F.pad(audio, (0, max(0, header.samples - audio.shape[0])))[: header.samples]


def choose_storage(model: LoSATok, storage: str | None) -> str:
    """``storage``, or where it is None codes for a model with a quantizer and float32 for one without.

    Raises:
        UserError: there is no such storage, or codes are wanted of a model without a quantizer.
    """
    if storage is None:
        return "float32" if model.quantizer is None else "codes"
    if storage not in STORAGES:
        raise UserError(f"--store is {storage!r}; it takes {', '.join(STORAGES)}")
    if storage == "codes" and model.quantizer is None:
        raise UserError(
            "--store codes: this model has no quantizer; `losatok fit-quantizer` makes a copy of it that has one"
        )
    return storage


def check_cut(model: LoSATok, dims: int | None, target_error: float | None) -> None:
    """Raise UserError unless latents of ``model`` can be cut as asked (None and None: not at all)."""
    if dims is not None and target_error is not None:
        raise UserError(
            "--dims and --target-error were both given, and the error decides the dimensions: leave one out"
        )
    if dims is None and target_error is None:
        return
    sizes = require_nested(model.config, "--dims" if target_error is None else "--target-error")
    if dims is not None and dims not in sizes:
        raise UserError(f"--dims is {dims}; this model has latents of {', '.join(map(str, sizes))} dimensions")
    if target_error is not None and not 0 <= target_error <= 2:
        raise UserError(f"--target-error is {target_error:g}; it is 1 - cosine, from 0 to 2")


def encode_files(
    model: LoSATok,
    sources: Sequence[Source],
    outputs: Sequence[Path],
    *,
    overwrite: bool = False,
    logvar: bool = False,
    storage: str | None = None,
    dims: int | None = None,
    target_error: float | None = None,
    progress: Progress | None = None,
    debug: bool = False,
) -> Summary:
    """Encode each source to its output, a latent file. The next file is read while one is encoded.

    An output that exists is kept (and must be this model's latents of a file of that name, stored as asked), unless
    ``overwrite``.

    Args:
        model: in eval mode.
        sources: what to read.
        outputs: where to write each, as :func:`~losatok_ext.recordings.find.place_outputs` gives them.
        overwrite: encode again what exists.
        logvar: store the log variance too.
        storage: how to store latents; None as :func:`choose_storage` does.
        dims: dimensions to keep of each, as for :func:`encode_clip`.
        target_error: what decides them for each file, likewise.
        progress: called after each source.
        debug: let the first error through instead of collecting it.

    Raises:
        BackendUnavailableError: an op cannot run here, so no file could be encoded.
        UserError: there is no such storage, or the model cannot store so, or has no latents of ``dims``.
    """
    store = choose_storage(model, storage)
    check_cut(model, dims, target_error)
    fingerprint = model.fingerprint()

    def kept(source: Source, output: Path) -> None:
        header = read_header(output)
        if header.fingerprint != fingerprint:
            raise LatentFileError(
                f"{output} exists, written by another model ({header.fingerprint}); pass --overwrite or another folder"
            )
        if header.source_name != os.fsencode(source.path.name).decode("utf-8", "replace"):
            raise LatentFileError(f"{output} exists and holds {header.source_name}; pass --overwrite or another folder")
        if read_storage(output) != store:
            raise LatentFileError(
                f"{output} exists and stores {read_storage(output)}; pass --overwrite or another folder"
            )
        if target_error is None and header.stored_dims != (dims or header.latent_dim):
            raise LatentFileError(
                f"{output} exists and stores {header.stored_dims} dimensions; pass --overwrite or another folder"
            )

    def work(output: Path, loaded: tuple[Tensor, AudioInfo]) -> float:
        save_latents(output, encode_clip(model, *loaded, logvar, store, dims, target_error))
        return loaded[1].seconds

    def read(source: Source) -> tuple[Tensor, AudioInfo]:
        return read_audio_with_info(source.path, model.sample_rate)

    return _run(sources, outputs, read, work, kept, overwrite, progress, debug)


def decode_files(
    model: LoSATok,
    sources: Sequence[Source],
    outputs: Sequence[Path],
    *,
    overwrite: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    debug: bool = False,
) -> Summary:
    """Decode each source, a latent file, to its output, an audio file at the model's rate.

    ``force`` decodes latents of another model too. The other arguments, and what raises, are those of
    :func:`encode_files`.
    """

    fingerprint = model.fingerprint()

    def work(output: Path, latents: LatentFile) -> float:
        write_audio(output, decode_clip(model, latents), model.sample_rate)
        return latents.header.seconds

    def read(source: Source) -> LatentFile:
        return load_latents(source.path, fingerprint, force)

    return _run(sources, outputs, read, work, None, overwrite, progress, debug)


def _run(
    sources: Sequence[Source],
    outputs: Sequence[Path],
    read: Callable[[Source], Result],
    work: Callable[[Path, Result], float],
    kept: Callable[[Source, Path], None] | None,
    overwrite: bool,
    progress: Progress | None,
    debug: bool,
) -> Summary:
    summary = Summary()
    start = time.perf_counter()
    todo: list[tuple[Source, Path]] = []
    for source, output in zip(sources, outputs, strict=True):
        if overwrite or not os.path.lexists(output):
            todo.append((source, output))
            continue
        try:
            if kept is not None:
                kept(source, output)
            summary.kept.append(output)
        except UserError as error:
            if debug:
                raise
            summary.failures.append(Failure(source.path, str(error)))
        if progress is not None:
            progress(source)
    for (source, output), loaded in read_ahead(todo, lambda item: read(item[0])):
        try:
            summary.audio_seconds += work(output, loaded.result())
            summary.written.append(output)
        except BackendUnavailableError:
            raise  # it would be the same for every file
        except Exception as error:
            if debug:
                raise
            summary.failures.append(Failure(source.path, sentence(source.path, error)))
        if progress is not None:
            progress(source)
    summary.wall_seconds = time.perf_counter() - start
    return summary


Item = TypeVar("Item")


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
    """One sentence for ``error`` that names ``path``, for the user of a command over many files."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"{path} does not fit in memory; cut it into shorter files, or pass --device cpu"
    text = " ".join(str(error).split())
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text.partition('. ')[0][:300]}"  # --debug shows all of it
    return text if str(path) in text else f"{path}: {text}"
