"""Options of what is drawn from the data: how often each domain comes, and how crops are varied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from losatok_ext.training.config.typed import require


@dataclass(frozen=True)
class BalanceConfig:
    """How often crops come from each domain: in proportion to its length, equally, or as told.

    A clip's domain is ``"domain"`` in the manifest; in a folder the first folder on the way to the file.
    """

    mode: Literal["proportional", "equal", "weights"] = "proportional"
    """``proportional`` takes crops as there is audio, ``equal`` as many of each domain, ``weights`` as told there."""
    weights: dict[str, float] = field(default_factory=dict)
    """Domain -> its share of the crops, relative to the others (mode ``weights``); each domain needs one, 0 leaves it
    out."""
    temperature: float = 1.0
    """Shares are raised to 1 / temperature: above 1 they come nearer to each other, and small domains more often."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"data.balance.temperature should be positive, got {self.temperature}")
        weighted = self.mode == "weights"
        require(
            weighted == bool(self.weights),
            "data.balance.weights should name domains and their shares where data.balance.mode is weights, and be left "
            f"out elsewhere; mode is {self.mode} and weights are {self.weights}",
        )
        for name, weight in self.weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            require(
                isinstance(name, str) and number and 0 <= weight < float("inf"),
                f"data.balance.weights should be finite numbers of at least 0 by domain, got {name!r}: {weight!r}",
            )
        require(not weighted or any(self.weights.values()), "data.balance.weights should not all be 0")

    @property
    def changes_shares(self) -> bool:
        """Whether domains matter at all: else crops are taken as there is audio."""
        return self.mode != "proportional" or self.temperature != 1.0


@dataclass(frozen=True)
class AugmentConfig:
    """How crops of recordings are varied; nothing is by default.

    Each is applied with a probability of its own, in this order: another clip mixed in, gain, polarity. A crop that
    would exceed -1..1 by it is scaled down to that. Targets of a frozen teacher are computed on what results.
    """

    mix: float = 0.0
    """Probability of mixing another clip of the data in."""
    mix_snr_db: tuple[float, float] = (0.0, 20.0)
    """Level of the crop over that clip in dB, drawn evenly from this range."""
    gain: float = 0.0
    """Probability of a gain."""
    gain_db: tuple[float, float] = (-12.0, 6.0)
    """In dB, drawn evenly from this range."""
    polarity: float = 0.0
    """Probability of turning the waveform upside down."""

    def __post_init__(self) -> None:
        for name in ("mix", "gain", "polarity"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"augment.{name} should be a probability within 0..1, got {value}")
        for name in ("mix_snr_db", "gain_db"):
            low, high = getattr(self, name)
            require(
                -120 <= low <= high <= 120,
                f"augment.{name} should be two numbers of dB within -120..120, the lower first, got {[low, high]}",
            )

    @property
    def changes_audio(self) -> bool:
        """Whether anything is varied."""
        return max(self.mix, self.gain, self.polarity) > 0
