"""Stage two: acoustic encoder, latent and decoder learn to reconstruct, supervised by the frozen semantic branch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.checkpoint import read_config
from losatok_ext.nn.quantizers import QuantizerConfig, quantizer_config
from losatok_ext.training.config import TrainConfig
from losatok_ext.training.corpus import Corpus
from losatok_ext.training.data import Batch
from losatok_ext.training.folders import model_folder
from losatok_ext.training.recordings import RecordingStage
from losatok_ext.training.views import TokenizerView


class TokenizerStage(TokenizerView, RecordingStage):
    """Trains all but the semantic branch on ``mel``, ``semantic_high``, ``semantic_low`` and ``kl``.

    Weights: arXiv 2605.27840 (45 mel + 45 (L_H + L_L) + 0.01 KL), without its adversarial terms. With a quantizer it
    is the mean of the posterior that is quantized and decoded, as in inference, and ``quantizer`` is added.
    """

    name = "tokenizer"
    paper_steps = 1_000_000

    def __init__(self, data: str | Path, config: TrainConfig) -> None:
        super().__init__(data, config)
        weights = config.tokenizer
        self.weights = {
            "mel": weights.mel,
            "semantic_high": weights.semantic_high,
            "semantic_low": weights.semantic_low,
            "kl": weights.kl,
        }

    def start(self, model: LoSATok) -> None:
        """Train the stage's part of ``model``, and its quantizer where it has one."""
        super().start(model)
        if model.quantizer is not None:
            self.weights["quantizer"] = self.config.tokenizer.quantizer

    def model_config(self) -> LoSATokConfig:
        """That of the folder ``init``, which ``losatok train sembo`` wrote, with the quantizer of the configuration.

        Raises:
            ConfigError: there is no ``init``, or ``quantizer`` holds a key or value that does not fit.
            CheckpointError: the folder cannot be read.
        """
        ours = read_config(_init(self.config))
        quantizer = _quantizer(self.config)
        return ours if quantizer is None else dataclasses.replace(ours, quantizer=quantizer)

    def build(self, corpus: Corpus) -> LoSATok:
        """The model of the folder ``init``, with a new quantizer where the configuration has one.

        Raises as :meth:`model_config`.
        """
        model = LoSATok.from_pretrained(_init(self.config))
        quantizer = _quantizer(self.config)
        if quantizer is None:
            return model
        torch.manual_seed(self.config.seed)
        return model.with_quantizer(quantizer)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The losses of a batch, unweighted; latents are sampled, unless they are quantized."""
        return self.model(batch.audio, batch.lengths, sample=self.model.quantizer is None)


def _quantizer(config: TrainConfig) -> QuantizerConfig | None:
    if not config.quantizer:
        return None
    try:
        return quantizer_config(config.quantizer)
    except ConfigError as error:
        raise ConfigError(f"quantizer: {error}") from None


def _init(config: TrainConfig) -> Path:
    if config.init is None:
        raise ConfigError("train tokenizer needs init, the folder that train sembo wrote: --init DIR")
    return model_folder(config.init)
