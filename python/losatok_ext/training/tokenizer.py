"""Stage two: acoustic encoder, latent and decoder learn to reconstruct, supervised by the frozen semantic branch."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.checkpoint import read_config
from losatok_ext.training.config import TrainConfig
from losatok_ext.training.corpus import Corpus
from losatok_ext.training.data import Batch
from losatok_ext.training.folders import model_folder
from losatok_ext.training.recordings import RecordingStage


class TokenizerStage(RecordingStage):
    """Trains all but the semantic branch on ``mel``, ``semantic_high``, ``semantic_low`` and ``kl``.

    Weights: arXiv 2605.27840 (45 mel + 45 (L_H + L_L) + 0.01 KL), without its adversarial terms.
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

    def model_config(self) -> LoSATokConfig:
        """That of the folder ``init``, which ``losatok train sembo`` wrote.

        Raises:
            ConfigError: there is no ``init``.
            CheckpointError: it cannot be read.
        """
        return read_config(_init(self.config))

    def build(self, corpus: Corpus) -> LoSATok:
        """The model of the folder ``init``. Raises as :meth:`model_config`."""
        return LoSATok.from_pretrained(_init(self.config))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch, unweighted; latents are sampled."""
        return self.model(batch.audio, batch.lengths, sample=True)


def _init(config: TrainConfig) -> Path:
    if config.init is None:
        raise ConfigError("train tokenizer needs init, the folder that train sembo wrote: --init DIR")
    return model_folder(config.init)
