"""Options of the tokenizer stage besides the weights of its losses: discriminators, and supervision of the latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from losatok_ext.configuration import Configuration, NonNegative, Range, Whole
from losatok_ext.nn.discriminators import DISCRIMINATORS


@dataclass(frozen=True)
class DiscriminatorOptions(Configuration):
    """The networks that the decoder trains against; the paper's by default."""

    kinds: tuple[str, ...] = ("mfd",)
    """Any of mfd (multi-frequency, the paper's), mpd (multi-period), mrd (multi-resolution), msstft (multi-scale STFT).
    An empty list trains without discriminators, at a fraction of the cost."""
    channels: Annotated[float, Range(above=0, most=64)] = 1.0
    """Factor of their published numbers of channels. 1/16 suits a model for a CPU."""
    start_step: Whole = 0
    """First step in which the discriminators train and the decoder trains against them."""
    loss: Literal["hinge", "least_squares"] = "hinge"
    """Adversarial loss of both sides."""
    normalize_features: bool = False
    """Divide the feature matching of each layer by the mean magnitude of its features of the recording."""

    def _check_fit(self) -> None:
        known = ", ".join(map(repr, DISCRIMINATORS))
        fits = len(set(self.kinds)) == len(self.kinds) and set(self.kinds) <= set(DISCRIMINATORS)
        self._require(fits, "kinds", f"a list of any of {known}, each once")


@dataclass(frozen=True)
class SupervisionOptions(Configuration):
    """What teaches the latents of the tokenizer, besides reconstruction."""

    distance: Literal["mse", "cosine"] = "mse"
    """Distance between acoustic and semantic features, at both levels: mean squared difference, or 1 - cosine."""
    labels: bool = False
    """Also train a linear probe that predicts each clip's label from the acoustic low-dimensional features, averaged
    over the clip. The label is ``"label"`` in the manifest, else the clip's text. The probe is not part of the
    model."""
    kl_floor: NonNegative | None = None
    """Nats per dimension and frame below which the KL loss has no gradient. null takes the model's ``kl_clamp``."""
