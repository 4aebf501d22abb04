"""The configuration of a quantizer: one dataclass for each kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from losatok_ext.configuration import Configuration, Count, Length, NonNegative, Positive, Range, Share, Whole

MAX_BITS = 62


@dataclass(frozen=True)
class QuantizerConfig(Configuration):
    """Base of the configurations of all kinds. A mapping says by ``kind`` which one it describes.

    Raises:
        ConfigError: a value of the wrong kind, or values that do not fit together.
    """

    kind: ClassVar[str]
    """Names the kind in :meth:`to_dict`: ``"vq"``, ``"rvq"``, ``"fsq"``, ``"lfq"`` or ``"affine"``."""

    @classmethod
    def variants(cls) -> Mapping[str, type[QuantizerConfig]]:
        """The configuration of each kind."""
        return {kind: config for kind, config in CONFIGS.items() if issubclass(config, cls)}


@dataclass(frozen=True)
class VQConfig(QuantizerConfig):
    """One code per token out of a codebook: :class:`losatok_ext.nn.VectorQuantizer`.

    Attributes:
        codebook_size: K, codes.
        codebook_dim: features of a code; the latent passes through a linear map to it and another back. None: the
            latent's own.
        codebook: ``"ema"``: a code is the moving mean of the rows that chose it (van den Oord et al. 2017, appendix
            A.1); ``"learned"``: a parameter that the optimizer moves by the loss ``"codebook"``.
        decay: decay of the moving means per training step.
        epsilon: frames added to the count of each code in the means, so that the count is never 0.
        gradient: how the gradient reaches the latent: ``"rotation"`` (Fifty et al. 2024, arXiv 2410.06424) or
            ``"straight_through"``.
        cosine: scale rows and codes to length 1, so that the nearest code is the one at the smallest angle.
        commitment_weight: weight of the loss that draws latents to their codes.
        codebook_weight: weight of the loss that draws learned codes to their latents.
        kmeans: start from k-means of the first training batch; False: from random codes.
        kmeans_iterations: iterations of Lloyd's algorithm.
        kmeans_rows: most frames of the first batch (of all processes) that k-means uses; bounds the memory.
        dead_below: a code whose moving use is below this is dead: a random frame of the batch replaces it. 0 replaces
            none.
        revived_at: moving use that a replaced code starts with; at least ``dead_below``.
        usage_unit: unit of ``dead_below`` and ``revived_at``: ``"mean"``, the mean use of all codes, or ``"frames"``
            per training step.
    """

    kind: ClassVar[str] = "vq"

    codebook_size: Count = 1024
    codebook_dim: Count | None = None
    codebook: Literal["ema", "learned"] = "ema"
    decay: Annotated[float, Range(least=0, below=1)] = 0.99
    epsilon: Positive = 1e-5
    gradient: Literal["rotation", "straight_through"] = "rotation"
    cosine: bool = False
    commitment_weight: NonNegative = 0.25
    codebook_weight: NonNegative = 1.0
    kmeans: bool = True
    kmeans_iterations: Whole = 10
    kmeans_rows: Count = 65536
    dead_below: NonNegative = 0.02
    revived_at: NonNegative = 1.0
    usage_unit: Literal["mean", "frames"] = "mean"

    def _check_fit(self) -> None:
        self._require(
            self.revived_at >= self.dead_below,
            "revived_at",
            f"at least dead_below ({self.dead_below}), or a revived code would be dead at once",
        )


@dataclass(frozen=True)
class ResidualVQConfig(VQConfig):
    """A chain of codes, each for the remainder of those before it: :class:`losatok_ext.nn.ResidualVQ`.

    Attributes:
        stages: Q, codes per token.
        shared: one codebook for all stages.
        dropout: share of the clips of a training batch that use only the first stages, as many as drawn for each clip.
        min_stages: smallest number of stages that such a clip uses.
        stage_gradients: each stage passes its own gradient on, and the latent gets the sum over the stages, as in
            vector-quantize-pytorch: straight-through then multiplies the gradient by the number of stages. False: the
            gradient is that of the sum of the codes, once.

    The attributes of :class:`VQConfig` hold for every stage.
    """

    kind: ClassVar[str] = "rvq"

    stages: Annotated[int, Range(1, 1024)] = 8
    shared: bool = False
    dropout: Share = 0.0
    min_stages: Count = 1
    stage_gradients: bool = False

    def _check_fit(self) -> None:
        super()._check_fit()
        self._require(not self.cosine, "cosine", "false in a chain: the remainders of a stage do not have length 1")
        self._require(self.min_stages <= self.stages, "min_stages", f"at most the number of stages ({self.stages})")


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
class AffineConfig(QuantizerConfig):
    """Integers with a scale and an offset, as latents are stored, in training: :class:`losatok_ext.nn.AffineQuantizer`.

    Attributes:
        bits: bits of each integer, 8 or 4.
        dim: which values share a scale: -1, those of a token; 1, those of a feature of a clip over time.
    """

    kind: ClassVar[str] = "affine"

    bits: Literal[8, 4] = 8
    dim: Literal[-1, 1] = -1


CONFIGS: dict[str, type[QuantizerConfig]] = {
    config.kind: config for config in (VQConfig, ResidualVQConfig, FSQConfig, LFQConfig, AffineConfig)
}
"""The configuration of each kind."""


def quantizer_config(values: Mapping[str, Any]) -> QuantizerConfig:
    """The quantizer that ``values`` describe, as :meth:`QuantizerConfig.to_dict` writes them.

    Args:
        values: ``"kind"`` (``"vq"``, ``"rvq"``, ``"fsq"``, ``"lfq"`` or ``"affine"``) and fields of that kind; those
            left out take their defaults.

    Raises:
        ConfigError: no or an unknown kind, an unknown key, or a value that does not fit.
    """
    return QuantizerConfig.from_dict(values)
