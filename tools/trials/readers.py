"""Reads damaged files in a process of its own, and says what came of each."""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from losatok_ext.audio.files import read_audio_with_info
from losatok_ext.cli import main as command_line
from losatok_ext.errors import DamagedAudioWarning, LatentFileError, UserError
from losatok_ext.formats.latent_files import describe, load_latents
from losatok_ext.models import LoSATok
from losatok_ext.recordings.labelled import find_items
from losatok_ext.training import TrainConfig, train_sembo
from losatok_ext.training.data.corpus import Corpus, open_corpus
from losatok_ext.training.data.paired_corpus import open_paired
from trials import material
from trials.trial import FoundError

SAME, READ, DAMAGED, REFUSED = "read as it was", "read", "what is left was read", "refused"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of its folder among the whole files.
        damaged: a pattern of the files in it that are damaged.
        read: given the damaged folder, the whole one and the damaged file's name, reads it and returns what came of it.
        text: whether texts among them are also damaged in ways that only texts can be.
        megabytes: the memory that reading may take beside what the file holds.
    """

    name: str
    damaged: str
    read: Callable[[Path, Path, Path], str]
    text: bool = False
    megabytes: float = 200.0


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return (one is None) == (other is None) and (one is None or (other is not None and torch.equal(one, other)))


def read_latents(folder: Path, whole: Path, name: Path) -> str:
    """A latent file is what was written, or is refused."""
    original = load_latents(whole / name)
    found = load_latents(folder / name, original.header.fingerprint)
    describe(folder / name)
    for part in ("mu", "logvar", "codes"):
        if not _same(getattr(found, part), getattr(original, part)):
            raise FoundError(f"{name}: {part} is another than was written")
    if found.header != original.header:
        raise FoundError(f"{name}: the header is another than was written: {found.header}")
    return SAME


def read_recording(folder: Path, whole: Path, name: Path) -> str:
    """A recording gives finite samples, not longer than the limit, or is refused."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        audio, info = read_audio_with_info(folder / name, max_minutes=1.0)
    if not torch.isfinite(audio).all() or not 0 < len(audio) <= 60 * 16_000:
        raise FoundError(f"{name}: {len(audio)} samples, finite: {bool(torch.isfinite(audio).all())}")
    told = any(issubclass(each.category, DamagedAudioWarning) for each in caught)
    if told != (info.damage is not None):
        raise FoundError(f"{name}: damage {info.damage!r}, but a warning: {told}")
    return DAMAGED if told else READ


def _content(corpus: Corpus, index: int) -> list[Tensor]:
    """What is stored of a clip: its audio, and a teacher's features where there are any."""
    whole = 1 << 40
    features = corpus.features(index, whole, 0.0)
    return [corpus.crop(index, whole, 0.0), *([] if features is None else [features])]


def _same_clips(found: Corpus, original: Corpus, what: Path) -> str:
    """Each clip that is found has the content that it had; clips may be missing."""
    contents = {clip.name: _content(original, index) for index, clip in enumerate(original.clips)}
    for index, clip in enumerate(found.clips):
        parts = zip(_content(found, index), contents.get(clip.name, []), strict=False)
        if not all(torch.equal(one, other) for one, other in parts):
            raise FoundError(f"{what}: {clip.name} has another content than was written")
    return SAME if [clip.name for clip in found.clips] == [clip.name for clip in original.clips] else DAMAGED


def read_shards(folder: Path, whole: Path, name: Path) -> str:
    """Of shards with an index, a clip has the content that was written, or is left out."""
    return _same_clips(open_corpus(folder, 16_000, 1600, 100), open_corpus(whole, 16_000, 1600, 100), name)


def read_corpus(folder: Path, whole: Path, name: Path) -> str:
    """A shard without an index, or a manifest: clips are read or left out."""
    corpus = open_corpus(folder / name, 16_000, 1600, 100)
    for index in range(min(4, len(corpus.clips))):
        corpus.crop(index, 1600, 0.5)
    if name.suffix == ".jsonl":
        find_items([folder / name])
    return READ if not corpus.skipped else DAMAGED


def read_features(folder: Path, whole: Path, name: Path) -> str:
    """Of a teacher's features with their audio, a clip has the content that was written, or is left out."""
    model = LoSATok.from_pretrained(whole.parent / "model").config
    corpora = [open_paired(path, model, 1, 100) for path in (folder, whole)]
    return _same_clips(*corpora, name)


