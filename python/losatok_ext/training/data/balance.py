"""Which domain each crop is from: a function of the seed and the crop's number, so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from losatok_ext.errors import ConfigError
from losatok_ext.training.config.data_options import BalanceConfig

_DOMAINS = 2  # random stream of a seed; crops.py has the others
_BLOCK = 4096


@dataclass(frozen=True)
class DomainShare:
    """One domain of a corpus, and its share of the crops."""

    name: str
    """``""`` where clips have no domain."""
    clips: int
    seconds: float
    share: float
    """Its part of all crops, 0..1."""
    visits: int
    """Crops in one epoch of the domain, in which each clip comes once per crop of its length."""

    def epochs(self, crops: int) -> float:
        """Epochs of the domain in a run of ``crops`` crops."""
        return crops * self.share / self.visits


def domain_shares(visits: Mapping[str, int], config: BalanceConfig) -> dict[str, float]:
    """Each domain's share of the crops, together 1.

    Args:
        visits: domain -> crops in one epoch of it; mode ``proportional`` shares by these.
        config: how to share.

    Raises:
        ConfigError: the crops are to be shared among domains and no clip has one, or ``weights`` does not name exactly
            the domains of the data.
    """
    if not config.changes_shares:
        base: Mapping[str, float] = visits
    elif list(visits) == [""]:
        raise ConfigError(
            'data.balance shares crops among domains, and no clip names one: write "domain" into the manifest, put '
            "each domain in its own folder, or leave data.balance out"
        )
    elif config.mode == "weights":
        names = sorted(config.weights), sorted(visits)
        if names[0] != names[1]:
            raise ConfigError(
                f"data.balance.weights should name each domain of the data, {_listed(names[1])}; "
                f"it names {_listed(names[0])}"
            )
        base = config.weights
    else:
        base = visits if config.mode == "proportional" else dict.fromkeys(visits, 1.0)
    largest = max(base.values())  # so that a low temperature cannot overflow
    powers = {name: (base[name] / largest) ** (1 / config.temperature) for name in visits}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


class DomainSchedule:
    """Assigns crops to domains, in blocks with a fixed number of crops of each domain.

    Within a block the crops of a domain are spread evenly, so that any short run of crops has about the right shares.

    Args:
        shares: share of each domain, together 1; a domain with a share above 0 has at least one crop in a block.
        seed: of the order within a block.
    """

    def __init__(self, shares: Sequence[float], seed: int) -> None:
        self.seed = seed
        self.block = max(_BLOCK, 8 * len(shares))
        self.counts = _apportion(np.asarray(shares, dtype=np.float64), self.block)
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def place(self, number: int) -> tuple[int, int]:
        """(domain, number of earlier crops of that domain) of crop ``number``."""
        block, position = divmod(number, self.block)
        domains, ranks = self._deal(block)
        domain = int(domains[position])
        return domain, block * int(self.counts[domain]) + int(ranks[position])

    def _deal(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        dealt = self._blocks.get(block)
        if dealt is None:
            # The j-th of a domain's c crops lies at a random place of the j-th c-th part of the block.
            ranks = np.concatenate([np.arange(count) for count in self.counts])
            domains = np.repeat(np.arange(len(self.counts)), self.counts)
            jitter = np.random.default_rng([self.seed, _DOMAINS, block]).random(self.block)
            order = np.argsort((ranks + jitter) / self.counts[domains], kind="stable")
            dealt = domains[order], ranks[order]
            self._blocks = {**{b: d for b, d in self._blocks.items() if abs(b - block) <= 1}, block: dealt}
        return dealt


def _apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Integers in proportion to ``shares`` that add up to ``total`` (largest remainder method); at least 1 for a share
    above 0."""
    exact = shares * total
    counts = np.maximum(np.floor(exact), shares > 0).astype(np.int64)
    while counts.sum() != total:
        short = counts.sum() < total
        candidates = exact - counts if short else np.where(counts > 1, counts - exact, -np.inf)
        counts[int(np.argmax(candidates))] += 1 if short else -1
    return counts
