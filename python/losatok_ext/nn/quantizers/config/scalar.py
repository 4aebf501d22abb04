"""The configurations of quantizers without a codebook."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from losatok_ext.configuration import Count, Length, NonNegative, Positive, Range
from losatok_ext.nn.quantizers.config.base import QuantizerConfig, StagedConfig

MAX_BITS = 62


@dataclass(frozen=True)
class FSQConfig(QuantizerConfig):
    """Rounding to a few levels per dimension, without a codebook: :class:`losatok_ext.nn.FSQ`.

    Attributes:
        levels: number of levels of each dimension, within 2..65536; their product, below 2^63, is the number of codes.
            The latent passes through a linear map to as many dimensions, and another back, unless it has as many.
        num_codebooks: codes per token, each over dimensions of its own.
    """

    kind: ClassVar[str] = "fsq"

    levels: Annotated[tuple[Annotated[int, Range(2, 65536)], ...], Length(1, 64)] = (8, 5, 5, 5)
    num_codebooks: Count = 1

    def _check_fit(self) -> None:
        self._require(math.prod(self.levels) < 2**63, "levels", "such that their product is below 2^63")


@dataclass(frozen=True)
class ResidualFSQConfig(StagedConfig, FSQConfig):
    """Levels in stages, each for the remainder of those before it: :class:`losatok_ext.nn.ResidualFSQ`.

    The attributes of :class:`StagedConfig` and :class:`FSQConfig` hold; ``num_codebooks`` is 1.
    """

    kind: ClassVar[str] = "rfsq"

    def _check_fit(self) -> None:
        super()._check_fit()
        self._require(self.num_codebooks == 1, "num_codebooks", "1 with stages")


@dataclass(frozen=True)
class LFQConfig(QuantizerConfig):
    """The signs of a few dimensions as bits, without a codebook: :class:`losatok_ext.nn.LFQ`.

    Attributes:
        bits: bits of a code. The latent passes through a linear map to as many dimensions, and another back, unless it
            has as many.
        num_codebooks: codes per token, each over dimensions of its own.
        scale: a quantized dimension is this or its negative.
        commitment_weight: weight of the loss that draws latents to their codes.
        entropy_weight: weight of the loss that makes each choice certain and the choices of a batch diverse.
        diversity: weight of the diverse part of that loss against the certain part.
        temperature: temperature of the softmax over codes in that loss.
        entropy_group: largest number of bits whose joint distribution over a batch is counted. More bits are counted in
            groups, as if the groups were independent.
    """

    kind: ClassVar[str] = "lfq"

    bits: Annotated[int, Range(1, MAX_BITS)] = 10
    num_codebooks: Count = 1
    scale: Positive = 1.0
    commitment_weight: NonNegative = 0.25
    entropy_weight: NonNegative = 0.1
    diversity: NonNegative = 1.0
    temperature: Positive = 0.01
    entropy_group: Annotated[int, Range(1, 24)] = 16


@dataclass(frozen=True)
class ResidualLFQConfig(StagedConfig, LFQConfig):
    """Signs in stages, each for the remainder of those before it: :class:`losatok_ext.nn.ResidualLFQ`.

    The attributes of :class:`StagedConfig` and :class:`LFQConfig` hold; ``num_codebooks`` is 1, and ``scale`` is that
    of the first stage: each stage has half the scale of the one before.
    """

    kind: ClassVar[str] = "rlfq"

    def _check_fit(self) -> None:
        super()._check_fit()
        self._require(self.num_codebooks == 1, "num_codebooks", "1 with stages")


@dataclass(frozen=True)
class AffineConfig(QuantizerConfig):
    """Integers with a scale and an offset, as latents are stored, in training: :class:`losatok_ext.nn.AffineQuantizer`.

    Attributes:
        bits: bits of each integer, 8 or 4.
        dim: which values share a scale: -1, those of a token; 1, those of a feature of a clip over time.
    """

    kind: ClassVar[str] = "affine"

    bits: Literal[8, 4] = 8
    dim: Literal[-1, 1] = -1
