"""Stage one: the semantic bottleneck (SemBo) learns to compress a frozen teacher's features and to restore them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.checkpoint import read_config
from losatok_ext.training.config import TrainConfig
from losatok_ext.training.corpus import Corpus
from losatok_ext.training.data import Batch
from losatok_ext.training.folders import model_folder
from losatok_ext.training.recordings import RecordingStage


class SemBoStage(RecordingStage):
    """Trains the model's ``bottleneck`` on ``sembo_reconstruction`` and ``sembo_relation``; all else stays as it is.

    Weights: arXiv 2605.27840 (1000 times reconstruction plus relation).
    """

    name = "sembo"
    paper_steps = 100_000

    def __init__(self, data: str | Path, config: TrainConfig) -> None:
        super().__init__(data, config)
        self.weights = {
            "sembo_reconstruction": config.sembo.reconstruction,
            "sembo_relation": config.sembo.relation,
        }

    def model_config(self) -> LoSATokConfig:
        """What :meth:`build` will build: that of the folder ``init``, or of the preset with the keys of ``model``.

        Raises:
            ConfigError: ``model`` holds a key or value that does not fit.
            CheckpointError: ``init`` cannot be read.
        """
        config = self.config
        if config.init is not None:
            return read_config(model_folder(config.init))
        try:
            return LoSATokConfig.preset(config.preset or "base", **config.model)
        except ConfigError as error:
            raise ConfigError(f"model: {error}") from None

    def build(self, corpus: Corpus) -> LoSATok:
        """A model to start from: that of ``init``, or a new one of the preset, with ``teacher``'s weights if given.

        Raises:
            ConfigError, CheckpointError: as :meth:`model_config`; also where the weights of ``init`` or ``teacher``
                cannot be read, or do not fit the model.
        """
        config = self.config
        if config.init is not None:
            return LoSATok.from_pretrained(model_folder(config.init))
        model_config = self.model_config()
        torch.manual_seed(config.seed)
        model = LoSATok(model_config)
        if config.teacher is None:
            return model
        rest = model.to_reference_state_dict()
        return LoSATok.from_reference_checkpoint(rest, model_config, semantic_encoder=Path(config.teacher))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Both losses of a batch, unweighted."""
        features, lengths = self.model.teacher(batch.audio, batch.lengths)
        return self.model.sembo_losses(features, lengths)
