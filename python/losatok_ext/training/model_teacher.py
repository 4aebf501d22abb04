"""The teacher that a model carries: its frozen semantic encoder, as whoever computes features once wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from losatok_ext.models import LoSATok
from losatok_ext.models.checkpoint import digest
from losatok_ext.training.folders import model_folder

_SETTINGS = ("sample_rate", "hop_length", "num_heads", "semantic_n_fft", "top_db", "chunk_frames")
# of a model's configuration, beside what the shapes of the weights tell


class Teacher(Protocol):
    """What computes features of audio, frozen."""

    sample_rate: int
    """Hz of the audio that it takes."""
    frame_rate: int
    """Features per second."""
    width: int
    """D."""
    fingerprint: str
    """Names it: equal weights and settings have one, others another."""
    precision: str
    """The dtype that it computes in."""

    def features(self, audio: Tensor, lengths: Tensor | Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """(features [B, T, D], lengths [B] int64 in features) of audio [B, N] with ``lengths`` [B] samples."""


class ModelTeacher:
    """The semantic encoder of a LoSATok model, as a :class:`Teacher`.

    Args:
        model: whose encoder it is; the bottleneck and all else do not matter.
    """

    def __init__(self, model: LoSATok) -> None:
        self.model = model
        self.sample_rate = model.config.sample_rate
        self.frame_rate = model.config.frame_rate // model.config.semantic_upsampling
        self.width = model.config.embed_dim
        self.fingerprint = teacher_fingerprint(model)
        self.precision = encoder_precision(model)

    def features(self, audio: Tensor, lengths: Tensor | Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`LoSATok.teacher`."""
        return self.model.teacher(audio, lengths)


def encoder_precision(model: LoSATok) -> str:
    """The dtype that the semantic encoder computes in, such as ``"bfloat16"``."""
    return str(model.semantic_encoder.patch_embed.weight.dtype).removeprefix("torch.")


def teacher_fingerprint(model: LoSATok) -> str:
    """16 hex digits of the semantic encoder's weights, rounded to bfloat16, and of the settings that it depends on."""
    settings = {name: getattr(model.config, name) for name in _SETTINGS}
    return digest(settings, model.semantic_encoder.state_dict())


def open_teacher(name_or_path: str | Path, device: str | torch.device = "cpu", dtype: str | None = None) -> Teacher:
    """The teacher of a model folder, or of the folder of a run.

    Args:
        name_or_path: the folder.
        device: to compute on.
        dtype: as for :meth:`LoSATok.from_pretrained`.

    Raises:
        CheckpointError: it holds no usable model.
    """
    return ModelTeacher(LoSATok.from_pretrained(model_folder(name_or_path), device, dtype))
