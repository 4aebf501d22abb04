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
from losatok_ext.training.data import Batch
from losatok_ext.training.folders import model_folder


class TokenizerStage:
    """Trains all but the semantic branch on ``mel``, ``semantic_high``, ``semantic_low`` and ``kl``.

    Weights: arXiv 2605.27840 (45 mel + 45 (L_H + L_L) + 0.01 KL), without its adversarial terms. With a quantizer it
    is the mean of the posterior that is quantized and decoded, as in inference, and ``quantizer`` is added.
    """

    name = "tokenizer"
    paper_steps = 1_000_000

    def __init__(self, model: LoSATok, config: TrainConfig) -> None:
        self.model = model
        weights = config.tokenizer
        self.weights = {
            "mel": weights.mel,
            "semantic_high": weights.semantic_high,
            "semantic_low": weights.semantic_low,
            "kl": weights.kl,
        }
        if model.quantizer is not None:
            self.weights["quantizer"] = weights.quantizer
        model.train()
        model.train_only("tokenizer")

    @staticmethod
    def model_config(config: TrainConfig) -> LoSATokConfig:
        """That of the folder ``init``, which ``losatok train sembo`` wrote, with the quantizer of ``config``.

        Raises:
            ConfigError: there is no ``init``, or ``quantizer`` holds a key or value that does not fit.
            CheckpointError: the folder cannot be read.
        """
        ours = read_config(_init(config))
        quantizer = _quantizer(config)
        return ours if quantizer is None else dataclasses.replace(ours, quantizer=quantizer)

    @staticmethod
    def build(config: TrainConfig) -> LoSATok:
        """The model of the folder ``init``, with a new quantizer where ``config`` has one.

        Raises as :meth:`model_config`.
        """
        model = LoSATok.from_pretrained(_init(config))
        quantizer = _quantizer(config)
        if quantizer is None:
            return model
        torch.manual_seed(config.seed)
        return model.with_quantizer(quantizer)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
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
