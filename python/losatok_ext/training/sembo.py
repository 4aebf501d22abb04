"""Stage one: the semantic bottleneck (SemBo) learns to compress a frozen teacher's features and to restore them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.training.config import TrainConfig
from losatok_ext.training.corpus import Corpus
from losatok_ext.training.data import Batch
from losatok_ext.training.presets import starting_config, starting_model
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
        return starting_config(self.config)

    def build(self, corpus: Corpus) -> LoSATok:
        """A model to start from: that of ``init``, or a new one of the preset, with ``teacher``'s weights if given.

        Raises:
            ConfigError, CheckpointError: as :meth:`model_config`; also where the weights of ``init`` or ``teacher``
                cannot be read, or do not fit the model.
        """
        model = starting_model(self.config)
        if self.config.teacher is None:
            return model
        rest = model.to_reference_state_dict()
        return LoSATok.from_reference_checkpoint(rest, model.config, semantic_encoder=Path(self.config.teacher))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Both losses of a batch, unweighted."""
        features, lengths = self.model.teacher(batch.audio, batch.lengths)
        return self.model.sembo_losses(features, lengths)
