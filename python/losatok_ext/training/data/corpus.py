"""The recordings to train on: checked when opened; kept in memory where they are few, else read crop by crop."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from losatok_ext.audio.files import audio_info, read_audio
from losatok_ext.audio.reading import reading_options
from losatok_ext.errors import AudioFileError, LatentFileError, ShardError, TrainingError
from losatok_ext.recordings.dataset import find_dataset
from losatok_ext.recordings.manifest import MAX_SECONDS, Item
from losatok_ext.recordings.regions import read_region
from losatok_ext.recordings.shard_files import Member
from losatok_ext.training.data.batches import Batch, RecordingBatch, stack_rows

C = TypeVar("C", bound="Corpus")

BAD_FILES = (AudioFileError, LatentFileError, ShardError)
"""Errors that reading a clip raises where its file is at fault."""

LONG_SECONDS = 30.0
"""Of longer clips that are not in memory only the crop is decoded; shorter clips are decoded completely and checked."""


@dataclass(frozen=True)
class Clip:
    """One recording, or one sequence of tokens."""

    path: Path
    name: str
    """Its name in the corpus, as in the manifest or relative to the folder."""
    samples: int
    """Its length by the header: samples at the rate of the corpus; tokens in a corpus of tokens."""
    text: str = ""
    """``""`` where there is none."""
    domain: str = ""
    """The part of the data that it belongs to, such as speech or music; ``""`` where there is none."""
    member: Member | None = None
    """Where the clip is in a shard; None: ``path`` is its file."""
    gram_energy: float | None = None
    """Of teacher features: the value of ``ops.gram_energy`` for the complete clip."""
    features: Member | None = None
    """Of a recording whose teacher features are stored: where they are in the shard."""
    label: str = ""
    """The clip's class, where its manifest or shard gives it besides the text; ``""`` where there is none."""


class Crop(NamedTuple):
    """A piece of a clip, as a batch is made of them."""

    values: Tensor
    """[N] float32 samples; of tokens [T, d]."""
    clip: Clip
    complete: bool
    """Whether the piece is all of the clip, unchanged."""
    features: Tensor | None
    """[T, D] float32: the teacher's features of the piece, where they are stored beside a recording."""


@dataclass(frozen=True)
class Corpus:
    """The usable clips of the data, and which files were left out."""

    clips: tuple[Clip, ...]
    sample_rate: int
    minimum_samples: int
    skipped: tuple[str, ...] = ()
    """One sentence for each file that cannot be used, with its name; one for all files of a manifest that do not
    exist."""
    audio: tuple[Tensor, ...] | None = field(default=None, repr=False)
    """Decoded clips [N], float32, when the corpus is kept in memory."""

    @property
    def seconds(self) -> float:
        """Length of all clips together, in seconds."""
        return sum(clip.samples for clip in self.clips) / self.sample_rate

    def digest(self, texts: bool = False, domains: bool = False) -> str:
        """A hash of the clips' names and lengths, and of their texts and domains where asked: a run goes on only with
        equal data."""
        lines = [
            f"{clip.name}\t{clip.samples}"
            + (f"\t{clip.text}" if texts else "")
            + (f"\t{clip.label}" if texts and clip.label not in ("", clip.text) else "")
            + (f"\t{clip.domain}" if domains else "")
            for clip in self.clips
        ]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()

    def crop(self, index: int, samples: int, place: float) -> Tensor:
        """A crop of clip ``index``: [N] float32 mono at ``sample_rate``, with N at most ``samples``.

        Args:
            index: of the clip.
            samples: the crop's length; a shorter clip is returned completely.
            place: position of the crop, from 0 (at the clip's beginning) to 1 (at its end).

        Raises:
            AudioFileError, ShardError: the file cannot be read.
        """
        clip = self.clips[index]
        try:
            audio = self._samples(clip, index, samples, place)
        except AudioFileError:
            _check_told_length(clip, self.sample_rate)
            raise
        if len(audio) < self.minimum_samples:  # only where a header or a manifest promised more
            _check_told_length(clip, self.sample_rate)
            raise AudioFileError(
                f"{clip.path}: {len(audio)} samples where {min(samples, clip.samples)} were promised; it is truncated"
            )
        return audio

    def features(self, index: int, samples: int, place: float) -> Tensor | None:
        """The stored features of a frozen teacher for the crop that :meth:`crop` returns for the same arguments.

        Returns:
            [T, D] float32; None where no features are stored.

        Raises:
            ShardError: the features cannot be read.
        """
        return None

    def batch(self, crops: Sequence[Crop], lengths: Tensor, size: int) -> Batch:
        """A batch of ``crops`` of this corpus, of the type that belongs to what the corpus holds.

        Args:
            crops: pieces of its clips.
            lengths: [B] int64, their lengths.
            size: what rows are padded to; at least the longest.
        """
        return RecordingBatch(audio=stack_rows([crop.values for crop in crops], size), **self._common(crops, lengths))

    def _common(self, crops: Sequence[Crop], lengths: Tensor) -> dict[str, Any]:
        """What batches of all types have."""
        clips = [crop.clip for crop in crops]
        return {
            "lengths": lengths,
            "names": tuple(clip.name for clip in clips),
            "seconds": int(lengths.sum()) / self.sample_rate,
            "texts": tuple(clip.text for clip in clips),
            "labels": tuple(clip.label for clip in clips),
        }

    def pick(self: C, kept: Sequence[bool]) -> C:
        """The corpus of some of the clips; ``kept`` has one value for each clip."""
        clips = tuple(compress(self.clips, kept))
        return dataclasses.replace(
            self, clips=clips, audio=None if self.audio is None else tuple(compress(self.audio, kept))
        )

    def _samples(self, clip: Clip, index: int, samples: int, place: float) -> Tensor:
        if self._in_parts(clip, samples):
            return self._part(clip, int(place * (clip.samples - samples)), samples)
        audio = self._whole(clip, index)
        start = int(place * max(len(audio) - samples + 1, 0))
        return audio[start : start + samples]

    def _in_parts(self, clip: Clip, samples: int) -> bool:
        """Whether only the crop of a clip is decoded, not the complete clip."""
        return self.audio is None and clip.samples > max(samples, LONG_SECONDS * self.sample_rate)

    def _part(self, clip: Clip, start: int, samples: int) -> Tensor:
        content = None if clip.member is None else clip.member.open()
        return read_region(clip.path, start, samples, self.sample_rate, content)

    def _whole(self, clip: Clip, index: int) -> Tensor:
        return read_clip(clip, self.sample_rate) if self.audio is None else self.audio[index]


