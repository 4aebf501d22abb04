"""Stored outputs of a frozen network to train on, from shards: features of a teacher, or latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losatok_ext.errors import ShardError, TrainingError
from losatok_ext.recordings.shard_files import Sample
from losatok_ext.recordings.shard_index import FEATURES, LATENTS, Shards, open_shards
from losatok_ext.recordings.token_files import read_tokens
from losatok_ext.training.data.batches import Batch, FeatureBatch, LatentBatch, stack_rows
from losatok_ext.training.data.corpus import Clip, Corpus, Crop, attempt


@dataclass(frozen=True)
class TokenCorpus(Corpus):
    """A :class:`Corpus` of token sequences: crops are [T, d], lengths are tokens, the rate is tokens per second."""

    fingerprint: str = ""
    """Fingerprint of the tokenizer (for features: the teacher) that computed all of them."""
    width: int = 0
    """d, the dimensions of a token."""
    kind: str = LATENTS
    """``shard_index.FEATURES`` or ``LATENTS``."""

    def batch(self, crops: Sequence[Crop], lengths: Tensor, size: int) -> Batch:
        """See :meth:`Corpus.batch`."""
        rows, common = stack_rows([crop.values for crop in crops], size), self._common(crops, lengths)
        if self.kind == LATENTS:
            return LatentBatch(latents=rows, **common)
        known = ((crop.clip.gram_energy, crop.complete) for crop in crops)
        energy = [energy if complete and energy is not None else math.nan for energy, complete in known]
        return FeatureBatch(features=rows, gram_energy=torch.tensor(energy), **common)

    def digest(self, texts: bool = False, domains: bool = False) -> str:
        """The hash of :meth:`Corpus.digest` and the fingerprint: other tokens of the same clips are other data."""
        return f"{super().digest(texts, domains)}-{self.fingerprint}"

    def _samples(self, clip: Clip, index: int, samples: int, place: float) -> Tensor:
        start = int(place * max(clip.samples - samples + 1, 0))
        if self.audio is not None:
            return self.audio[index][start : start + samples].float()
        assert clip.member is not None
        whole = samples >= clip.samples
        return read_tokens(clip.member, self.width, start, None if whole else samples).float()


def open_tokens(data: str | Path, kind: str, cache_megabytes: int) -> TokenCorpus:
    """The clips in shards of ``kind`` (``shard_index.FEATURES`` or ``LATENTS``); kept in memory, in the dtype they are
    stored in, when they take at most ``cache_megabytes``.

    Raises:
        TrainingError: the shards hold something else, or no clip can be used.
    """
    data = Path(data)
    shards = open_shards(data)
    if shards.kind != kind:
        raise TrainingError(f"{data} holds {shards.kind}, and {kind} are needed here")
    facts = token_facts(data, shards)
    skipped = list(shards.left_out)
    clips = attempt(lambda sample: token_clip(sample, kind), shards.samples, skipped)
    loaded = None
    if sum(clip.member.size for clip in clips) <= cache_megabytes * 1e6:
        whole = attempt(lambda clip: (clip, _read_all(clip, facts["width"])), clips, skipped)
        clips, loaded = [clip for clip, _ in whole], tuple(tokens for _, tokens in whole)
    if not clips:
        raise TrainingError(f"{data}: none of the {kind} in it can be used; the first: {(skipped or ['none'])[0]}")
    return TokenCorpus(
        tuple(clips),
        facts["frame_rate"],
        1,
        tuple(skipped),
        loaded,
        fingerprint=facts["fingerprint"],
        width=facts["width"],
        kind=kind,
    )


def _read_all(clip: Clip, width: int) -> Tensor:
    assert clip.member is not None
    tokens = read_tokens(clip.member, width)
    if len(tokens) != clip.samples:
        raise ShardError(
            f"{clip.path} is damaged: it holds {len(tokens)} tokens, the index says {clip.samples}; "
            "write the shard again"
        )
    return tokens


def token_facts(data: Path, shards: Shards) -> dict[str, Any]:
    """The facts about all clips in shards of tokens: ``fingerprint``, ``width``, ``frame_rate`` and more.

    Raises:
        TrainingError: one of these three is missing.
    """
    facts = shards.facts
    counts = [facts.get(name) for name in ("width", "frame_rate")]
    if not all(type(count) is int and count > 0 for count in counts) or not isinstance(facts.get("fingerprint"), str):
        raise TrainingError(
            f"{data}: the shards do not say what computed their {shards.kind}; write them with `losatok precompute`"
        )
    return facts


def token_clip(sample: Sample, kind: str) -> Clip:
    """A clip of tokens, from its description in the shard.

    Raises:
        ShardError: a value is missing or of the wrong kind.
    """
    values, shard = sample.values, sample.member.shard
    tokens, energy = values.get("tokens"), values.get("gram_energy")
    if type(tokens) is not int or tokens < 1:
        raise ShardError(f"{shard}: {sample.key} does not say how many tokens it has; write the shard again")
    if kind == FEATURES and not (isinstance(energy, float) and math.isfinite(energy) and energy >= 0):
        raise ShardError(f"{shard}: {sample.key} has no gram_energy; write the shard again")
    texts = {name: values.get(name, "") for name in ("path", "text", "domain", "label")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ShardError(f"{shard}: path, text, domain and label of {sample.key} should be text; write the shard again")
    return Clip(
        shard / sample.key,
        texts["path"] or f"{shard.name}/{sample.key}",
        tokens,
        texts["text"],
        texts["domain"],
        sample.member,
        energy if kind == FEATURES else None,
        label=texts["label"],
    )
