"""Stage three: train a diffusion transformer to generate a frozen tokenizer's latents, by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losatok_ext.errors import ConfigError, TrainingError, UserError
from losatok_ext.models import LoSATok
from losatok_ext.models.generator.dit_config import DiTConfig
from losatok_ext.models.generator.generator import Generator, GeneratorConfig
from losatok_ext.models.storage.folders import GENERATOR, TOKENIZER, open_folder
from losatok_ext.pretrained import DEFAULT
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.augment import check_not_augmented
from losatok_ext.training.data.batches import Batch, LatentBatch, pad_rows, recordings_of
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.data.latent_corpus import LatentCorpus, holds_latents, open_latents
from losatok_ext.training.data.statistics import RunningMoments, measure
from losatok_ext.training.data.token_corpus import TokenCorpus
from losatok_ext.training.stages.presets import notes_of_widening, read_in_float32, stored_dtypes
from losatok_ext.training.stages.recordings import open_recordings


class GeneratorStage:
    """Trains a :class:`Generator` on the loss ``flow_matching``.

    Recordings are encoded by the frozen tokenizer in each step; latent files and shards of latents are used as they
    are. The tokenizer is not in the run's checkpoints, only its fingerprint is.

    Args:
        data: folder, manifest or shards of recordings, or of latents.
        config: of the run.
        device: to train on.
    """

    name = "generator"
    paper_steps = 100_000

    def __init__(self, data: str | Path, config: TrainConfig, device: torch.device) -> None:
        self.data, self.config, self.device = Path(data), config, device
        self.weights = {"flow_matching": 1.0}
        self.notes: tuple[str, ...] = ()
        self._generator: Generator | None = None

    @cached_property
    def _latents(self) -> LatentCorpus | TokenCorpus | None:
        """The latents to train on; None where the data is recordings."""
        return open_latents(self.data, self.config.data.cache_megabytes) if holds_latents(self.data) else None

    @cached_property
    def tokenizer(self) -> LoSATok | None:
        """The frozen tokenizer on the run's device. Where none is named: the bundled one for recordings, None for
        latents.

        Raises:
            CheckpointError: it cannot be read.
        """
        name = self.config.generator.tokenizer
        if name is None:
            if self._latents is not None:
                return None
            name = DEFAULT
        folder = open_folder(name, TOKENIZER)
        model = LoSATok.from_pretrained(name).requires_grad_(False)
        stored = stored_dtypes(folder.weights)
        if "I8" not in stored:  # an int8 model is made for inference, which is all that is needed here
            model = model.to(torch.float32)
            self.notes += notes_of_widening(stored, f"tokenizer {name}", "computed in float32")
        return model.to(self.device).eval()

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the tokenizer whose latents are learned."""
        if self.tokenizer is not None:
            return self.tokenizer.fingerprint()
        assert self._latents is not None  # without a tokenizer only where there are latents
        return self._latents.fingerprint

    def _latent_dim(self) -> int:
        """d, the width of the latents."""
        return self._encoder(self.data).config.latent_dim if self._latents is None else self._latents.width

    def _encoder(self, data: object) -> LoSATok:
        """The tokenizer, to encode the recordings of ``data``.

        Raises:
            TrainingError: there is none, since the training data is latents and no tokenizer is named.
        """
        if self.tokenizer is None:
            raise TrainingError(
                f"{data} holds recordings, and the run trains on latents without a tokenizer to encode recordings; "
                "name it by generator.tokenizer, or give latents of the same tokenizer"
            )
        return self.tokenizer

    def model_config(self) -> GeneratorConfig:
        """The configuration in the folder ``init``, or that of the preset with the keys of ``model``.

        Raises:
            ConfigError: a key or value that does not fit, or a tokenizer that does not fit ``init``.
            CheckpointError: ``init`` or the tokenizer cannot be read.
        """
        options, values = self.config.generator, dict(self.config.model)
        dim = self._latent_dim()
        if self._latents is not None:
            self._check_fingerprint(self.data, self._latents)
        if self.config.init is not None:
            found = open_folder(self.config.init, GENERATOR).config(GeneratorConfig)
            if found.dit.tokenizer not in (None, self.fingerprint):
                raise ConfigError(
                    f"init: {self.config.init} generates latents of the tokenizer {found.dit.tokenizer}, and these are "
                    f"of {self.fingerprint}; start anew with preset, or use that tokenizer"
                )
            return found
        values = {"latent_dim": dim, "aligned_dim": dim + 1 if options.context else 0} | values
        values["tokenizer"] = self.fingerprint
        try:
            dit = DiTConfig.preset(self.config.preset or "base", **values)
            if dit.latent_dim != dim:
                raise ConfigError(f"latent_dim should be {dim}, the width of the tokenizer's latents, or left out")
            return GeneratorConfig(dit, options.flow, options.context)
        except ConfigError as error:
            raise ConfigError(f"model: {error}") from None

    def _check_fingerprint(self, data: object, corpus: LatentCorpus | TokenCorpus) -> None:
        """Raise TrainingError where the latents of ``data`` are of another tokenizer than the run's."""
        if corpus.fingerprint != self.fingerprint:
            ours = self.config.generator.tokenizer or self.data
            raise TrainingError(
                f"{data}: the latents are of model {corpus.fingerprint}, and {ours} is model {self.fingerprint}; pass "
                "the folder of that model, or encode the recordings again"
            )

    def facts(self) -> dict[str, Any]:
        """The tokenizer must be the same when a run goes on."""
        return {"tokenizer": self.fingerprint}

    @staticmethod
    def read_config(values: dict[str, Any]) -> GeneratorConfig:
        """The model's configuration that a run wrote down."""
        return GeneratorConfig.from_dict(values)

    @staticmethod
    def blank(config: GeneratorConfig) -> Generator:
        """A model whose weights a checkpoint will replace."""
        return Generator(config)

    def digest(self, corpus: Corpus) -> str:
        """A hash of the clips and their texts, with their domains where these decide how often a clip is drawn."""
        return corpus.digest(texts=True, domains=self.config.data.balance.changes_shares)

    def open_data(self, data: str | Path, model: GeneratorConfig) -> tuple[Corpus, CropSource]:
        """Recordings or latents, to train on or to validate on, and their batches.

        Raises:
            TrainingError: there is no usable clip, too little for one batch, latents of another tokenizer, or
                recordings without a tokenizer.
            ConfigError: ``augment`` or ``data.balance`` of the configuration does not fit the data.
        """
        config, data = self.config, Path(data)
        if not holds_latents(data):
            return open_recordings(data, self._encoder(data).config, config)
        check_not_augmented(config.augment, data, "latents")
        corpus = self._latents if data == self.data else open_latents(data, config.data.cache_megabytes)
        assert corpus is not None
        self._check_fingerprint(data, corpus)
        source = CropSource(corpus, config.data, batch_size=config.batch_size, seed=config.seed, multiple=1)
        source.check_enough()
        return corpus, source

    def build(self, corpus: Corpus) -> Generator:
        """A new generator with the mean and deviation of the corpus's latents, or that of ``init`` with its own.

        Raises:
            TrainingError: a clip's text is too long, or no latents can be measured.
            ConfigError: a key or value of ``model`` does not fit, or the weights of ``init`` are int8.
            CheckpointError: ``init`` cannot be read.
        """
        if self.config.init is not None:
            generator, notes = read_in_float32(Generator, self.config.init, "init")
            self.notes += notes
            generator.dit.set_latents(generator.dit.statistics.mean, generator.dit.statistics.std, self.fingerprint)
            _check_texts(generator, corpus)
            return generator
        torch.manual_seed(self.config.seed)
        generator = Generator(self.model_config())
        _check_texts(generator, corpus)
        moments = self._measure(corpus)
        generator.dit.set_latents(moments.mean, moments.std, self.fingerprint)
        return generator

    def _measure(self, corpus: Corpus) -> RunningMoments:
        """Mean and deviation of the latents of evenly chosen clips, of ``generator.statistics_seconds`` at most."""

        def latents(clip: Tensor) -> Tensor:
            return clip if self._latents is not None else self._encoder(self.data).encode(clip[None]).mu[0]

        return measure(corpus, self.config.generator.statistics_seconds, latents, "latents")

    def start(self, generator: Generator) -> None:
        """Train ``generator``, which is on the device."""
        self._generator = generator.train()

    @property
    def model(self) -> Generator:
        """The generator that trains."""
        assert self._generator is not None
        return self._generator

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The flow-matching loss of a batch of recordings or latents."""
        if isinstance(batch, LatentBatch):
            latents, lengths = batch.latents, batch.lengths
        else:
            encoded = self._encoder(self.data).encode(recordings_of(batch).audio, lengths=batch.lengths)
            latents, lengths = encoded.mu, encoded.lengths
        step_tokens = None
        if batch.step_lengths is not None:
            step_tokens = self._tokens(batch, batch.step_lengths)
            latents = pad_rows(latents, int(step_tokens.max()))
        options = self.config.generator
        texts = batch.texts if self.model.dit.config.text_dim else None
        loss = self.model.loss(
            latents, lengths, texts, masking=options.masking, dropout=options.dropout, all_lengths=step_tokens
        )
        return {"flow_matching": loss}

    def _tokens(self, batch: Batch, lengths: Tensor) -> Tensor:
        """Tokens [B] int64 of clips of ``lengths`` [B], in the unit of ``batch``: samples, or tokens already."""
        if isinstance(batch, LatentBatch):
            return lengths
        token_count = self._encoder(self.data).config.token_count
        return torch.tensor([token_count(n) for n in lengths.tolist()])

    def counts(self, batch: Batch, lengths: Tensor) -> Mapping[str, Tensor | None]:
        """The loss is a mean over the tokens to generate, which are drawn at random: it is weighted where they are
        drawn."""
        return {"flow_matching": None}


def _check_texts(generator: Generator, corpus: Corpus) -> None:
    """Raise TrainingError, before anything is trained, when a text is too long for the byte encoder."""
    encoder = generator.dit.text_encoder
    if encoder is None:
        return
    for clip in corpus.clips:
        try:
            encoder.tokens([clip.text])
        except UserError as error:
            raise TrainingError(f"{clip.path}: {error}") from None
