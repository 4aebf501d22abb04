"""What the stages that train a LoSATok model on recordings share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.training.config import TrainConfig
from losatok_ext.training.corpus import Corpus, open_corpus
from losatok_ext.training.data import CropSource


def open_recordings(data: str | Path, model: LoSATokConfig, config: TrainConfig) -> tuple[Corpus, CropSource]:
    """The recordings of ``data`` at the rate of ``model``, and their batches.

    Raises:
        TrainingError: no recording can be used.
    """
    # A clip needs one token of the semantic encoder, which sees the most audio at once.
    multiple = max(model.samples_per_token, model.semantic_upsampling * model.samples_per_token)
    corpus = open_corpus(data, model.sample_rate, multiple, config.data.cache_megabytes)
    return corpus, CropSource(corpus, config.data, batch_size=config.batch_size, seed=config.seed, multiple=multiple)


class RecordingStage:
    """Base of those stages; each adds ``weights``, ``model_config``, ``build`` and ``losses``.

    Args:
        data: folder or manifest of recordings.
        config: of the run.
    """

    name: str

    def __init__(self, data: str | Path, config: TrainConfig) -> None:
        self.data, self.config = data, config
        self._model: LoSATok | None = None

    def model_config(self) -> LoSATokConfig:
        """What ``build`` will build."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What must be the same when a run goes on, besides configuration and corpus: nothing."""
        return {}

    def digest(self, corpus: Corpus) -> str:
        """Of what is learned from ``corpus``: a run goes on with the same only."""
        return corpus.digest()

    @staticmethod
    def read_config(values: dict[str, Any]) -> LoSATokConfig:
        """The configuration that a run wrote down."""
        return LoSATokConfig.from_dict(values)

    @staticmethod
    def blank(config: LoSATokConfig) -> LoSATok:
        """A model whose weights a checkpoint will replace."""
        return LoSATok(config)

    def open_data(self, model: LoSATokConfig) -> tuple[Corpus, CropSource]:
        """The corpus and its batches. Raises as :func:`open_recordings`."""
        return open_recordings(self.data, model, self.config)

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
