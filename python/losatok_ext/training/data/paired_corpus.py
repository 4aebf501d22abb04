"""Recordings with the stored features of a teacher, from shards that hold both for each clip."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

from torch import Tensor

from losatok_ext.errors import ShardError, TrainingError
from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH, LoSATokConfig
from losatok_ext.recordings.shard_files import Sample
from losatok_ext.recordings.shard_index import AUDIO_RATE, FEATURES, open_shards
from losatok_ext.recordings.token_files import read_tokens
from losatok_ext.training.data.batches import RecordingBatch, stack_rows
from losatok_ext.training.data.corpus import Clip, Corpus, Crop, attempt, long_enough
from losatok_ext.training.data.token_corpus import token_clip, token_facts


@dataclass(frozen=True)
class PairedCorpus(Corpus):
    """A :class:`Corpus` of recordings whose teacher features are stored. Its crops begin on a token, so that the
    features of a crop are rows of those of its clip."""

    fingerprint: str = ""
    """Fingerprint of the teacher that computed all features."""
    width: int = 0
    """D, the dimensions of a feature."""
    samples_per_token: int = 640
    """Samples of audio between frames of features."""
    stored: tuple[Tensor, ...] | None = field(default=None, repr=False)
    """Features [T, D] of each clip, in the dtype they are stored in, when the corpus is kept in memory."""

    def batch(self, crops: Sequence[Crop], lengths: Tensor, size: int) -> RecordingBatch:
        """See :meth:`Corpus.batch`; with the stored features."""
        rows = [crop.features for crop in crops if crop.features is not None]
        return RecordingBatch(
            audio=stack_rows([crop.values for crop in crops], size),
            features=stack_rows(rows, size // self.samples_per_token),
            **self._common(crops, lengths),
        )

    def digest(self, texts: bool = False, domains: bool = False) -> str:
        """The hash of :meth:`Corpus.digest` and the fingerprint: other features of the same clips are other data."""
        return f"{super().digest(texts, domains)}-{self.fingerprint}"

    def pick(self, kept: Sequence[bool]) -> PairedCorpus:
        """See :meth:`Corpus.pick`."""
        stored = None if self.stored is None else tuple(compress(self.stored, kept))
        return dataclasses.replace(super().pick(kept), stored=stored)

    def features(self, index: int, samples: int, place: float) -> Tensor | None:
        """See :meth:`Corpus.features`. For a crop that is a part of its clip, T is ``samples`` divided by
        :attr:`samples_per_token`.

        Raises:
            ShardError: they cannot be read.
        """
        clip = self.clips[index]
        if samples >= clip.samples:
            return (self._stored(clip) if self.stored is None else self.stored[index]).float()
        first, count = self._start(clip, samples, place) // self.samples_per_token, samples // self.samples_per_token
        if self.stored is not None:
            return self.stored[index][first : first + count].float()
        assert clip.features is not None
        features = read_tokens(clip.features, self.width, first, count)
        _check_frames(clip.path, len(features), samples, self.samples_per_token)
        return features.float()

    def _stored(self, clip: Clip) -> Tensor:
        """The features [T, D] of a complete clip, in the dtype they are stored in."""
        assert clip.features is not None
        features = read_tokens(clip.features, self.width)
        _check_frames(clip.path, len(features), clip.samples, self.samples_per_token)
        return features

    def _start(self, clip: Clip, samples: int, place: float) -> int:
        places = (clip.samples - samples) // self.samples_per_token + 1
        return int(place * max(places, 1)) * self.samples_per_token

    def _samples(self, clip: Clip, index: int, samples: int, place: float) -> Tensor:
        start = self._start(clip, samples, place)
        if self._in_parts(clip, samples):
            return self._part(clip, start, samples)
        return self._whole(clip, index)[start : start + samples]

    def _whole(self, clip: Clip, index: int) -> Tensor:
        audio = super()._whole(clip, index)
        if len(audio) != clip.samples:
            raise ShardError(
                f"{clip.path}: its audio has {len(audio)} samples, its features are of {clip.samples}; "
                "write the shard again"
            )
        return audio


def open_paired(data: str | Path, model: LoSATokConfig, minimum_samples: int, cache_megabytes: int) -> PairedCorpus:
    """The clips in shards that ``losatok precompute features --audio`` wrote; kept in memory, audio and features, when
    both take at most ``cache_megabytes``.

    Args:
        data: shards of teacher features.
        model: to train.
        minimum_samples: clips shorter than this are left out.

    Raises:
        TrainingError: the shards hold something else, or no audio, or audio or features of other rates than the
            model's; or no clip can be used.
    """
    data = Path(data)
    shards = open_shards(data)
    if shards.kind != FEATURES:
        raise TrainingError(f"{data} holds {shards.kind}, and {FEATURES} with their audio are needed here")
    facts = token_facts(data, shards)
    if AUDIO_RATE not in facts:
        raise TrainingError(
            f"{data} holds {FEATURES} without the audio they were computed from, and both are needed here; write them "
            "into another folder by `losatok precompute features --audio`, or give the recordings"
        )
    rates, step = (facts[AUDIO_RATE], facts["frame_rate"]), model.samples_per_token * model.semantic_upsampling
    if rates != (model.sample_rate, model.sample_rate // step):
        raise TrainingError(
            f"{data} holds audio of {rates[0]} Hz with {rates[1]} frames of features per second, and the model has "
            f"{model.sample_rate} Hz and {model.sample_rate // step}; give the recordings"
        )
    skipped = list(shards.left_out)
    clips = attempt(lambda sample: _clip(sample, model.sample_rate, step), shards.samples, skipped)
    clips = [c for c in clips if long_enough(c, c.samples, model.sample_rate, minimum_samples, skipped)]
    corpus = PairedCorpus(
        tuple(clips),
        model.sample_rate,
        minimum_samples,
        fingerprint=facts["fingerprint"],
        width=facts["width"],
        samples_per_token=step,
    )
    audio = stored = None
    if sum(4 * clip.samples + clip.features.size for clip in clips) <= cache_megabytes * 1e6:
        whole = attempt(lambda clip: (clip, corpus._whole(clip, 0).contiguous(), corpus._stored(clip)), clips, skipped)
        clips, audio, stored = ([row[i] for row in whole] for i in range(3))
    if not clips:
        raise TrainingError(f"{data}: none of the clips in it can be used; the first: {(skipped or ['none'])[0]}")
    return dataclasses.replace(
        corpus,
        clips=tuple(clips),
        skipped=tuple(skipped),
        audio=None if audio is None else tuple(audio),
        stored=None if stored is None else tuple(stored),
    )


def _clip(sample: Sample, sample_rate: int, samples_per_token: int) -> Clip:
    """A recording, and where its features are in the shard."""
    clip, place = token_clip(sample, FEATURES), f"{sample.member.shard}: {sample.key}"
    if sample.audio is None:
        raise ShardError(f"{place} has features and no audio; write the shard again")
    seconds = sample.values.get("seconds")
    if not (isinstance(seconds, float) and math.isfinite(seconds) and seconds >= 0):
        raise ShardError(f"{place} does not say how many seconds of audio it has; write the shard again")
    samples = round(seconds * sample_rate)
    _check_frames(place, clip.samples, samples, samples_per_token)
    return dataclasses.replace(clip, samples=samples, member=sample.audio, features=sample.member, gram_energy=None)


def _check_frames(place: object, frames: int, samples: int, samples_per_token: int) -> None:
    hop = samples_per_token // SEMANTIC_PATCH
    wanted = (samples // hop + 1) // SEMANTIC_PATCH
    if frames != wanted:
        raise ShardError(
            f"{place} has {frames} frames of features, and its {samples} samples of audio make {wanted}; "
            "write the shard again"
        )
