"""What a step trains on: clips of recordings, of teacher features or of latents, padded to one length.

Each kind is a type of its own, and a stage asks for the type where it treats them differently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

B = TypeVar("B", bound="Batch")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What all kinds of batches have: B clips, in rows that are padded with zeros.

    The unit of lengths is samples in a :class:`RecordingBatch` and tokens in the others.
    """

    lengths: Tensor
    """[B] int64 on the CPU: the length of each row without padding."""
    names: tuple[str, ...]
    """The clips that the rows were taken from."""
    seconds: float
    """Seconds of audio in the batch, padding not counted."""
    texts: tuple[str, ...] = ()
    """The text of each clip, from the manifest or the folder's name; ``""`` where there is none."""
    labels: tuple[str, ...] = ()
    """The label of each clip for supervised training; ``""`` where there is none."""
    step_lengths: Tensor | None = None
    """[B'] int64: where this batch is only a part of a step's batch, the lengths of all rows of the step; else None."""

    def size(self) -> int:
        """Length of the padded rows, in the unit of :attr:`lengths`."""
        raise NotImplementedError

    def padded(self: B, size: int) -> B:
        """The batch with rows padded by zeros to ``size``; itself where they are that long already."""
        raise NotImplementedError

    def on_device(self) -> tuple[str, ...]:
        """Names of the tensors that :meth:`to` moves."""
        raise NotImplementedError

    def to(self: B, device: torch.device) -> B:
        """The batch with its large tensors on ``device``. Lengths stay on the CPU, where reading them costs no wait."""
        if device.type == "cpu":
            return self
        values = {name: getattr(self, name) for name in self.on_device()}
        moved = {n: v.pin_memory().to(device, non_blocking=True) for n, v in values.items() if v is not None}
        return dataclasses.replace(self, **moved)

    def rows(self: B, rows: slice) -> B:
        """The batch of some of its rows only; the padding stays."""
        count = len(self.lengths)
        taken: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "step_lengths" and isinstance(value, Tensor | tuple) and len(value) == count:
                taken[field.name] = value[rows]
        seconds = self.seconds * float(taken["lengths"].sum()) / max(float(self.lengths.sum()), 1.0)
        return dataclasses.replace(self, **taken, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class RecordingBatch(Batch):
    """Crops of recordings; lengths are samples."""

    audio: Tensor
    """[B, N] float32."""
    features: Tensor | None = None
    """[B, T, D] float32: the teacher's features of the same crops, where they are stored beside the recordings; T
    belongs to the padded N."""

    def size(self) -> int:
        """N, in samples."""
        return self.audio.shape[1]

    def padded(self, size: int) -> RecordingBatch:
        """See :meth:`Batch.padded`; the features are padded along."""
        if size <= self.size():
            return self
        features = self.features
        if features is not None:
            features = pad_rows(features, size * features.shape[1] // self.size())
        return dataclasses.replace(self, audio=pad_rows(self.audio, size), features=features)

    def on_device(self) -> tuple[str, ...]:
        """See :meth:`Batch.on_device`."""
        return ("audio", "features")


@dataclass(frozen=True, kw_only=True)
class FeatureBatch(Batch):
    """Crops of the stored features of a semantic teacher; lengths are tokens."""

    features: Tensor
    """[B, T, D] float32."""
    gram_energy: Tensor
    """[B] float32 on the CPU: what ``ops.gram_energy`` gives for the row; NaN where that is not stored, as the row is
    only a part of its clip."""

    def size(self) -> int:
        """T, in tokens."""
        return self.features.shape[1]

    def padded(self, size: int) -> FeatureBatch:
        """See :meth:`Batch.padded`."""
        return self if size <= self.size() else dataclasses.replace(self, features=pad_rows(self.features, size))

    def on_device(self) -> tuple[str, ...]:
        """See :meth:`Batch.on_device`."""
        return ("features",)


@dataclass(frozen=True, kw_only=True)
class LatentBatch(Batch):
    """Crops of the stored latents of a tokenizer; lengths are tokens."""

    latents: Tensor
    """[B, T, d] float32."""

    def size(self) -> int:
        """T, in tokens."""
        return self.latents.shape[1]

    def padded(self, size: int) -> LatentBatch:
        """See :meth:`Batch.padded`."""
        return self if size <= self.size() else dataclasses.replace(self, latents=pad_rows(self.latents, size))

    def on_device(self) -> tuple[str, ...]:
        """See :meth:`Batch.on_device`."""
        return ("latents",)


def recordings_of(batch: Batch) -> RecordingBatch:
    """``batch`` itself, where code takes recordings only; that it holds them was checked when its data was opened."""
    assert isinstance(batch, RecordingBatch), f"a {type(batch).__name__} holds no recordings"
    return batch


def pad_rows(rows: Tensor, size: int) -> Tensor:
    """``rows`` [B, N, ...] with zeros after them, to [B, ``size``, ...]."""
    return F.pad(rows, (0, 0) * (rows.dim() - 2) + (0, size - rows.shape[1]))


def stack_rows(rows: Sequence[Tensor], size: int) -> Tensor:
    """``rows`` [N, ...] of different lengths as one tensor [B, ``size``, ...] float32, with zeros after each."""
    stacked = torch.zeros(len(rows), size, *rows[0].shape[1:])
    for place, row in zip(stacked, rows, strict=True):
        place[: len(row)] = row
    return stacked
