"""The configurations of quantizers with codebooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from losatok_ext.configuration import Count, NonNegative, Positive, Range, Whole
from losatok_ext.nn.quantizers.config.base import QuantizerConfig, StagedConfig


@dataclass(frozen=True)
class CodebookConfig(QuantizerConfig):
    """Base of the kinds with codebooks.

    Attributes:
        codebook_size: K, codes.
        codebook_dim: features of a code; the latent passes through a linear map to it and another back. None: the
            latent's own.
        gradient: how the gradient reaches the latent: ``"rotation"`` (Fifty et al. 2024, arXiv 2410.06424),
            ``"straight_through"``, or ``"directional"`` (DiVeQ: Vali et al. 2025, arXiv 2509.26469): in training the
            quantized latent is x + |c - x| u, u the direction of c - x with noise. The gradient passes x and the
            distance |c - x|, so that it moves the codes too, and needs no loss: both weights may be 0.
        direction_noise: variance of that noise, per feature.
        commitment_weight: weight of the loss that draws latents to their codes.
        codebook_weight: weight of the loss that draws learned codes to their latents.
    """

    later: ClassVar[frozenset[str]] = frozenset({"direction_noise"})

    codebook_size: Count = 1024
    codebook_dim: Count | None = None
    gradient: Literal["rotation", "straight_through", "directional"] = "rotation"
    direction_noise: NonNegative = 5e-3
    commitment_weight: NonNegative = 0.25
    codebook_weight: NonNegative = 1.0

    def _check_fit(self) -> None:
        super()._check_fit()
        each = isinstance(self, StagedConfig) and self.stage_gradients
        self._require(
            not each or self.gradient != "directional",
            "stage_gradients",
            'false with the gradient "directional", which is that of the sum',
        )


@dataclass(frozen=True)
class VQConfig(CodebookConfig):
    """One code per token out of a codebook: :class:`losatok_ext.nn.VectorQuantizer`.

    Attributes:
        codebook: ``"ema"``: a code is the moving mean of the rows that chose it (van den Oord et al. 2017, appendix
            A.1); ``"learned"``: a parameter that the optimizer moves by the loss ``"codebook"``.
        decay: decay of the moving means per training step.
        epsilon: frames added to the count of each code in the means, so that the count is never 0.
        cosine: scale rows and codes to length 1, so that the nearest code is the one at the smallest angle.
        kmeans: start from k-means of the first training batch; False: from random codes.
        kmeans_iterations: iterations of Lloyd's algorithm.
        kmeans_rows: most frames of the first batch (of all processes) that k-means uses; bounds the memory.
        dead_below: a code whose moving use is below this is dead: a random frame of the batch replaces it. 0 replaces
            none.
        revived_at: moving use that a replaced code starts with; at least ``dead_below``.
        usage_unit: unit of ``dead_below`` and ``revived_at``: ``"mean"``, the mean use of all codes, or ``"frames"``
            per training step.

    The attributes of :class:`CodebookConfig` hold too.
    """

    kind: ClassVar[str] = "vq"

    codebook: Literal["ema", "learned"] = "ema"
    decay: Annotated[float, Range(least=0, below=1)] = 0.99
    epsilon: Positive = 1e-5
    cosine: bool = False
    kmeans: bool = True
    kmeans_iterations: Whole = 10
    kmeans_rows: Count = 65536
    dead_below: NonNegative = 0.02
    revived_at: NonNegative = 1.0
    usage_unit: Literal["mean", "frames"] = "mean"

    def _check_fit(self) -> None:
        super()._check_fit()
        self._require(
            self.gradient != "directional" or self.codebook == "learned",
            "codebook",
            '"learned" with the gradient "directional", which moves the codes',
        )
        self._require(
            self.revived_at >= self.dead_below,
            "revived_at",
            f"at least dead_below ({self.dead_below}), or a revived code would be dead at once",
        )


@dataclass(frozen=True)
class ResidualVQConfig(StagedConfig, VQConfig):
    """A chain of codes, each for the remainder of those before it: :class:`losatok_ext.nn.ResidualVQ`.

    Attributes:
        shared: one codebook for all stages.

    The attributes of :class:`StagedConfig` hold too, and those of :class:`VQConfig` for every stage.
    """

    kind: ClassVar[str] = "rvq"

    shared: bool = False

    def _check_fit(self) -> None:
        super()._check_fit()
        self._require(not self.cosine, "cosine", "false in a chain: the remainders of a stage do not have length 1")


@dataclass(frozen=True)
class SimVQConfig(StagedConfig, CodebookConfig):
    """Codes that are a learned linear map of fixed random vectors: :class:`losatok_ext.nn.SimVQ`.

    Attributes:
        stages: Q, codes per token; with more than 1, each for the remainder of those before it.
        frozen_dim: features of the random vectors. None: those of a code.

    The attributes of :class:`StagedConfig` and :class:`CodebookConfig` hold too.
    """

    kind: ClassVar[str] = "simvq"

    stages: Annotated[int, Range(1, 1024)] = 1
    frozen_dim: Count | None = None
