"""The recordings to train on: a folder, or a JSONL manifest with one ``{"path": ...}`` per line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from losatok_ext.audio.files import READABLE_SUFFIXES, audio_info, read_audio
from losatok_ext.errors import AudioFileError, LatentFileError, TrainingError
from losatok_ext.training.regions import read_region

LONG_SECONDS = 30.0
"""Of clips longer than this and not in memory only the crop is decoded; shorter ones are read, and checked, whole."""
_UNKNOWN_SECONDS = 1e9


@dataclass(frozen=True)
class Clip:
    """One recording: ``path``, ``name`` in the corpus, length in ``samples`` by its header, and ``text`` or ``""``."""

    path: Path
    name: str
    samples: int
    text: str = ""


class Entry(NamedTuple):
    """What a folder or manifest says of a file; ``seconds`` is None where it says nothing."""

    path: Path
    name: str
    seconds: float | None
    text: str


@dataclass(frozen=True)
class Corpus:
    """Usable clips, and what was left out and why."""

    clips: tuple[Clip, ...]
    sample_rate: int
    minimum_samples: int
    skipped: tuple[str, ...] = ()
    """One sentence per file that cannot be used; each names the file."""
    audio: tuple[Tensor, ...] | None = field(default=None, repr=False)
    """Decoded clips [N], float32, when the corpus is kept in memory."""

    @property
    def seconds(self) -> float:
        """Length of all clips together."""
        return sum(clip.samples for clip in self.clips) / self.sample_rate

    def digest(self, texts: bool = False) -> str:
        """A hash of the clips' names and lengths (and texts): resuming on another corpus would not be the same run."""
        lines = [f"{clip.name}\t{clip.samples}" + (f"\t{clip.text}" if texts else "") for clip in self.clips]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def crop(self, index: int, samples: int, place: float) -> Tensor:
        """At most ``samples`` samples [N] of clip ``index``, float32 mono at ``sample_rate``.

        Args:
            place: where the crop lies, from 0 (the clip's beginning) to 1 (its end).

        Raises:
            AudioFileError: the file cannot be read.
        """
        clip = self.clips[index]
        audio = self._samples(clip, index, samples, place)
        if len(audio) < self.minimum_samples:  # only where a header or a manifest promised more
            raise AudioFileError(
                f"{clip.path}: {len(audio)} samples where {min(samples, clip.samples)} were promised; it is truncated"
            )
        return audio

    def _samples(self, clip: Clip, index: int, samples: int, place: float) -> Tensor:
        if self.audio is None and clip.samples > max(samples, LONG_SECONDS * self.sample_rate):
            return read_region(clip.path, int(place * (clip.samples - samples)), samples, self.sample_rate)
        audio = read_audio(clip.path, self.sample_rate) if self.audio is None else self.audio[index]
        start = int(place * max(len(audio) - samples + 1, 0))
        return audio[start : start + samples]


def open_corpus(data: str | Path, sample_rate: int, minimum_samples: int, cache_megabytes: int) -> Corpus:
    """Find the clips of ``data`` and check them; keep their audio in memory when it takes at most ``cache_megabytes``.

    A corpus kept in memory is decoded whole, so that every unusable file is known at the start. Of a larger one only
    headers are read, and not even these for manifest lines that say ``"seconds"``.

    Args:
        data: folder (searched through, for wav, flac, ogg and mp3 files) or JSONL manifest; its paths are relative to
            its folder.
        sample_rate: rate in Hz that the audio is read at.
        minimum_samples: clips shorter than this, at ``sample_rate``, are left out.

    Raises:
        TrainingError: ``data`` is missing or empty, a manifest line is broken (named by file and line), or no clip is
            usable.
    """
    entries = find_entries(Path(data))
    skipped: list[str] = []

    def measure(entry: Entry) -> Clip:
        path, name, seconds, text = entry
        if seconds is None:
            seconds = audio_info(path).seconds
        if seconds >= _UNKNOWN_SECONDS:  # a header that does not tell
            return Clip(path, name, len(read_audio(path, sample_rate)), text)
        return Clip(path, name, round(seconds * sample_rate), text)

    def keep_long(clip: Clip, samples: int) -> bool:
        if samples < minimum_samples:
            skipped.append(
                f"{clip.path}: too short, {samples / sample_rate:.3f} s; training takes clips of at least "
                f"{minimum_samples / sample_rate} s"
            )
        return samples >= minimum_samples

    clips = [clip for clip in attempt(measure, entries, skipped) if keep_long(clip, clip.samples)]
    corpus = Corpus(tuple(clips), sample_rate, minimum_samples, tuple(skipped))
    if corpus.seconds * sample_rate * 4 <= cache_megabytes * 1e6:
        decoded = attempt(lambda clip: (clip, read_audio(clip.path, sample_rate)), clips, skipped)
        kept = [(clip, audio) for clip, audio in decoded if keep_long(clip, len(audio))]
        corpus = Corpus(
            tuple(clip for clip, _ in kept),
            sample_rate,
            minimum_samples,
            tuple(skipped),
            tuple(audio.contiguous() for _, audio in kept),
        )
    if not corpus.clips:
        raise TrainingError(f"{data}: none of its {len(entries)} audio files can be used; the first: {skipped[0]}")
    return corpus