def read_configuration(folder: Path, whole: Path, name: Path) -> str:
    """A configuration is valid or refused."""
    TrainConfig.load(folder / name)
    return READ


def read_model(folder: Path, whole: Path, name: Path) -> str:
    """A model folder gives the weights that were written, or is refused; another configuration is another model."""
    found, original = LoSATok.from_pretrained(folder), LoSATok.from_pretrained(whole)
    if name.name == "config.json":
        return READ
    for key, value in original.state_dict().items():
        if not torch.equal(found.state_dict()[key], value):
            raise FoundError(f"{name}: {key} has other weights than were written")
    return SAME


def read_published(folder: Path, whole: Path, name: Path) -> str:
    """``losatok convert`` of published weights (a pickle) makes a model or refuses; nothing in the file runs."""
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        words = [folder / "weights.pth", "--config", folder / "config.json", "-o", folder / "out"]
        code = command_line(["convert", *map(str, words)])
    if code not in (0, 2) or "defect" in output.getvalue():
        raise FoundError(f"{name}: convert ends with {code}: {output.getvalue()[-1000:]}")
    return READ if code == 0 else REFUSED


def read_run(folder: Path, whole: Path, name: Path) -> str:
    """A run goes on from its checkpoints to the weights that it would have had, or refuses."""
    train_sembo(whole.parent / "clips", folder, material.run_config(whole.parent / "model"))
    found = LoSATok.from_pretrained(folder).state_dict()
    for key, value in LoSATok.from_pretrained(whole.parent / "finished" / "run").state_dict().items():
        if not torch.equal(found[key], value):
            raise FoundError(f"{name}: {key} has other weights after going on")
    return SAME


KINDS = (
    Kind("latents", "*.losatok", read_latents),
    Kind("recordings", "*", read_recording),
    Kind("shards", "*", read_shards, text=True),
    Kind("shard", "*.tar", read_corpus),
    Kind("features", "*", read_features, text=True),
    Kind("manifest", "*.jsonl", read_corpus, text=True),
    Kind("configuration", "*.yaml", read_configuration, text=True),
    Kind("model", "*", read_model, text=True),
    Kind("published", "weights.pth", read_published),
    Kind("run", "checkpoints/**/*", read_run, text=True, megabytes=400.0),
)
_TRAVERSED = re.compile(r"Traceback|File \"")


def _peak() -> float:
    """The most memory that this process has held since :func:`_forget_peak`, in MB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0


def _forget_peak() -> float:
    """Begin to measure the peak anew; returns what the process holds, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def serve(connection: Connection, whole: str) -> None:
    """Read what the other end of ``connection`` names, until it closes: ``(kind, folder, file)``; the answer to each is
    ``(what came of it, what did not hold or None)``."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what decoders of libsndfile say
    kinds = {kind.name: kind for kind in KINDS}
    while True:
        try:
            name, folder, file = connection.recv()
        except EOFError:
            return
        kind, path = kinds[name], Path(folder)
        before, start = _forget_peak(), time.monotonic()
        problem = None
        try:
            with contextlib.ExitStack() as stack:
                if kind.read is not read_recording:
                    stack.enter_context(warnings.catch_warnings())
                    warnings.simplefilter("ignore")
                outcome = kind.read(path, Path(whole) / name, Path(file))
        except (UserError, OSError) as error:
            outcome = REFUSED
            message = str(error)
            if not message or len(message) > 3000 or _TRAVERSED.search(message):
                problem = f"{file}: a message of {len(message)} characters: {message[:500]}"
            if isinstance(error, LatentFileError) and str(path) not in message:
                problem = f"{file}: the message does not name the file: {message}"
        except FoundError as error:
            outcome, problem = "not held", str(error)
        except BaseException as error:
            outcome, problem = "not held", f"{file}: {type(error).__name__}: {str(error)[:1000]}"
        grown, seconds = _peak() - before, time.monotonic() - start
        size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) / 1e6
        if problem is None and grown > kind.megabytes + 20 * size:
            problem = f"{file}: {grown:.0f} MB of memory for {size:.1f} MB of files"
        if problem is None and seconds > 20:
            problem = f"{file}: {seconds:.0f} s"
        connection.send((outcome, problem))
