"""Options of the tokenizer stage besides the weights of its losses: what it trains against, and what supervises it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from losatok_ext.nn.discriminators import DISCRIMINATORS
from losatok_ext.training.config.typed import require


@dataclass(frozen=True)
class DiscriminatorOptions:
    """The networks that the decoder trains against; the paper's by default."""

    kinds: tuple[str, ...] = ("mfd",)
    """Any of mfd (multi-frequency, the paper's), mpd (multi-period), mrd (multi-resolution), msstft (multi-scale STFT);
    an empty list trains without, at a fraction of the cost."""
    channels: float = 1.0
    """Factor of their published numbers of channels; 1/16 suits a model for a CPU."""
    start_step: int = 0
    """Neither side plays before this step."""
    loss: Literal["hinge", "least_squares"] = "hinge"
    normalize_features: bool = False
    """Divide the feature matching of each layer by the mean magnitude of its features of the recording."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            known = ", ".join(map(repr, DISCRIMINATORS))
            require(kind in DISCRIMINATORS, f"discriminator.kinds should hold any of {known}, got {kind!r}")
        require(
            len(set(self.kinds)) == len(self.kinds),
            f"discriminator.kinds should hold each kind once, got {list(self.kinds)}",
        )
        require(self.channels > 0, f"discriminator.channels should be positive, got {self.channels}")
        require(self.start_step >= 0, f"discriminator.start_step should not be negative, got {self.start_step}")


@dataclass(frozen=True)
class SupervisionOptions:
    """What teaches the latents of the tokenizer, besides reconstruction."""

    distance: Literal["mse", "cosine"] = "mse"
    """Between acoustic and semantic features, at both levels: mean squared difference, or 1 - cosine."""
    labels: bool = False
    """Also let a linear probe of the acoustic low-dimensional features, averaged over a clip, tell the clip's label
    (``"label"`` in the manifest, else what its text is); the probe trains along and is no part of the model."""
    kl_floor: float | None = None
    """Nats per dimension and frame below which the KL loss does not push; null takes the model's ``kl_clamp``."""

    def __post_init__(self) -> None:
        require(
            self.kl_floor is None or self.kl_floor >= 0,
            f"supervision.kl_floor should not be negative, got {self.kl_floor}",
        )