def attempt(function: Callable, items: Iterable, skipped: list[str]) -> list:
    """``function`` of every item, in order, by threads; what the files are to blame for goes to ``skipped`` instead."""

    def guarded(item: object) -> tuple[object, str | None]:
        try:
            return function(item), None
        except (AudioFileError, LatentFileError) as error:
            return None, str(error)

    with ThreadPoolExecutor(max_workers=max(torch.get_num_threads(), 4)) as pool:
        results = list(pool.map(guarded, items))
    skipped += [message for _, message in results if message is not None]
    return [result for result, message in results if message is None]


def find_entries(data: Path, suffixes: Sequence[str] = READABLE_SUFFIXES, kind: str = "audio") -> list[Entry]:
    """The files of a folder (searched through for ``suffixes``) or JSONL manifest.

    A manifest line gives a clip's text as ``"text"``, else as ``"label"``, else as the values of the object
    ``"labels"``. In a folder it is the name of the folder that the file lies in, ``""`` at the top.

    Raises:
        TrainingError: as :func:`open_corpus`.
    """
    if data.is_dir():
        found = sorted(p for p in data.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        entries = [
            Entry(path, name.as_posix(), None, name.parent.name)
            for path, name in ((path, path.relative_to(data)) for path in found)
            if not path.name.startswith(".")
        ]
        if not entries:
            raise TrainingError(
                f"{data}: the folder holds no {kind} files ({', '.join(suffixes)}), nor do the folders in it"
            )
        return entries
    if not data.exists():
        raise TrainingError(f"{data}: no such folder or manifest; give a folder of {kind} files or a JSONL manifest")
    if data.suffix.lower() in suffixes:
        article = "an" if kind[0] in "aeiou" else "a"
        raise TrainingError(f"{data} is {article} {kind} file; give the folder that holds it, or a JSONL manifest")
    return _manifest(data)


def _manifest(path: Path) -> list[Entry]:
    entries = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: cannot read the manifest: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise TrainingError(
                f"{path}:{number}: not valid JSON ({error.msg}); each line should be an object such as "
                f'{{"path": "a.wav"}}'
            ) from None
        name = values.get("path") if isinstance(values, dict) else None
        if not isinstance(name, str) or not name:
            raise TrainingError(
                f'{path}:{number}: the line has no "path"; each line should be an object such as {{"path": "a.wav"}}'
            )
        seconds = values.get("seconds")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < _UNKNOWN_SECONDS
        ):
            raise TrainingError(
                f'{path}:{number}: "seconds" should be the length of the clip in seconds, got {seconds!r}'
            )
        entries.append(Entry(path.parent / name, name, seconds, _text(values, f"{path}:{number}")))
    if not entries:
        raise TrainingError(f'{path}: the manifest is empty; each line should be an object such as {{"path": "a.wav"}}')
    return entries


def _text(values: dict[str, Any], place: str) -> str:
    for key in ("text", "label"):
        if key in values:
            if not isinstance(values[key], str):
                raise TrainingError(f'{place}: "{key}" should be text, got {values[key]!r}')
            return values[key]
    labels = values.get("labels", {})
    if not isinstance(labels, dict):
        raise TrainingError(f'{place}: "labels" should be an object of names and values, got {labels!r}')
    return " ".join(str(value) for value in labels.values())
