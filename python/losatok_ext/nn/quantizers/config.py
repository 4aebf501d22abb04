"""What a quantizer is made of: one small frozen dataclass per kind, checked, and written to JSON as it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from losatok_ext.errors import ConfigError

GRADIENTS = ("rotation", "straight_through")
MAX_BITS = 62


def _rule(default: Any, should: str, holds: Callable[[Any], bool], read: Callable[[Any], Any] = lambda v: v) -> Any:
    """A dataclass field whose value ``should`` be such that it ``holds``, kept as ``read`` makes it."""
    return field(default=default, metadata={"should": should, "holds": holds, "read": read})


def _whole(default: int, least: int, most: int = 2**31 - 1) -> Any:
    return _rule(default, f"a whole number within {least}..{most}", lambda v: type(v) is int and least <= v <= most)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _at_least_zero(default: float) -> Any:
    return _rule(default, "a number of at least 0", lambda v: _is_number(v) and v >= 0, float)


def _above_zero(default: float) -> Any:
    return _rule(default, "a number above 0", lambda v: _is_number(v) and v > 0, float)


def _within_one(default: float, *, open_above: bool) -> Any:
    should = "a number of at least 0 and below 1" if open_above else "a number within 0..1"
    return _rule(default, should, lambda v: _is_number(v) and 0 <= v <= 1 and not (open_above and v == 1), float)


def _flag(default: bool) -> Any:
    return _rule(default, "True or False", lambda v: isinstance(v, bool))


def _one_of(default: Any, *choices: Any) -> Any:
    named = ", ".join(map(repr, choices))
    return _rule(default, f"one of {named}", lambda v: any(type(v) is type(c) and v == c for c in choices))


@dataclass(frozen=True)
class QuantizerConfig:
    """What all kinds share: values are checked when one is made, and :func:`quantizer_config` reads :meth:`to_dict`.

    Raises:
        ConfigError: a value of the wrong kind, or values that do not fit together.
    """

    kind: ClassVar[str]
    """Names the kind in :meth:`to_dict`: ``"vq"``, ``"rvq"``, ``"fsq"``, ``"lfq"`` or ``"affine"``."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            self._require(entry.metadata["holds"](value), entry.name, entry.metadata["should"])
            object.__setattr__(self, entry.name, entry.metadata["read"](value))
        self._check_fit()

    def _require(self, holds: bool, name: str, should: str) -> None:
        if not holds:
            raise ConfigError(f"{name} should be {should}, got {getattr(self, name)!r}")

    def _check_fit(self) -> None:
        """Raise ConfigError where values do not fit together."""

    def to_dict(self) -> dict[str, Any]:
        """``"kind"`` and all fields by name, as JSON has them (lists for tuples)."""
        values = dataclasses.asdict(self)
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


@dataclass(frozen=True)
class VQConfig(QuantizerConfig):
    """One code per token out of a codebook: :class:`losatok_ext.nn.VectorQuantizer`.

    Attributes:
        codebook_size: K, codes.
        codebook_dim: features of a code; the latent passes through a linear map to it and another back. None: the
            latent's own.
        codebook: ``"ema"``: a code is the moving mean of the rows that chose it (van den Oord et al. 2017, appendix
            A.1); ``"learned"``: a parameter that the optimizer moves by the loss ``"codebook"``.
        decay: of the moving means, per training step.
        epsilon: frames that each code is given for free in the means, lest one be divided by 0.
        gradient: to the latent: ``"rotation"`` (Fifty et al. 2024, arXiv 2410.06424) or ``"straight_through"``.
        cosine: rows and codes are brought to length 1, so that the nearest code is the one of the smallest angle.
        commitment_weight: of the loss that draws latents to their codes.
        codebook_weight: of the loss that draws learned codes to their latents.
        kmeans: start from k-means of the first training batch; False: from random codes.
        kmeans_iterations: of Lloyd's algorithm.
        kmeans_rows: frames of the first batch (of all processes) that take part at most: bounds the memory.
        dead_below: a code of less moving use than this is dead: a frame of the batch takes its place, at random. 0
            revives none.
        revived_at: moving use that a revived code starts with; at least ``dead_below``.
        usage_unit: of these two: ``"mean"``, the mean use of all codes; or ``"frames"`` per training step.
    """

    kind: ClassVar[str] = "vq"

    codebook_size: int = _whole(1024, 1)
    codebook_dim: int | None = _rule(
        None, "a positive whole number or None", lambda v: v is None or (type(v) is int and v > 0)
    )
    codebook: str = _one_of("ema", "ema", "learned")
    decay: float = _within_one(0.99, open_above=True)
    epsilon: float = _above_zero(1e-5)
    gradient: str = _one_of("rotation", *GRADIENTS)
    cosine: bool = _flag(False)
    commitment_weight: float = _at_least_zero(0.25)
    codebook_weight: float = _at_least_zero(1.0)
    kmeans: bool = _flag(True)
    kmeans_iterations: int = _whole(10, 0)
    kmeans_rows: int = _whole(65536, 1)
    dead_below: float = _at_least_zero(0.02)
    revived_at: float = _at_least_zero(1.0)
    usage_unit: str = _one_of("mean", "mean", "frames")

    def _check_fit(self) -> None:
        self._require(
            self.revived_at >= self.dead_below,
            "revived_at",
            f"at least dead_below ({self.dead_below}), or a revived code would be dead",
        )


