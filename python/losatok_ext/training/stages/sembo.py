"""Stage one: the semantic bottleneck (SemBo) learns to compress a frozen teacher's features and to restore them."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.storage.checkpoint import check_weights
from losatok_ext.models.teachers.registry import teacher_state
from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.data.batches import Batch
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.stages.presets import starting_config, starting_model
from losatok_ext.training.stages.recordings import RecordingStage
from losatok_ext.training.stages.views import SemBoView


class SemBoStage(SemBoView, RecordingStage):
    """Trains the model's ``bottleneck`` on ``sembo_reconstruction`` and ``sembo_relation``; its other weights do not
    change.

    Weights of the losses: arXiv 2605.27840 (1000 times reconstruction plus relation).
    """

    name = "sembo"
    takes_features = True
    needs_audio = False
    paper_steps = 100_000

    def __init__(self, data: str | Path, config: TrainConfig, device: torch.device) -> None:
        super().__init__(data, config, device)
        self.weights = {
            "sembo_reconstruction": config.sembo.reconstruction,
            "sembo_relation": config.sembo.relation,
        }

    @cached_property
    def _teacher(self) -> tuple[LoSATokConfig, dict[str, Tensor]]:
        assert self.config.teacher is not None
        return teacher_state(self.config.teacher, starting_config(self.config))

    def model_config(self) -> LoSATokConfig:
        """The configuration in the folder ``init``, or that of the preset with the keys of ``model`` and the encoder of
        ``teacher``.

        Raises:
            ConfigError: ``model`` holds a key or value that does not fit.
            CheckpointError, UserError: ``init`` or ``teacher`` cannot be read.
        """
        return self._nested(starting_config(self.config) if self.config.teacher is None else self._teacher[0])

    def _nested(self, model: LoSATokConfig) -> LoSATokConfig:
        """``model`` with the prefixes of the run's configuration, where there are any."""
        prefixes = self.config.sembo.prefixes
        if not prefixes:
            return model
        if prefixes[-1] > model.latent_dim:
            raise ConfigError(
                f"sembo.prefixes should lie within the {model.latent_dim} dimensions of the latent, got {prefixes[-1]}"
            )
        return dataclasses.replace(model, nested_dims=tuple(sorted({*prefixes, model.latent_dim})))

    def build(self, corpus: Corpus) -> LoSATok:
        """The model of ``init``, or a new one of the preset, with the weights of ``teacher`` where one is given.

        Raises:
            ConfigError: a value of the configuration does not fit, or the weights of ``init`` or ``teacher`` are int8.
            CheckpointError: ``init`` or ``teacher`` cannot be read, or the weights of ``teacher`` do not fit.
            TrainingError: the data holds features of another teacher.
        """
        model = self._new()
        model.config = self._nested(model.config)
        self.check_teacher(model)
        return model

    def _new(self) -> LoSATok:
        """The model, before the prefixes of the configuration are put into its own."""
        teacher = self.config.teacher
        if teacher is None:
            model, self.notes = starting_model(self.config)
            return model
        model_config, state = self._teacher
        if any(tensor.dtype == torch.int8 for tensor in state.values()):
            raise ConfigError(
                f"teacher {teacher}: its weights are int8, and the trained model holds the teacher in float32; give "
                "the model that the int8 one was made from"
            )
        torch.manual_seed(self.config.seed)
        model = LoSATok(model_config)
        encoder = model.semantic_encoder
        check_weights(encoder, state, teacher)
        encoder.load_state_dict(state)
        return model

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Both losses of a batch, unweighted."""
        features, lengths, energy = self.targets(batch)
        window = self.config.sembo.window
        energy = energy if window is None else None  # the stored energy is that of all pairs
        return self.model.sembo_losses(features, lengths, window=window, high_energy=energy)
