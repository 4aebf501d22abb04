"""Latent files to train a generator on: encoded once, read as often as training likes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from losatok_ext.errors import LatentFileError, TrainingError
from losatok_ext.inference.latent_files import SUFFIX, load_latents, read_header
from losatok_ext.training.corpus import Clip, Corpus, Entry, attempt, find_entries


@dataclass(frozen=True)
class LatentCorpus(Corpus):
    """A :class:`Corpus` whose clips are latent files: its samples are tokens [T, d], its rate is tokens per second."""

    fingerprint: str = ""
    """Of the tokenizer that encoded all of them."""
    latent_dim: int = 0

    def _samples(self, clip: Clip, index: int, samples: int, place: float) -> Tensor:
        latents = _latents(clip.path, self.fingerprint) if self.audio is None else self.audio[index]
        start = int(place * max(len(latents) - samples + 1, 0))
        return latents[start : start + samples]


def _latents(path: Path, fingerprint: str) -> Tensor:
    """The means [T, d] in a latent file.

    Raises:
        LatentFileError: as :func:`load_latents`, and when it holds codes.
    """
    mu = load_latents(path, fingerprint).mu
    if mu is None:
        raise LatentFileError(f"{path} holds codes; encode the recording with --store float32 or float16")
    return mu


def holds_latents(data: Path) -> bool:
    """Whether ``data``, a folder or manifest, is one of latent files.

    Raises:
        TrainingError: it has latent files and others.
    """
    if data.is_dir():
        return any(path.is_file() for path in data.rglob(f"*{SUFFIX}"))
    if data.suffix == SUFFIX:
        return True
    if not data.is_file():
        return False
    kinds = {name.endswith(SUFFIX) for name in _names(data)}
    if len(kinds) == 2:
        raise TrainingError(
            f"{data} names both recordings and latent files ({SUFFIX}); give each kind its own manifest"
        )
    return kinds == {True}


def _names(manifest: Path) -> list[str]:
    """Paths that a manifest names; lines that cannot be read are left for :func:`find_entries` to complain about."""
    names = []
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for line in lines:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and isinstance(values.get("path"), str):
            names.append(values["path"])
    return names


def open_latents(data: Path, cache_megabytes: int) -> LatentCorpus:
    """Find the latent files of ``data`` and check their headers; keep them in memory when they take at most
    ``cache_megabytes``.

    Args:
        data: folder (searched through for .losatok files) or JSONL manifest, as for recordings.

    Raises:
        TrainingError: no usable file, or files of different tokenizers.
    """
    entries = find_entries(data, (SUFFIX,), "latent")
    skipped: list[str] = []

    def header(entry: Entry) -> tuple[Clip, tuple[str, int, float]]:
        found = read_header(entry.path)
        clip = Clip(entry.path, entry.name, found.tokens, entry.text)
        return clip, (found.fingerprint, found.latent_dim, found.frame_rate)

    found = attempt(header, entries, skipped)
    if not found:
        raise TrainingError(f"{data}: none of its {len(entries)} latent files can be used; the first: {skipped[0]}")
    (first, kind), *rest = found
    for clip, other in rest:
        if other != kind:
            raise TrainingError(
                f"{clip.path} holds latents of another tokenizer ({other[0]}) than {first.path} ({kind[0]}); encode "
                "all recordings with one model"
            )
    fingerprint, latent_dim, frame_rate = kind
    clips = [clip for clip, _ in found]
    latents = None
    if sum(clip.samples for clip in clips) * latent_dim * 4 <= cache_megabytes * 1e6:
        loaded = attempt(lambda clip: (clip, _latents(clip.path, fingerprint)), clips, skipped)
        clips, latents = [clip for clip, _ in loaded], tuple(mu for _, mu in loaded)
        if not clips:
            raise TrainingError(f"{data}: none of its {len(entries)} latent files can be used; the first: {skipped[0]}")
    return LatentCorpus(
        tuple(clips), round(frame_rate), 1, tuple(skipped), latents, fingerprint=fingerprint, latent_dim=latent_dim
    )
