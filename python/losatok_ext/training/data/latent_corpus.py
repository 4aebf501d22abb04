"""Latent files to train a generator on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from losatok_ext.errors import InputError, LatentFileError, TrainingError
from losatok_ext.formats.latent_files import SUFFIX, load_latents, read_header
from losatok_ext.recordings.dataset import find_dataset
from losatok_ext.recordings.find import search_folder
from losatok_ext.recordings.manifest import Item, read_manifest
from losatok_ext.recordings.shard_index import LATENTS, is_shards, shards_kind
from losatok_ext.training.data.batches import LatentBatch, stack_rows
from losatok_ext.training.data.corpus import Clip, Corpus, Crop, attempt
from losatok_ext.training.data.token_corpus import TokenCorpus, open_tokens


@dataclass(frozen=True)
class LatentCorpus(Corpus):
    """A :class:`Corpus` of latent files: crops are [T, d], lengths are tokens, the rate is tokens per second."""

    fingerprint: str = ""
    """Fingerprint of the tokenizer that encoded all of them."""
    width: int = 0
    """d, the dimensions of a latent."""

    def batch(self, crops: Sequence[Crop], lengths: Tensor, size: int) -> LatentBatch:
        """See :meth:`Corpus.batch`."""
        return LatentBatch(latents=stack_rows([crop.values for crop in crops], size), **self._common(crops, lengths))

    def _samples(self, clip: Clip, index: int, samples: int, place: float) -> Tensor:
        latents = _latents(clip.path, self.fingerprint) if self.audio is None else self.audio[index]
        start = int(place * max(len(latents) - samples + 1, 0))
        return latents[start : start + samples]


def _latents(path: Path, fingerprint: str) -> Tensor:
    """The means [T, d] in a latent file.

    Raises:
        LatentFileError: the file cannot be read, is of another tokenizer, or holds codes.
    """
    mu = load_latents(path, fingerprint).mu
    if mu is None:
        raise LatentFileError(f"{path} holds codes; encode the recording with --store float32 or float16")
    return mu


def holds_latents(data: Path) -> bool:
    """Whether ``data`` is a folder or manifest of latent files, or shards of latents.

    Raises:
        TrainingError: a manifest names both latent files and others.
    """
    if is_shards(data):
        return shards_kind(data) == LATENTS
    if data.is_dir():
        return bool(search_folder(data, (SUFFIX,))[0])
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
    """The files that a manifest names; empty for a broken manifest, for which :func:`find_dataset` raises later."""
    try:
        return [item.name for item in read_manifest(manifest)]
    except InputError:
        return []


def open_latents(data: Path, cache_megabytes: int) -> LatentCorpus | TokenCorpus:
    """Find the latent files of ``data`` and check their headers; keep them in memory when they take at most
    ``cache_megabytes``.

    Args:
        data: folder (searched through for .losatok files) or JSONL manifest, as for recordings; or shards of latents.

    Raises:
        TrainingError: no usable file, or files of different tokenizers.
    """
    if is_shards(data):
        return open_tokens(data, LATENTS, cache_megabytes)
    items, skipped, count = find_dataset(data, (SUFFIX,), "latent")

    def header(entry: Item) -> tuple[Clip, tuple[str, int, float]]:
        found = read_header(entry.path)
        clip = Clip(entry.path, entry.name, found.tokens, entry.text, entry.domain, label=entry.label)
        return clip, (found.fingerprint, found.latent_dim, found.frame_rate)

    found = attempt(header, items, skipped)
    if not found:
        raise TrainingError(f"{data}: none of its {count} latent files can be used; the first: {skipped[0]}")
    (first, kind), *rest = found
    for clip, other in rest:
        if other != kind:
            raise TrainingError(
                f"{clip.path} holds latents of another tokenizer ({other[0]}) than {first.path} ({kind[0]}); encode "
                "all recordings with one model"
            )
    fingerprint, width, frame_rate = kind
    clips = [clip for clip, _ in found]
    latents = None
    if sum(clip.samples for clip in clips) * width * 4 <= cache_megabytes * 1e6:
        loaded = attempt(lambda clip: (clip, _latents(clip.path, fingerprint)), clips, skipped)
        clips, latents = [clip for clip, _ in loaded], tuple(mu for _, mu in loaded)
        if not clips:
            raise TrainingError(f"{data}: none of its {count} latent files can be used; the first: {skipped[0]}")
    return LatentCorpus(
        tuple(clips), round(frame_rate), 1, tuple(skipped), latents, fingerprint=fingerprint, width=width
    )