def _check_told_length(clip: Clip, sample_rate: int) -> None:
    """Raise AudioFileError where the clip's header shows that the manifest gave a wrong length for it."""
    info = audio_info(clip.path, None if clip.member is None else clip.member.open())
    told = clip.samples / sample_rate
    if told > info.seconds + 0.1:
        raise AudioFileError(
            f'{clip.path} has {info.seconds:.2f} s, and "seconds" in the manifest says {told:.2f}; correct it, or '
            "leave it out"
        )


def read_clip(clip: Clip | Item, sample_rate: int) -> Tensor:
    """A complete recording, from its file or its shard: [N] float32 mono at ``sample_rate``.

    Raises:
        AudioFileError, ShardError: it cannot be read.
    """
    content = None if clip.member is None else io.BytesIO(clip.member.read())
    return read_audio(clip.path, sample_rate, content)


def open_corpus(data: str | Path, sample_rate: int, minimum_samples: int, cache_megabytes: int) -> Corpus:
    """Find the clips of ``data`` and check them; keep their audio in memory when it takes at most ``cache_megabytes``.

    A corpus that is kept in memory is decoded completely, so that every unusable file is known at the start. For a
    larger one only headers are read, and not even these for manifest lines with ``"seconds"``.

    Args:
        data: folder (searched through, for wav, flac, ogg and mp3 files), JSONL manifest (its paths are relative to
            its folder), or shards: a .tar file, a folder of them, or names such as ``shards-{000000..000012}.tar``.
        sample_rate: rate in Hz that the audio is read at.
        minimum_samples: clips shorter than this, at ``sample_rate``, are left out.

    Raises:
        TrainingError: ``data`` is missing or empty, or no clip is usable.
        InputError: a manifest line is broken (named by file and line).
    """
    items, skipped, count = find_dataset(Path(data))

    def measure(entry: Item) -> Clip:
        seconds = entry.seconds
        if seconds is None:
            seconds = audio_info(entry.path, None if entry.member is None else entry.member.open()).seconds
        known = seconds < MAX_SECONDS  # else a header that does not tell
        if known:
            reading_options().check_length(entry.path, seconds)
        samples = round(seconds * sample_rate) if known else len(read_clip(entry, sample_rate))
        return Clip(entry.path, entry.name, samples, entry.text, entry.domain, entry.member, label=entry.label)

    def keep_long(clip: Clip, samples: int) -> bool:
        return long_enough(clip, samples, sample_rate, minimum_samples, skipped)

    clips = [clip for clip in attempt(measure, items, skipped) if keep_long(clip, clip.samples)]
    corpus = Corpus(tuple(clips), sample_rate, minimum_samples, tuple(skipped))
    if corpus.seconds * sample_rate * 4 <= cache_megabytes * 1e6:
        decoded = attempt(lambda clip: (clip, read_clip(clip, sample_rate)), clips, skipped)
        kept = [(clip, audio) for clip, audio in decoded if keep_long(clip, len(audio))]
        corpus = Corpus(
            tuple(clip for clip, _ in kept),
            sample_rate,
            minimum_samples,
            tuple(skipped),
            tuple(audio.contiguous() for _, audio in kept),
        )
    if not corpus.clips:
        raise TrainingError(f"{data}: none of its {count} audio files can be used; the first: {skipped[0]}")
    return corpus


def long_enough(clip: Clip, samples: int, sample_rate: int, minimum_samples: int, skipped: list[str]) -> bool:
    """Whether ``samples`` of a clip are at least ``minimum_samples``; else a sentence about it is added to
    ``skipped``."""
    if samples < minimum_samples:
        skipped.append(
            f"{clip.path}: too short, {samples / sample_rate:.3f} s; training takes clips of at least "
            f"{minimum_samples / sample_rate} s"
        )
    return samples >= minimum_samples


def attempt(function: Callable, items: Iterable, skipped: list[str]) -> list:
    """``function`` of every item, in order, computed by threads. Where a file is at fault, the item has no result, and
    the message is added to ``skipped``."""

    def guarded(run: list) -> tuple[list, list[str]]:
        results, messages = [], []
        for item in run:
            try:
                results.append(function(item))
            except BAD_FILES as error:
                messages.append(str(error))
        return results, messages

    items, workers = list(items), max(torch.get_num_threads(), 4)
    size = (
        len(items) // (64 * workers) + 1
    )  # several items per task, since starting a task costs more than a short item
    with ThreadPoolExecutor(max_workers=workers) as pool:
        done = list(pool.map(guarded, [items[i : i + size] for i in range(0, len(items), size)]))
    skipped += [message for _, messages in done for message in messages]
    return [result for results, _ in done for result in results]
