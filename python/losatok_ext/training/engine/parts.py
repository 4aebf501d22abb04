"""A step's batch, cut into the parts that are computed one after another, and the weight of each part."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from losatok_ext.errors import ConfigError
from losatok_ext.nn.noise import rows_of
from losatok_ext.training.data.batches import Batch
from losatok_ext.training.engine.distributed import Processes
from losatok_ext.training.stages.base import CountingStage, Stage

TRAINING, VALIDATION = 16, 17
"""Streams of random numbers of a run's seed; those of the data are below."""


@dataclass(frozen=True)
class Part:
    """Some rows of the batch of a step."""

    batch: Batch
    first: int
    """Number of its first row in the step's batch."""
    lengths: Tensor
    """[B] int64, the lengths of all rows of the step's batch."""
    index: int
    """Number of this part among the parts of all processes."""
    last: bool
    """Whether no other part of this process follows in the step."""

    def shares(self, stage: Stage) -> _Shares:
        """The weight of each loss of this part in the loss of the step's batch: its share of what the mean is over."""
        if len(self.lengths) == len(self.batch.lengths):
            return _Shares(1.0, {})
        own, all_ = self.batch.lengths, self.lengths
        counts: Mapping[str, Any] = {}
        if isinstance(stage, CountingStage):
            ours, everyone = stage.counts(self.batch, own), stage.counts(self.batch, all_)
            counts = {name: _ratio(own_, everyone[name]) for name, own_ in ours.items()}
        return _Shares(_ratio(own, all_), counts)

    @contextmanager
    def random(self, seed: int, stream: int, number: int) -> Iterator[None]:
        """Seed all global random generators for this part, and let ``losatok_ext.nn.noise`` draw the part's rows of the
        numbers for the step's batch. What a step draws depends only on the run's seed and the step."""
        own, common = (
            int(np.random.SeedSequence([seed, stream, number, part]).generate_state(1, np.uint64)[0] >> 1)
            for part in (self.index + 1, 0)
        )
        seed_everything(own)
        with rows_of(self.first, len(self.batch.lengths), len(self.lengths), common):
            yield


@dataclass(frozen=True)
class _Shares:
    default: float
    named: Mapping[str, float]

    def of(self, name: str) -> float:
        return self.named.get(name, self.default)


def _ratio(part: Tensor | None, everything: Tensor | None) -> float:
    if part is None or everything is None:
        return 1.0
    return float(part.sum()) / max(float(everything.sum()), 1.0)


def rows_of_process(batch_size: int, processes: Processes, accumulate: int) -> slice:
    """The rows of a step's batch that this process computes.

    Raises:
        ConfigError: the batch cannot be cut into ``processes.count * accumulate`` equal parts.
    """
    parts = processes.count * accumulate
    if batch_size % parts:
        raise ConfigError(
            f"batch_size {batch_size} cannot be cut into {parts} equal parts ({processes.count} processes x "
            f"optimizer.accumulate {accumulate}); make it a multiple of {parts}"
        )
    size = batch_size // processes.count
    return slice(processes.rank * size, (processes.rank + 1) * size)


def cut(batch: Batch, processes: Processes, accumulate: int, multiple: int) -> Iterator[Part]:
    """The parts of this process's rows ``batch``, on the device, padded to the longest row of all processes."""
    lengths = processes.joined(batch.lengths)
    longest = -(-int(lengths.max()) // multiple) * multiple
    batch = batch.padded(longest)
    size = len(batch.lengths) // accumulate
    for i in range(accumulate):
        rows = slice(i * size, (i + 1) * size)
        part = batch if accumulate == 1 else batch.rows(rows)
        index = processes.rank * accumulate + i
        if len(lengths) > size:
            part = dataclasses.replace(part, step_lengths=lengths)
        yield Part(part.to(processes.device), index * size, lengths, index, i == accumulate - 1)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
