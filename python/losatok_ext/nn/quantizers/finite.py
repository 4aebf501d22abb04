"""Codes by rounding to a few levels per dimension."""

from __future__ import annotations

import math

from torch import Tensor

from losatok_ext import ops
from losatok_ext.nn.quantizers.base import Quantized, Quantizer
from losatok_ext.nn.quantizers.config import FSQConfig


class FSQ(Quantizer):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): :func:`losatok_ext.ops.fsq_quantize`.

    Only the linear maps are learned, and there are no losses; the gradient of the rounding is straight-through.

    Args:
        config: of the quantizer.
        dim: d, features of the latents.

    Codes are [...] for latents [..., d], or [..., C] with C = ``num_codebooks`` if that is above 1; each code has its
    own dimensions.
    """

    config: FSQConfig

    def __init__(self, config: FSQConfig, dim: int) -> None:
        super().__init__(config, dim, len(config.levels) * config.num_codebooks, config.num_codebooks > 1)

    @property
    def codebook_size(self) -> int:
        """The product of the levels."""
        return math.prod(self.config.levels)

    @property
    def bits_per_token(self) -> float:
        """C log2 of the product of the levels."""
        return self.config.num_codebooks * math.log2(self.codebook_size)

    def _quantize(self, x: Tensor, lengths: Tensor | None, used: Tensor | None = None) -> Quantized:
        # The codes of a token are quantized as if they were consecutive tokens.
        count = self.config.num_codebooks
        rows = x.reshape(x.shape[0], x.shape[1] * count, len(self.config.levels))
        each = None if lengths is None else lengths * count
        quantized, codes = ops.fsq_quantize(rows, self.config.levels, each)
        return Quantized(
            quantized.view(x.shape), codes.view((*x.shape[:2], count) if self.code_dim else x.shape[:2]), {}
        )

    def _encode(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return self._quantize(x, lengths).codes

    def _decode(self, codes: Tensor) -> Tensor:
        if not self.code_dim:
            return ops.fsq_dequantize(codes, self.config.levels)
        self._check_code_dim(codes, self.config.num_codebooks)
        return ops.fsq_dequantize(codes, self.config.levels).flatten(-2)
