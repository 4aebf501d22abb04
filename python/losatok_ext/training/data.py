"""Batches of random crops, each a pure function of seed and step: resuming needs no state, workers change nothing."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from losatok_ext.errors import AudioFileError, LatentFileError, TrainingError
from losatok_ext.training.corpus import Clip, Corpus
from losatok_ext.training.options import DataConfig

MAX_UNREADABLE = 16
_ORDER, _CROP = 0, 1  # separate random streams of one seed


@dataclass(frozen=True)
class Batch:
    """Crops padded with zeros to the longest: ``audio`` [B, N] float32 and ``lengths`` [B] int64 (samples).

    Of a corpus of latent files ``audio`` holds latents [B, T, d], and lengths are tokens.
    """

    audio: Tensor
    lengths: Tensor
    names: tuple[str, ...]
    """The clips that the crops were taken from."""
    seconds: float
    """Audio in the batch, padding not counted."""
    texts: tuple[str, ...] = ()
    """What the clips' manifest or folder says of them; ``""`` is nothing."""
    whole: Tensor | None = None
    """[B'] int64, lengths of all crops of the step's batch, of which these are some; None: these are all."""

    def to(self, device: torch.device) -> Batch:
        """The batch with its audio on ``device``; lengths stay on the CPU, where the model reads them at once."""
        if device.type == "cpu":
            return self
        return dataclasses.replace(self, audio=self.audio.pin_memory().to(device, non_blocking=True))


class CropSource:
    """Draws batches of random crops from a corpus.

    An epoch visits every clip once per ``crop_seconds`` of its length (at least once), in an order shuffled by seed and
    epoch; each visit takes a crop at a random place. Clips shorter than a crop are taken whole. A file that turns out
    unreadable is noted in :attr:`unreadable` and the next clip of the order stands in for it.

    Args:
        corpus: the clips.
        config: length of crops, threads that read ahead.
        batch_size: crops per batch.
        seed: of the order and of the crops.
        multiple: batches are padded to a multiple of so many samples (the model's hop).
    """

    def __init__(self, corpus: Corpus, config: DataConfig, *, batch_size: int, seed: int, multiple: int) -> None:
        self.corpus = corpus
        self.config = config
        self.batch_size = batch_size
        self.seed = seed
        self.crop = max(round(config.crop_seconds * corpus.sample_rate / multiple), 1) * multiple
        self.multiple = multiple
        self.workers = 0 if corpus.audio is not None else config.workers
        self.unreadable: dict[str, str] = {}
        samples = np.array([clip.samples for clip in corpus.clips], dtype=np.int64)
        self._visits = np.repeat(np.arange(len(samples)), np.maximum(samples // self.crop, 1))
        self._orders: dict[int, np.ndarray] = {}

    def over(self, corpus: Corpus) -> CropSource:
        """The same source of other clips."""
        return CropSource(corpus, self.config, batch_size=self.batch_size, seed=self.seed, multiple=self.multiple)

    @property
    def steps_per_epoch(self) -> float:
        """Batches until every clip was visited in proportion to its length."""
        return len(self._visits) / self.batch_size

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self._visits)
            self._orders = {**{e: o for e, o in self._orders.items() if abs(e - epoch) <= 1}, epoch: order}
        return order

    def _crop_of(self, number: int) -> tuple[Tensor, Clip]:
        """Crop ``number``, counted from the start of training."""
        epoch, position = divmod(number, len(self._visits))
        for attempt in range(MAX_UNREADABLE):
            order = self._order(epoch)
            index = int(order[(position + attempt) % len(order)])
            clip = self.corpus.clips[index]
            place = float(np.random.default_rng([self.seed, _CROP, number]).random())
            try:
                return self.corpus.crop(index, self.crop, place), clip
            except (AudioFileError, LatentFileError) as error:
                self.unreadable[clip.name] = str(error)
        last = list(self.unreadable.values())[-1]
        raise TrainingError(f"{MAX_UNREADABLE} files in a row cannot be read, the last: {last}")

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of ``step`` (from 0): always the same one for the same corpus, seed, crop length and batch size.

        Args:
            step: which.
            rows: only these of its crops are read and returned, which is what one of several processes takes of a
                common batch. The crops are the same as in the whole batch, but padded to the longest of these rows.

        Raises:
            TrainingError: 16 files in a row cannot be read.
        """
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)[rows or slice(None)]
        crops = [self._crop_of(number) for number in numbers]
        lengths = torch.tensor([len(audio) for audio, _ in crops])
        longest = -(-int(lengths.max()) // self.multiple) * self.multiple
        audio = torch.zeros(len(crops), longest, *crops[0][0].shape[1:])
        for row, (samples, _) in zip(audio, crops, strict=True):
            row[: len(samples)] = samples
        seconds = int(lengths.sum()) / self.corpus.sample_rate
        clips = [clip for _, clip in crops]
        return Batch(audio, lengths, tuple(c.name for c in clips), seconds, tuple(c.text for c in clips))

    def batches(self, start: int, stop: int, rows: slice | None = None) -> Iterator[Batch]:
        """The batches of steps ``start`` to ``stop - 1``, read ahead by threads where the corpus is not in memory.

        ``rows`` as in :meth:`batch`.
        """
        make = partial(self.batch, rows=rows)
        if self.workers == 0:
            yield from map(make, range(start, stop))
            return
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for step in range(start, stop):
                pending.append(pool.submit(make, step))
                if len(pending) > 2 * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
