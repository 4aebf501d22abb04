"""The base of the stages that train a LoSATok model, on recordings or on stored features of a frozen teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losatok_ext import ops
from losatok_ext.errors import TrainingError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.teachers.registry import Teacher
from losatok_ext.recordings.shard_index import FEATURES, LATENTS, shards_kind
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.augment import check_features_stay, check_not_augmented
from losatok_ext.training.data.batches import Batch, FeatureBatch, recordings_of
from losatok_ext.training.data.corpus import Corpus, open_corpus
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.data.paired_corpus import PairedCorpus, open_paired
from losatok_ext.training.data.token_corpus import TokenCorpus, open_tokens


def open_recordings(data: str | Path, model: LoSATokConfig, config: TrainConfig) -> tuple[Corpus, CropSource]:
    """The recordings of ``data`` at the rate of ``model``, and their batches.

    Raises:
        TrainingError: no recording can be used, or all together do not fill one batch.
        ConfigError: ``config.data.balance`` does not fit their domains.
    """
    corpus = open_corpus(data, model.sample_rate, _multiple(model), config.data.cache_megabytes)
    return corpus, _crops(corpus, model, config)


def open_recordings_with_features(
    data: str | Path, model: LoSATokConfig, config: TrainConfig
) -> tuple[PairedCorpus, CropSource]:
    """The recordings in the shards ``data`` with the features stored beside them, and their batches: crops begin on a
    token.

    Raises:
        ConfigError: ``config.augment`` would change what the features should be, or ``config.data.balance`` does not
            fit.
        TrainingError: the shards do not fit ``model`` or hold no audio, no clip can be used, or all together do not
            fill a batch.
    """
    check_features_stay(config.augment, data, hears_power=model.semantic is None)
    corpus = open_paired(data, model, _multiple(model), config.data.cache_megabytes)
    return corpus, _crops(corpus, model, config)


def _multiple(model: LoSATokConfig) -> int:
    """Samples of one token of the semantic encoder, whose tokens are the longest: a clip needs at least one."""
    return max(model.samples_per_token, model.semantic_upsampling * model.samples_per_token)


def _crops(corpus: Corpus, model: LoSATokConfig, config: TrainConfig) -> CropSource:
    source = CropSource(
        corpus,
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        multiple=_multiple(model),
        augment=config.augment,
    )
    source.check_enough()
    return source


def open_features(data: str | Path, config: TrainConfig) -> tuple[TokenCorpus, CropSource]:
    """The teacher features in the shards ``data``, and their batches: crops lie on whole tokens.

    Raises:
        ConfigError: ``config.augment`` is on, which needs audio, or ``config.data.balance`` does not fit.
        TrainingError: no clip can be used, or all together do not fill a batch.
    """
    check_not_augmented(config.augment, data, FEATURES)
    corpus = open_tokens(data, FEATURES, config.data.cache_megabytes)
    source = CropSource(corpus, config.data, batch_size=config.batch_size, seed=config.seed, multiple=1)
    source.check_enough()
    return corpus, source


class RecordingStage:
    """Base of the stages that train a LoSATok model; each adds ``weights``, ``model_config``, ``build`` and ``losses``.

    Args:
        data: folder, manifest or shards of recordings; where :attr:`takes_features`, also shards of teacher features.
        config: of the run.
        device: to train on.
    """

    name: str
    takes_features = False
    """Whether the stage can learn from shards of teacher features."""
    needs_audio = True
    """Whether such shards have to hold the recordings as well."""

    def __init__(self, data: str | Path, config: TrainConfig, device: torch.device) -> None:
        self.data, self.config, self.device = data, config, device
        self.notes: tuple[str, ...] = ()
        self._model: LoSATok | None = None
        self._opened: list[tuple[str | Path, TokenCorpus | PairedCorpus]] = []

    def model_config(self) -> LoSATokConfig:
        """The configuration of the model that ``build`` will build."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """No more than configuration and corpus must be equal when a run goes on."""
        return {}

    def digest(self, corpus: Corpus) -> str:
        """A hash of the clips, with their domains where these decide how often a clip is drawn."""
        return corpus.digest(domains=self.config.data.balance.changes_shares)

    @staticmethod
    def read_config(values: dict[str, Any]) -> LoSATokConfig:
        """The model's configuration that a run wrote down."""
        return LoSATokConfig.from_dict(values)

    @staticmethod
    def blank(config: LoSATokConfig) -> LoSATok:
        """A model whose weights a checkpoint will replace."""
        return LoSATok(config)

    def open_data(self, data: str | Path, model: LoSATokConfig) -> tuple[Corpus, CropSource]:
        """Recordings or teacher features, to train on or to validate on, and their batches.

        Raises:
            TrainingError: there is no usable clip, too little for one batch, or data that the stage cannot learn from.
            ConfigError: ``augment`` or ``data.balance`` of the configuration does not fit the data.
        """
        kind = shards_kind(Path(data))
        if kind == LATENTS or (kind == FEATURES and not self.takes_features):
            raise TrainingError(f"{data} holds {kind}, and train {self.name} needs {self._needs()}")
        if kind != FEATURES:
            return open_recordings(data, model, self.config)
        corpus: TokenCorpus | PairedCorpus
        if self.needs_audio:
            corpus, source = open_recordings_with_features(data, model, self.config)
        else:
            corpus, source = open_features(data, self.config)
        if corpus.width != model.embed_dim:
            raise TrainingError(
                f"{data} holds features of {corpus.width} dimensions, and the model's teacher has "
                f"{model.embed_dim}; train with the teacher that computed them: {self._cure()}"
            )
        self._opened.append((data, corpus))
        return corpus, source

    def _needs(self) -> str:
        """What the stage learns from, for messages."""
        if not self.takes_features:
            return "recordings"
        command = f"`losatok precompute features{' --audio' if self.needs_audio else ''}`"
        return f"recordings, or teacher features: {command} writes them"

    def _cure(self) -> str:
        return "--init" if self.needs_audio else "--teacher or --init"

    def check_teacher(self, model: LoSATok) -> None:
        """Raise TrainingError where opened data, to train or to validate on, holds features of another teacher than
        that of ``model``."""
        if not self._opened:
            return
        own = Teacher("its own", model.semantic_encoder, model.config).fingerprint()
        for data, corpus in self._opened:
            if corpus.fingerprint != own:
                raise TrainingError(
                    f"{data} holds features of the teacher {corpus.fingerprint}, and the model to train has {own}; "
                    f"train with the teacher that computed them ({self._cure()}), or run losatok precompute again"
                )

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """The teacher's features of a batch, which it computes for recordings.

        Returns:
            (features [B, T, D], lengths [B] int64 in tokens, energy [B]): the energy is what ``ops.gram_energy`` gives
            for the features; None where it is stored for no row.
        """
        if not isinstance(batch, FeatureBatch):
            return (*self.model.teacher(recordings_of(batch).audio, batch.lengths), None)
        features, lengths = batch.features, batch.lengths.to(batch.features.device)
        partial = torch.isnan(batch.gram_energy)
        if bool(partial.all()):
            return features, lengths, None
        energy = batch.gram_energy.to(features.device)
        if bool(partial.any()):
            rows = partial.nonzero().squeeze(1).to(features.device)
            energy = energy.index_copy(0, rows, ops.gram_energy(features[rows], lengths[rows]))
        return features, lengths, energy

    def start(self, model: LoSATok) -> None:
        """Train the stage's part of ``model``, which is on the device."""
        model.train()
        model.train_only(self.name)
        self._model = model

    @property
    def model(self) -> LoSATok:
        """The model that trains."""
        assert self._model is not None
        return self._model
