"""Stage three: a diffusion transformer learns to generate a frozen tokenizer's latents by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.errors import ConfigError, TrainingError, UserError
from losatok_ext.models import LoSATok
from losatok_ext.models.generator.dit_config import DiTConfig
from losatok_ext.models.generator.generator import Generator, GeneratorConfig
from losatok_ext.models.storage.folders import GENERATOR, open_folder
from losatok_ext.pretrained import DEFAULT
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.augment import check_not_augmented
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.data.crops import Batch, CropSource
from losatok_ext.training.data.latent_corpus import LatentCorpus, holds_latents, open_latents
from losatok_ext.training.data.statistics import RunningMoments, measure
from losatok_ext.training.data.token_corpus import TokenCorpus
from losatok_ext.training.stages.recordings import open_recordings


class GeneratorStage:
    """Trains a :class:`Generator` on ``flow_matching``. Recordings are encoded by the frozen tokenizer as they come;
    latent files are taken as they are. The tokenizer is no part of the run's checkpoints, its fingerprint is.

    Args:
        data: folder or manifest of recordings, or of latent files.
        config: of the run.
        device: to train on.
    """

    name = "generator"
    paper_steps = 100_000

    def __init__(self, data: str | Path, config: TrainConfig, device: torch.device) -> None:
        self.data, self.config, self.device = Path(data), config, device
        self.weights = {"flow_matching": 1.0}
        self._latents = holds_latents(self.data)
        self._generator: Generator | None = None

    @cached_property
    def tokenizer(self) -> LoSATok | None:
        """The frozen tokenizer on the run's device, for recordings the bundled one where none is named; None where
        latent files need none.

        Raises:
            CheckpointError: it cannot be read.
        """
        folder = self.config.generator.tokenizer
        if folder is None:
            if self._latents:
                return None
            folder = DEFAULT
        model = LoSATok.from_pretrained(folder).requires_grad_(False)
        return model.to(self.device).eval()

    @cached_property
    def _corpus(self) -> LatentCorpus | TokenCorpus:
        corpus = open_latents(self.data, self.config.data.cache_megabytes)
        tokenizer = self.tokenizer
        if tokenizer is not None and tokenizer.fingerprint() != corpus.fingerprint:
            raise TrainingError(
                f"{self.data}: the latents are of model {corpus.fingerprint}, and "
                f"{self.config.generator.tokenizer} is model {tokenizer.fingerprint()}; pass the folder of that model, "
                "or encode the recordings again"
            )
        return corpus

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer whose latents are learned."""
        return self._corpus.fingerprint if self.tokenizer is None else self.tokenizer.fingerprint()

    def model_config(self) -> GeneratorConfig:
        """What :meth:`build` will build: that of the folder ``init``, or of the preset with the keys of ``model``.

        Raises:
            ConfigError: a key or value that does not fit, or a tokenizer that does not fit ``init``.
            CheckpointError: ``init`` or the tokenizer cannot be read.
        """
        options, values = self.config.generator, dict(self.config.model)
        dim = self._corpus.width if self._latents else self._tokenizer_there().config.latent_dim
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

    def _tokenizer_there(self) -> LoSATok:
        tokenizer = self.tokenizer
        assert tokenizer is not None  # only latent files go without, and then it is not asked for
        return tokenizer

    def facts(self) -> dict[str, Any]:
        """What must be the same when a run goes on, besides the configuration."""
        return {"tokenizer": self.fingerprint}

    @staticmethod
    def read_config(values: dict[str, Any]) -> GeneratorConfig:
        """The configuration that a run wrote down."""
        return GeneratorConfig.from_dict(values)

    @staticmethod
    def blank(config: GeneratorConfig) -> Generator:
        """A model whose weights a checkpoint will replace."""
        return Generator(config)

    def digest(self, corpus: Corpus) -> str:
        """Of the clips and their texts: a run goes on with the same only."""
        return corpus.digest(texts=True, domains=self.config.data.balance.changes_shares)

    def open_data(self, model: GeneratorConfig) -> tuple[Corpus, CropSource]:
        """The corpus and its batches.

        Raises:
            TrainingError: no usable file, or latent files that do not fit together or the tokenizer.
        """
        config = self.config
        if not self._latents:
            return open_recordings(self.data, self._tokenizer_there().config, config)
        check_not_augmented(config.augment, self.data, "latents")
        source = CropSource(self._corpus, config.data, batch_size=config.batch_size, seed=config.seed, multiple=1)
        source.check_enough()
        return self._corpus, source

    def build(self, corpus: Corpus) -> Generator:
        """A new generator with the corpus's statistics, or that of ``init`` with its own.

        Raises:
            TrainingError: a clip's text is too long, or no latents can be measured.
            ConfigError, CheckpointError: as :meth:`model_config`.
        """
        if self.config.init is not None:
            generator = Generator.from_pretrained(self.config.init)
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
        """Moments of the latents of evenly chosen clips, ``generator.statistics_seconds`` of them at most."""

        def latents(clip: Tensor) -> Tensor:
            found, lengths = self._encode(clip[None], torch.tensor([len(clip)]))
            return found[0, : int(lengths[0])]

        return measure(corpus, self.config.generator.statistics_seconds, latents, "latents")

    def start(self, generator: Generator) -> None:
        """Train ``generator``, which is on the device."""
        self._generator = generator.train()

    @property
    def model(self) -> Generator:
        """The generator that trains."""
        assert self._generator is not None
        return self._generator

    def _encode(self, clips: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(latents [B, T, d], lengths [B]) of a batch of recordings or of latents."""
        if self._latents:
            return clips, lengths
        latents = self._tokenizer_there().encode(clips, lengths=lengths)
        return latents.mu, latents.lengths

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The flow-matching loss of a batch."""
        latents, lengths = self._encode(batch.audio, batch.lengths)
        whole = None
        if batch.whole is not None:
            whole = self._tokens(batch.whole)
            latents = F.pad(latents, (0, 0, 0, int(whole.max()) - latents.shape[1]))
        options = self.config.generator
        texts = batch.texts if self.model.dit.config.text_dim else None
        loss = self.model.loss(
            latents, lengths, texts, masking=options.masking, dropout=options.dropout, all_lengths=whole
        )
        return {"flow_matching": loss}

    def _tokens(self, lengths: Tensor) -> Tensor:
        """Tokens [B] of recordings of ``lengths`` [B] samples; of latents these are tokens already."""
        if self._latents:
            return lengths
        token_count = self._tokenizer_there().config.token_count
        return torch.tensor([token_count(n) for n in lengths.tolist()])

    def counts(self, batch: Batch, lengths: Tensor) -> Mapping[str, Tensor | None]:
        """The loss counts the tokens to generate, which are drawn: it is weighed where they are."""
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
