"""Options of single stages of training: the weights of their losses, and how a generator learns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from losatok_ext.nn.flow_matching import ConditionDropout, FlowMatching, SpanMasking
from losatok_ext.training.config.typed import require


@dataclass(frozen=True)
class SemBoWeights:
    """Weights of the SemBo losses; the paper's by default."""

    reconstruction: float = 1e3
    relation: float = 1.0
    window: int | None = None
    """Frames that a pair of the time relation may lie apart; null takes all pairs, 1 neighbours only (smoothness)."""
    prefixes: tuple[int, ...] = ()
    """Numbers of dimensions that should each do alone, such as [16, 32, 64] of 128 (all are one of them anyway): both
    losses become means over them, and the model can cut its latents to them. Empty: only all dimensions together."""

    def __post_init__(self) -> None:
        check_weights("sembo", self, but=("window",))
        require(
            self.window is None or self.window >= 1, f"sembo.window should be at least 1 or null, got {self.window}"
        )
        require(
            list(self.prefixes) == sorted(set(self.prefixes)) and all(size > 0 for size in self.prefixes),
            f"sembo.prefixes should ascend from at least 1, got {list(self.prefixes)}",
        )


@dataclass(frozen=True)
class TokenizerWeights:
    """Weights of the tokenizer losses; the paper's by default."""

    mel: float = 45.0
    semantic_high: float = 45.0
    semantic_low: float = 45.0
    kl: float = 1e-2
    feature_matching: float = 1.0
    adversarial: float = 1.0
    """Of what the decoder pays for being found out; this and feature matching where there are discriminators."""
    label: float = 1.0
    """Of the probe's cross-entropy, with ``supervision.labels``."""
    quantizer: float = 1.0
    """Of the losses of a quantizer, where the model has one; they are weighted among themselves by its own options."""

    def __post_init__(self) -> None:
        check_weights("tokenizer", self)


@dataclass(frozen=True)
class GeneratorOptions:
    """The generator stage: what it learns from, and how."""

    tokenizer: str | None = None
    """Folder of the LoSATok model whose latents are generated, checked for latent files; None: the bundled one, for
    recordings."""
    context: bool = True
    """Train for editing: parts of each clip are given as a time-aligned condition, see :class:`SpanMasking`."""
    flow: FlowMatching = field(default_factory=FlowMatching)
    dropout: ConditionDropout = field(default_factory=ConditionDropout)
    masking: SpanMasking = field(default_factory=SpanMasking)
    statistics_seconds: float = 36000.0
    """The latents' mean and deviation are measured over so much of the data at most, evenly chosen."""

    def __post_init__(self) -> None:
        require(
            self.statistics_seconds > 0,
            f"generator.statistics_seconds should be positive, got {self.statistics_seconds}",
        )


def check_weights(group: str, weights: Any, but: tuple[str, ...] = ()) -> None:
    """Raise ConfigError unless the numbers in the dataclass ``weights``, ``but`` some, are at least 0, one above it."""
    values = dataclasses.asdict(weights)
    values = {name: value for name, value in values.items() if not isinstance(value, tuple) and name not in but}
    for name, value in values.items():
        require(value >= 0, f"{group}.{name} should not be negative, got {value}")
    require(any(values.values()), f"{group}: every weight is 0, so there is nothing to train")
