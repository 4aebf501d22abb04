"""Batches of random crops, each a pure function of seed and step: resuming needs no state, workers change nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from losatok_ext.errors import TrainingError
from losatok_ext.training.config.data_options import AugmentConfig
from losatok_ext.training.config.options import DataConfig
from losatok_ext.training.data.augment import draw_variation, vary
from losatok_ext.training.data.balance import DomainSchedule, DomainShare, domain_shares
from losatok_ext.training.data.batches import Batch
from losatok_ext.training.data.corpus import BAD_FILES, Clip, Corpus, Crop

MAX_UNREADABLE = 16
_ORDER, _CROP = 0, 1  # separate random streams of one seed; balance.py has 2
_DOMAIN_ORDER, _VARIATION = 3, 4


class CropSource:
    """Draws batches of random crops from a corpus.

    An epoch visits every clip once per ``crop_seconds`` of its length (at least once), in an order shuffled by seed and
    epoch; each visit takes a crop at a random place. Clips shorter than a crop are used completely. With
    ``config.balance`` each domain has its own epochs, and crops are assigned to domains by their shares. A file
    that cannot be read is noted in :attr:`unreadable`, and the next clip of the order is used instead.

    Args:
        corpus: the clips.
        config: length of crops, threads that read ahead, shares of domains.
        batch_size: crops per batch.
        seed: of the order, of the crops and of how they are varied.
        multiple: batches are padded to a multiple of so many samples (the model's hop; where features are stored,
            samples between their frames).
        augment: how crops are varied; None: not at all.

    Raises:
        ConfigError: ``config.balance`` does not fit the domains of the corpus.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        multiple: int,
        augment: AugmentConfig | None = None,
    ) -> None:
        self.corpus = corpus
        self.config = config
        self.batch_size = batch_size
        self.seed = seed
        self.crop = max(round(config.crop_seconds * corpus.sample_rate / multiple), 1) * multiple
        self.multiple = multiple
        self.workers = 0 if corpus.audio is not None else config.workers
        self.augment = augment if augment is not None and augment.changes_audio else None
        self.unreadable: dict[str, str] = {}
        samples = np.array([clip.samples for clip in corpus.clips], dtype=np.int64)
        visits = np.maximum(samples // self.crop, 1)
        domains = np.array([clip.domain for clip in corpus.clips])
        members = {str(name): np.flatnonzero(domains == name) for name in np.unique(domains)}
        shares = domain_shares({name: int(visits[where].sum()) for name, where in members.items()}, config.balance)
        self.domains = tuple(
            DomainShare(
                name,
                len(members[name]),
                float(samples[members[name]].sum()) / corpus.sample_rate,
                share,
                int(visits[members[name]].sum()),
            )
            for name, share in shares.items()
        )
        """The domains of the corpus in the order of their names, with the share of each."""
        self._schedule: DomainSchedule | None = None
        if config.balance.changes_shares:
            self._schedule = DomainSchedule(list(shares.values()), seed)
            groups = list(members.values())
        else:
            groups = [np.arange(len(samples))]
        self._visits = [np.repeat(group, visits[group]) for group in groups]
        used = [self._visits[g] for g in range(len(groups)) if self._schedule is None or self._schedule.counts[g]]
        self._all_visits = used[0] if len(used) == 1 else np.concatenate(used)
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def over(self, corpus: Corpus, augmented: bool) -> CropSource:
        """A source of other clips with the same settings; ``augmented`` says whether its crops are varied."""
        return CropSource(
            corpus,
            self.config,
            batch_size=self.batch_size,
            seed=self.seed,
            multiple=self.multiple,
            augment=self.augment if augmented else None,
        )

    @property
    def steps_per_epoch(self) -> float:
        """Batches in one epoch; with shares by domain, of the domain whose epoch is the longest."""
        if self._schedule is None:
            return len(self._all_visits) / self.batch_size
        return max(domain.visits / domain.share for domain in self.domains if domain.share) / self.batch_size

    def check_enough(self) -> None:
        """Raise TrainingError where the clips do not fill one batch, which would then hold some of them twice."""
        crops = len(self._all_visits)
        if crops < self.batch_size:
            raise TrainingError(
                f"the data makes {crops} crops of {self.crop / self.corpus.sample_rate:g} s, too little for one batch "
                f"of {self.batch_size}: add recordings, or lower batch_size or data.crop_seconds"
            )

    def _order(self, group: int, epoch: int) -> np.ndarray:
        order = self._orders.get((group, epoch))
        if order is None:
            stream = [_ORDER, epoch] if self._schedule is None else [_DOMAIN_ORDER, group, epoch]
            order = np.random.default_rng([self.seed, *stream]).permutation(self._visits[group])
            near = {k: o for k, o in self._orders.items() if k[0] != group or abs(k[1] - epoch) <= 1}
            self._orders = {**near, (group, epoch): order}
        return order

    def _crop_of(self, number: int) -> Crop:
        """Crop ``number``, counted from the start of training."""
        group, rank = (0, number) if self._schedule is None else self._schedule.place(number)
        epoch, position = divmod(rank, len(self._visits[group]))
        order = self._order(group, epoch)
        place = float(np.random.default_rng([self.seed, _CROP, number]).random())
        audio, features, clip = self._read(order, position, self.crop, place)
        if self.augment is None:
            return Crop(audio, clip, len(audio) == clip.samples, features)
        variation = draw_variation(self.augment, np.random.default_rng([self.seed, _VARIATION, number]))
        other = None
        if variation.snr_db is not None:
            which, where, _ = variation.other
            other, *_ = self._read(self._all_visits, int(which * len(self._all_visits)), len(audio), where)
        return Crop(vary(audio, variation, other), clip, False, features)

    def _read(self, order: np.ndarray, position: int, samples: int, place: float) -> tuple[Tensor, Tensor | None, Clip]:
        """(crop, its stored features or None, its clip) of the clip at ``position`` of ``order``, or of the first clip
        after it that can be read."""
        for attempt in range(MAX_UNREADABLE):
            index = int(order[(position + attempt) % len(order)])
            clip = self.corpus.clips[index]
            try:
                return self.corpus.crop(index, samples, place), self.corpus.features(index, samples, place), clip
            except BAD_FILES as error:
                self.unreadable[clip.name] = str(error)
        last = list(self.unreadable.values())[-1]
        raise TrainingError(f"{MAX_UNREADABLE} files in a row cannot be read, the last: {last}")

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of one step; it depends on nothing but the corpus, the seed, the crop length and the batch size.

        Args:
            step: from 0.
            rows: read and return only these rows of it, as one of several processes does. The crops are those of the
                complete batch, but padded to the longest of these rows.

        Raises:
            ValueError: ``rows`` holds none of the batch's crops.
            TrainingError: 16 files in a row cannot be read.
        """
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)[rows or slice(None)]
        if not numbers:
            raise ValueError(f"rows should hold some of the {self.batch_size} crops of a batch, got {rows}")
        crops = [self._crop_of(number) for number in numbers]
        lengths = torch.tensor([len(crop.values) for crop in crops])
        longest = -(-int(lengths.max()) // self.multiple) * self.multiple
        return self.corpus.batch(crops, lengths, longest)

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
