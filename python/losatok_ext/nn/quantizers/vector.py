"""One code per token."""

from __future__ import annotations

import math

from torch import Tensor

from losatok_ext.nn.quantizers.chain import Chain
from losatok_ext.nn.quantizers.codebooks import Codebooks
from losatok_ext.nn.quantizers.config import VQConfig


class VectorQuantizer(Chain):
    """Vector quantization: the nearest code of a codebook that learns from the latents that choose it.

    In training mode the codebook starts from k-means of the first batch, follows the latents, and replaces codes that
    are hardly used by latents of the batch (see :class:`VQConfig`). All processes of a group have the same codebook,
    learned from their joint batch. In eval mode it does not change. Losses: ``"commitment"``, and ``"codebook"`` if the
    codebook is learned. Distances and statistics are float32, whatever the dtype of the latents. A row that is not
    finite gets code 0 and makes the losses not finite, but the codebook does not learn from it.

    Args:
        config: of the quantizer.
        dim: d, features of the latents.

    Codes are [...] for latents [..., d].
    """

    config: VQConfig
    codebooks: Codebooks

    def __init__(self, config: VQConfig, dim: int) -> None:
        super().__init__(config, dim, 1, lambda features: Codebooks(config, 1, features), code_dim=False)

    @property
    def codebook(self) -> Tensor:
        """The codes [K, features], without a gradient."""
        return self.codebooks.tables(1)[0]

    @property
    def bits_per_token(self) -> float:
        """log2 K."""
        return math.log2(self.codebook_size)
