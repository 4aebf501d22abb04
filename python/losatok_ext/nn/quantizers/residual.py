"""Several codes per token, each for the residual of those before it."""

from __future__ import annotations

import math

from losatok_ext.nn.quantizers.chain import Chain
from losatok_ext.nn.quantizers.codebooks import Codebooks
from losatok_ext.nn.quantizers.config import ResidualVQConfig


class ResidualVQ(Chain):
    """Residual vector quantization: :class:`VectorQuantizer` in stages (Zeghidour et al. 2021, arXiv 2107.03312).

    In eval mode all stages run in one pass. With ``dropout``, some clips of a training batch use only their first
    stages: their later codes are -1, are not part of ``quantized`` and of the losses, and later codebooks do not learn
    from these clips. The batch that sets the starting values of the codebooks uses all stages. The losses are summed
    over the stages.

    Args:
        config: of the quantizer.
        dim: d, features of the latents.

    Codes are [..., Q] for latents [..., d]; fewer than Q can be decoded too. Latents that are not [B, T, d] count as
    one clip.
    """

    config: ResidualVQConfig
    codebooks: Codebooks

    def __init__(self, config: ResidualVQConfig, dim: int) -> None:
        super().__init__(
            config,
            dim,
            config.stages,
            lambda features: Codebooks(config, 1 if config.shared else config.stages, features),
            code_dim=True,
            shared=config.shared,
        )

    @property
    def bits_per_token(self) -> float:
        """Q log2 K."""
        return self.stages * math.log2(self.codebook_size)
