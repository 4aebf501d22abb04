"""Options of single stages of training: the weights of their losses, and how a generator learns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from losatok_ext.configuration import Configuration, Count, Length, NonNegative, Positive
from losatok_ext.nn.flow_matching import ConditionDropout, FlowMatching, SpanMasking

NO_WEIGHT = "above 0, unless another weight is: with all at 0 there is nothing to train"


@dataclass(frozen=True)
class SemBoWeights(Configuration):
    """Weights of the SemBo losses; the paper's by default."""

    reconstruction: NonNegative = 1e3
    """Weight of the reconstruction of the teacher's features."""
    relation: NonNegative = 1.0
    """Weight of the time relation: similarities between frames as the teacher has them."""
    window: Count | None = None
    """Largest distance in frames between the two frames of a pair of the time relation. null takes all pairs, 1
    neighbours only (smoothness)."""
    prefixes: Annotated[tuple[Count, ...], Length(0, 64)] = ()
    """Numbers of leading dimensions that should be usable alone, ascending, such as [16, 32, 64] of 128 (all 128 are
    always one of them). Both losses become means over them, and the model can cut its latents to them. Empty: only all
    dimensions together."""

    def _check_fit(self) -> None:
        self._require(self.reconstruction + self.relation > 0, "reconstruction", NO_WEIGHT)
        self._require(
            list(self.prefixes) == sorted(set(self.prefixes)), "prefixes", "a list in ascending order, each number once"
        )


@dataclass(frozen=True)
class TokenizerWeights(Configuration):
    """Weights of the tokenizer losses; the paper's by default."""

    mel: NonNegative = 45.0
    """Weight of the multi-scale mel loss."""
    semantic_high: NonNegative = 45.0
    """Weight of the distance between acoustic and semantic features at full width (L_H)."""
    semantic_low: NonNegative = 45.0
    """Weight of the distance between them in the latent's dimensions (L_L)."""
    kl: NonNegative = 1e-2
    """Weight of the KL divergence of the latent from a unit Gaussian."""
    feature_matching: NonNegative = 1.0
    """Weight of the feature matching, where there are discriminators."""
    adversarial: NonNegative = 1.0
    """Weight of the decoder's adversarial loss, where there are discriminators."""
    label: NonNegative = 1.0
    """Weight of the probe's cross-entropy, with ``supervision.labels``."""
    quantizer: NonNegative = 1.0
    """Weight of the losses of a quantizer, where the model has one. The quantizer's own options weigh them against
    each other."""

    def _check_fit(self) -> None:
        self._require(any(self.to_dict().values()), "mel", NO_WEIGHT)


@dataclass(frozen=True)
class GeneratorOptions(Configuration):
    """The generator stage: what it learns from, and how."""

    tokenizer: str | None = None
    """Tokenizer whose latents are generated: a model folder, or the name of a bundled model. It encodes recordings, and
    is compared with the one that wrote latent files. null takes the bundled one for recordings, and none for latent
    files."""
    context: bool = True
    """Train for editing: parts of each clip are given as a time-aligned condition, see :class:`SpanMasking`."""
    flow: FlowMatching = field(default_factory=FlowMatching)
    """The path from noise to data, and the times that training draws."""
    dropout: ConditionDropout = field(default_factory=ConditionDropout)
    """How often conditions are hidden, for guidance."""
    masking: SpanMasking = field(default_factory=SpanMasking)
    """Which parts of a clip are given, with ``context``."""
    statistics_seconds: Positive = 36000.0
    """Seconds of audio over which the latents' mean and deviation are measured at most, evenly chosen."""
