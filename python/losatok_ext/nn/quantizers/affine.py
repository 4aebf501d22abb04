"""The rounding of stored latents, in training."""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext import ops
from losatok_ext.nn.quantizers.base import Quantized, Quantizer, frame_mask
from losatok_ext.nn.quantizers.config import AffineConfig
from losatok_ext.nn.quantizers.gradients import Choice, pass_gradient

UNSIGNED = 2**32


class AffineQuantizer(Quantizer):
    """Integers of 8 or 4 bits with a scale and an offset: :func:`losatok_ext.ops.affine_quantize` and back.

    A model trained with it learns to decode latents that were stored in so many bits. The gradient is straight-through;
    there are no losses. All tensors are float32, as in files. Latents that are not [B, T, d] count as one clip.

    Args:
        config: of the quantizer.
        dim: d, features of the latents.

    Codes are [..., d + 2 s] for latents [..., d]: the d integers, then the bit patterns of s scales and s offsets in
    float32, as unsigned numbers. s is 1 if the values of a token share a scale (``dim=-1``), and d if the values of a
    feature do. On the CPU, values within a length that are not finite raise a ValueError.
    """

    config: AffineConfig

    def __init__(self, config: AffineConfig, dim: int) -> None:
        super().__init__(config, dim, dim, code_dim=True)
        self.scales = 1 if config.dim == -1 else dim

    @property
    def codebook_size(self) -> int:
        """2^bits, the number of different integers."""
        return 2**self.config.bits

    @property
    def bits_per_token(self) -> float:
        """Bits of the d integers, and of scale and offset if each token has its own."""
        return float(self.config.bits * self.dim + (64 if self.config.dim == -1 else 0))

    def _quantize(self, x: Tensor, lengths: Tensor | None, used: Tensor | None = None) -> Quantized:
        codes = self._encode(x, lengths)
        choice = Choice(x, self._decode(codes).to(x.dtype), frame_mask(lengths, x.shape[1]))
        return Quantized(pass_gradient(x, [choice], "straight_through"), codes, {})

    def _encode(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        batch, time, _ = x.shape
        valid = frame_mask(lengths, time)
        values = x.detach().float()
        if valid is not None and lengths is not None and time:
            # Past a length the first frame is repeated, so that these frames do not widen the range.
            first = torch.where((lengths > 0).view(-1, 1, 1), values[:, :1], 0.0)
            values = torch.where(valid, values, first)
        packed, scale, offset = ops.affine_quantize(values, self.config.bits, self.config.dim)
        size = values.shape[self.config.dim]
        unit = torch.ones_like(scale), torch.zeros_like(offset)
        integers = ops.affine_dequantize(packed, *unit, self.config.bits, self.config.dim, size).to(torch.int64)
        patterns = [
            (part.contiguous().view(torch.int32).to(torch.int64) % UNSIGNED).expand(batch, time, self.scales)
            for part in (scale, offset)
        ]
        codes = torch.cat((integers, *patterns), dim=-1)
        return codes if valid is None else torch.where(valid, codes, -1)

    def _decode(self, codes: Tensor) -> Tensor:
        self._check_code_dim(codes, self.dim + 2 * self.scales)
        integers, *patterns = codes.split((self.dim, self.scales, self.scales), dim=-1)
        absent = integers < 0
        scale, offset = (
            torch.where(part >= UNSIGNED // 2, part - UNSIGNED, part).to(torch.int32).view(torch.float32).double()
            for part in patterns
        )
        return torch.where(absent, 0.0, (offset + scale * integers.double()).float())