@dataclass(frozen=True)
class ResidualVQConfig(VQConfig):
    """A chain of codes, each for what those before it left over: :class:`losatok_ext.nn.ResidualVQ`.

    Attributes:
        stages: Q, codes of a token.
        shared: one codebook for all stages.
        dropout: share of the clips of a training batch that use the first stages only, drawn anew per clip.
        min_stages: the fewest stages that such a clip uses.
        stage_gradients: each stage passes its own gradient on, and the latent gets the sum over the stages, as in
            vector-quantize-pytorch: straight-through then multiplies the gradient by the number of stages. False: the
            gradient is that of the sum of the codes, once.

    The attributes of :class:`VQConfig` hold for every stage.
    """

    kind: ClassVar[str] = "rvq"

    stages: int = _whole(8, 1, 1024)
    shared: bool = _flag(False)
    dropout: float = _within_one(0.0, open_above=False)
    min_stages: int = _whole(1, 1)
    stage_gradients: bool = _flag(False)

    def _check_fit(self) -> None:
        super()._check_fit()
        self._require(not self.cosine, "cosine", "False in a chain: what a stage leaves over has no length of 1")
        self._require(self.min_stages <= self.stages, "min_stages", f"at most the number of stages ({self.stages})")


@dataclass(frozen=True)
class FSQConfig(QuantizerConfig):
    """Rounding to a few levels per dimension, without a codebook: :class:`losatok_ext.nn.FSQ`.

    Attributes:
        levels: of each dimension, within 2..65536; their product, below 2^63, is the number of codes. The latent passes
            through a linear map to as many dimensions, and another back, unless it has as many.
        num_codebooks: codes of a token, each of its own dimensions.
    """

    kind: ClassVar[str] = "fsq"

    levels: tuple[int, ...] = _rule(
        (8, 5, 5, 5),
        "a list of whole numbers within 2..65536",
        lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(type(n) is int and 2 <= n <= 65536 for n in v),
        tuple,
    )
    num_codebooks: int = _whole(1, 1)

    def _check_fit(self) -> None:
        self._require(math.prod(self.levels) < 2**63, "levels", "such that their product is below 2^63")


@dataclass(frozen=True)
class LFQConfig(QuantizerConfig):
    """The signs of a few dimensions as bits, without a codebook: :class:`losatok_ext.nn.LFQ`.

    Attributes:
        bits: of a code. The latent passes through a linear map to as many dimensions, and another back, unless it has
            as many.
        num_codebooks: codes of a token, each of its own dimensions.
        scale: a quantized dimension is this or its negative.
        commitment_weight: of the loss that draws latents to their codes.
        entropy_weight: of the loss that makes each choice certain and the choices of a batch diverse.
        diversity: weight of the second part of it against the first.
        temperature: of the softmax over codes in it.
        entropy_group: bits whose joint distribution over a batch is counted, at most; more bits than that are counted
            in groups, as if the groups were independent.
    """

    kind: ClassVar[str] = "lfq"

    bits: int = _whole(10, 1, MAX_BITS)
    num_codebooks: int = _whole(1, 1)
    scale: float = _above_zero(1.0)
    commitment_weight: float = _at_least_zero(0.25)
    entropy_weight: float = _at_least_zero(0.1)
    diversity: float = _at_least_zero(1.0)
    temperature: float = _above_zero(0.01)
    entropy_group: int = _whole(16, 1, 24)


@dataclass(frozen=True)
class AffineConfig(QuantizerConfig):
    """Integers with a scale and an offset, as latents are stored, in training: :class:`losatok_ext.nn.AffineQuantizer`.

    Attributes:
        bits: 8 or 4, of each integer.
        dim: which values share a scale: -1, those of a token; 1, those of a feature of a clip over time.
    """

    kind: ClassVar[str] = "affine"

    bits: int = _one_of(8, 8, 4)
    dim: int = _one_of(-1, -1, 1)


CONFIGS: dict[str, type[QuantizerConfig]] = {
    config.kind: config for config in (VQConfig, ResidualVQConfig, FSQConfig, LFQConfig, AffineConfig)
}
"""The configuration of each kind."""


def quantizer_config(values: Mapping[str, Any]) -> QuantizerConfig:
    """The configuration that :meth:`QuantizerConfig.to_dict` wrote as ``values``.

    Args:
        values: ``"kind"`` (``"vq"``, ``"rvq"``, ``"fsq"``, ``"lfq"`` or ``"affine"``) and fields of that kind; those
            left out take their defaults.

    Raises:
        ConfigError: no or an unknown kind, an unknown key, or a value that does not fit.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"a quantizer should be a mapping of names to values, got {type(values).__name__}")
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise ConfigError(f"the kind of a quantizer should be one of {', '.join(map(repr, CONFIGS))}, got {kind!r}")
    chosen = CONFIGS[kind]
    known = [entry.name for entry in dataclasses.fields(chosen)]
    unknown = [str(key) for key in values if key != "kind" and key not in known]
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r} in a quantizer of kind {kind!r}; known are {', '.join(known)}")
    return chosen(**{key: value for key, value in values.items() if key != "kind"})
