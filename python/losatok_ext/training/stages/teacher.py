"""Stage zero: train a semantic teacher, as a masked autoencoder on unlabelled recordings."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.teachers.masked_autoencoder import MaskedAutoencoder
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.batches import Batch, recordings_of
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.data.statistics import measure
from losatok_ext.training.stages.presets import starting_config, starting_model
from losatok_ext.training.stages.recordings import RecordingStage
from losatok_ext.training.stages.views import semantic_tokens


class TeacherStage(RecordingStage):
    """Trains the semantic encoder of a model on the loss ``masked``; ``train sembo --init`` takes the model folder that
    the run leaves.

    Mean and deviation of the mel bins are measured first, unless the encoder starts from ``init``.
    """

    name = "teacher"
    paper_steps = 400_000
    """Long enough for the base size on some thousand hours; the paper of LoSATok trains no teacher."""

    def __init__(self, data: str | Path, config: TrainConfig, device: torch.device) -> None:
        super().__init__(data, config, device)
        self.weights = {"masked": 1.0}

    def model_config(self) -> LoSATokConfig:
        """The configuration in the folder ``init``, or that of the preset with the keys of ``model``.

        Raises:
            ConfigError: ``model`` holds a key or value that does not fit, or a crop is longer than the encoder sees.
            CheckpointError: ``init`` cannot be read.
        """
        config = starting_config(self.config)
        longest = config.chunk_frames * config.hop_length / config.sample_rate
        if self.config.data.crop_seconds > longest:
            raise ConfigError(
                f"data.crop_seconds is {self.config.data.crop_seconds:g}, and the semantic encoder sees {longest:g} s "
                "at once; use a shorter crop"
            )
        if config.semantic is not None:
            raise ConfigError(
                f"{self.config.init}: its encoder is a model of transformers, which train teacher cannot train"
            )
        if self.config.teacher is not None:
            raise ConfigError("train teacher takes no teacher: it trains one; to go on from a model, use init")
        return config

    def build(self, corpus: Corpus) -> MaskedAutoencoder:
        """The model to start from; a new one with the mel statistics of the corpus.

        Raises:
            ConfigError: the weights of ``init`` are int8.
            CheckpointError: ``init`` cannot be read.
            TrainingError: no mel statistics can be measured in the recordings.
        """
        tokenizer, self.notes = starting_model(self.config)
        model = self._autoencoder(tokenizer)
        if self.config.init is None:
            encoder = model.encoder

            def frames(clip: Tensor) -> Tensor:
                patches, tokens = encoder.patches(clip[None], torch.tensor([len(clip)]))
                return patches[0, : int(tokens[0])].transpose(1, 2).flatten(0, 1)

            moments = measure(corpus, self.config.masked_autoencoder.statistics_seconds, frames, "mel bins")
            encoder.batch_norm.running_mean.copy_(moments.mean)
            encoder.batch_norm.running_var.copy_(moments.std.square())
        return model

    def blank(self, config: LoSATokConfig) -> MaskedAutoencoder:  # type: ignore[override]
        """A model whose weights a checkpoint will replace."""
        return self._autoencoder(LoSATok(config))

    def _autoencoder(self, tokenizer: LoSATok) -> MaskedAutoencoder:
        options, config = self.config.masked_autoencoder, tokenizer.config
        return MaskedAutoencoder(
            tokenizer,
            options.decoder_dim or max(config.embed_dim // 2, 1),
            options.decoder_depth or max(config.depth // 4, 1),
        )

    def start(self, model: MaskedAutoencoder) -> None:  # type: ignore[override]
        """Train ``model``, which is on the device."""
        self._training = model.train()

    @property
    def model(self) -> MaskedAutoencoder:  # type: ignore[override]
        """The autoencoder that trains."""
        return self._training

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The unweighted loss ``masked`` of a batch of recordings."""
        options = self.config.masked_autoencoder
        return self.model(recordings_of(batch).audio, batch.lengths, options.mask_ratio, options.normalise)

    def counts(self, batch: Batch, lengths: Tensor) -> dict[str, Tensor]:
        """The loss is a mean over the hidden tokens."""
        tokens = semantic_tokens(batch, lengths, self.model.tokenizer.config)
        hidden = (tokens * self.config.masked_autoencoder.mask_ratio).long()
        return {"masked": torch.minimum(hidden, (tokens - 1).clamp(min=0))}
