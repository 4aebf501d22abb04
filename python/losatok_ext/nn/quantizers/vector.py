"""One code per token."""

from __future__ import annotations

import math

from torch import Tensor

from losatok_ext.nn.quantizers.chain import Chain
from losatok_ext.nn.quantizers.config import VQConfig


class VectorQuantizer(Chain):
    """The nearest code of a codebook, which learns from the latents that choose it.

    In training mode the codebook starts from k-means of the first batch, moves with the latents, and puts latents of
    the batch in the place of codes that are hardly used (see :class:`VQConfig`); all processes of a group hold the same
    codebook, that of their joint batch. In eval mode nothing changes. Losses: ``"commitment"``, and ``"codebook"`` when
    the codebook is learned. Distances and statistics are float32 whatever the dtype of the latents. A row that is not
    finite gets code 0 and shows in the losses, but no codebook learns from it.

    Args:
        config: what it is made of.
        dim: d, features of the latents.

    Codes are [...] for latents [..., d].
    """

    def __init__(self, config: VQConfig, dim: int) -> None:
        super().__init__(config, dim, stages=1, shared=False, code_dim=False)

    @property
    def codebook(self) -> Tensor:
        """The codes [K, features], without a gradient."""
        return self.codebooks.tables(1)[0]

    @property
    def bits_per_token(self) -> float:
        """log2 K."""
        return math.log2(self.codebook_size)
