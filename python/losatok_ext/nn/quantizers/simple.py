"""Codes that are a learned linear map of fixed random vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from losatok_ext.nn.quantizers.chain import Chain
from losatok_ext.nn.quantizers.config import SimVQConfig
from losatok_ext.nn.quantizers.tables import CodeTables


class MappedCodes(CodeTables):
    """S tables of K codes, each a linear map of fixed normal vectors; see :class:`CodeTables` for their dtype.

    Args:
        stages: S.
        size: K.
        dim: d, features of a code.
        frozen_dim: f, features of the fixed vectors.

    Attributes:
        frozen: [S, K, f], the fixed vectors; a buffer.
        map: [S, d, f], the parameter: a code is ``map @ frozen``.
    """

    frozen: Tensor

    def __init__(self, stages: int, size: int, dim: int, frozen_dim: int) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randn(stages, size, frozen_dim) / frozen_dim**0.5)
        self.map = nn.Parameter((2 * torch.rand(stages, dim, frozen_dim) - 1) / frozen_dim**0.5)

    def table(self, stage: int) -> Tensor:
        """The codes of a stage [K, d], with the gradient to the map."""
        # Copies: the address of a tensor, such as one in a mapped file, can change how a product is rounded.
        return self.frozen[stage].clone() @ self.map[stage].clone().mT

    def tables(self, stages: int) -> Tensor:
        """The codes of all stages [stages, K, d]; without gradient."""
        return torch.stack([self.table(stage).detach() for stage in range(stages)])


class SimVQ(Chain):
    """Vector quantization whose codes are a learned linear map of fixed random vectors (Zhu et al. 2024, arXiv
    2411.02038).

    A step of the map moves all codes at once, also those that no latent chooses, so that none dies: there is no start
    from k-means, no revival of codes and no moving mean. The optimizer moves the map, by the loss ``"codebook"``; the
    loss ``"commitment"`` draws latents to their codes. With ``stages`` above 1 each stage quantizes what the stages
    before left over, with a table of its own, and ``dropout`` leaves stages out as in :class:`ResidualVQ`; the losses
    are summed over the stages.

    Args:
        config: of the quantizer.
        dim: d, features of the latents.

    Codes are [...] for latents [..., d], or [..., Q] with Q = ``stages`` if that is above 1.
    """

    config: SimVQConfig
    codebooks: MappedCodes

    def __init__(self, config: SimVQConfig, dim: int) -> None:
        super().__init__(
            config,
            dim,
            config.stages,
            lambda features: MappedCodes(config.stages, config.codebook_size, features, config.frozen_dim or features),
            code_dim=config.stages > 1,
        )

    @property
    def bits_per_token(self) -> float:
        """Q log2 K."""
        return self.stages * math.log2(self.codebook_size)
