"""Options of what is drawn from the data: how often each domain comes, and how crops are varied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from losatok_ext.configuration import Configuration, NonNegative, Positive, Range, Share

Decibels = Annotated[float, Range(-120, 120)]


@dataclass(frozen=True)
class BalanceConfig(Configuration):
    """How often crops come from each domain: in proportion to its length, equally, or by given weights.

    A clip's domain is ``"domain"`` in the manifest; in a folder it is the first folder on the way to the file.
    """

    mode: Literal["proportional", "equal", "weights"] = "proportional"
    """``proportional``: each domain as often as there is audio of it. ``equal``: all domains equally often.
    ``weights``: by ``weights``."""
    weights: dict[str, NonNegative] = field(default_factory=dict)
    """Domain -> its share of the crops, relative to the others (mode ``weights``). Each domain needs one, and one of
    them is above 0."""
    temperature: Positive = 1.0
    """Shares are raised to 1 / temperature. Above 1 small domains come more often."""

    def _check_fit(self) -> None:
        weighted = self.mode == "weights"
        self._require(
            weighted == bool(self.weights), "weights", "given where mode is 'weights', and left out for other modes"
        )
        self._require(not weighted or any(self.weights.values()), "weights", "above 0 for at least one domain")

    @property
    def changes_shares(self) -> bool:
        """Whether domains change how often a clip is drawn."""
        return self.mode != "proportional" or self.temperature != 1.0


@dataclass(frozen=True)
class AugmentConfig(Configuration):
    """How crops of recordings are varied. By default they are not.

    Each change is applied with a probability of its own, in this order: another clip mixed in, gain, polarity. A crop
    that would exceed -1..1 is then scaled down to it. Targets of a frozen teacher are computed on the changed crop.
    """

    mix: Share = 0.0
    """Probability of mixing another clip of the data in."""
    mix_snr_db: tuple[Decibels, Decibels] = (0.0, 20.0)
    """Level of the crop over that clip in dB, drawn evenly from this range."""
    gain: Share = 0.0
    """Probability of a gain."""
    gain_db: tuple[Decibels, Decibels] = (-12.0, 6.0)
    """The gain in dB, drawn evenly from this range."""
    polarity: Share = 0.0
    """Probability of inverting the sign of the waveform."""

    def _check_fit(self) -> None:
        for name in ("mix_snr_db", "gain_db"):
            low, high = getattr(self, name)
            self._require(low <= high, name, "two numbers of dB, the lower first")

    @property
    def changes_audio(self) -> bool:
        """Whether any crop is varied."""
        return max(self.mix, self.gain, self.polarity) > 0
