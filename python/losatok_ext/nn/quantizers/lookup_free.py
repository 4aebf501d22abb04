"""Codes from signs: each dimension is a bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.masks import zero_past
from losatok_ext.nn.quantizers.base import Quantized, Quantizer, frame_mask, wide_dtype
from losatok_ext.nn.quantizers.config import LFQConfig
from losatok_ext.nn.quantizers.gradients import Choice, pass_gradient
from losatok_ext.nn.quantizers.pool import Frames, pooled, pooled_with_gradient
from losatok_ext.ops.reference.quantize import check_range


class LFQ(Quantizer):
    """Lookup-free quantization (Yu et al. 2023, arXiv 2310.05737): ``scale`` times the sign of each dimension.

    The gradient of the sign is straight-through. Losses: ``"commitment"`` and ``"entropy"``, see
    :func:`entropy_loss`; diversity is that of the joint batch of all processes.

    Args:
        config: of the quantizer.
        dim: d, features of the latents.

    Codes are [...] for latents [..., d], or [..., C] with C = ``num_codebooks`` if that is above 1; each code has its
    own dimensions. The first dimension is the most significant bit, which is 1 for values above 0.
    """

    config: LFQConfig

    def __init__(self, config: LFQConfig, dim: int) -> None:
        super().__init__(config, dim, config.bits * config.num_codebooks, config.num_codebooks > 1)

    @property
    def codebook_size(self) -> int:
        """2^bits."""
        return 2**self.config.bits

    @property
    def bits_per_token(self) -> float:
        """C times the bits of a code."""
        return float(self.config.bits * self.config.num_codebooks)

    def _quantize(self, x: Tensor, lengths: Tensor | None, used: Tensor | None = None) -> Quantized:
        config = self.config
        valid = frame_mask(lengths, x.shape[1])
        x = zero_past(x.to(wide_dtype(x)), valid)
        quantized = zero_past(torch.where(x.detach() > 0, config.scale, -config.scale).to(x.dtype), valid)
        losses = {}
        if self.training:
            shape = (config.num_codebooks, config.bits)
            losses = lookup_free_losses(
                x.unflatten(-1, shape), quantized.unflatten(-1, shape), lengths, config, config.scale
            )
        quantized = pass_gradient(x, [Choice(x, quantized, valid)], "straight_through")
        return Quantized(quantized, self._codes(x, valid), losses)

    def _codes(self, x: Tensor, valid: Tensor | None) -> Tensor:
        codes = codes_of_signs(x.detach().unflatten(-1, (self.config.num_codebooks, self.config.bits)))
        if valid is not None:
            codes = torch.where(valid, codes, -1)
        return codes if self.code_dim else codes.squeeze(-1)

    def _encode(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return self._codes(x, frame_mask(lengths, x.shape[1]))

    def _decode(self, codes: Tensor) -> Tensor:
        if self.code_dim:
            self._check_code_dim(codes, self.config.num_codebooks)
        check_range("codes", codes, self.codebook_size, "the bits make {} codes")
        values = signs_of_codes(codes, self.config.bits, self.config.scale)
        values = torch.where((codes >= 0).unsqueeze(-1), values, 0.0)
        return values.flatten(-2) if self.code_dim else values


def codes_of_signs(x: Tensor) -> Tensor:
    """[..., bits] to int64 [...]: the first dimension is the most significant bit, which is 1 for values above 0."""
    return ((x > 0) * _weights(x.shape[-1], x.device)).sum(-1)


def signs_of_codes(codes: Tensor, bits: int, scale: float) -> Tensor:
    """``scale`` or its negative for each bit of ``codes`` [...]: float32 [..., bits]."""
    return torch.where((codes.unsqueeze(-1) & _weights(bits, codes.device)) != 0, scale, -scale).to(torch.float32)


def _weights(bits: int, device: torch.device) -> Tensor:
    """The weight of each bit: 2^(bits - 1), ..., 2, 1."""
    return 2 ** torch.arange(bits - 1, -1, -1, device=device)


def lookup_free_losses(
    x: Tensor, quantized: Tensor, lengths: Tensor | None, config: LFQConfig, scale: float
) -> dict[str, Tensor]:
    """The losses ``"commitment"`` and ``"entropy"`` that ``config`` asks for.

    Args:
        x: [B, T, C, bits], finite, 0 past a length.
        quantized: ``scale`` times the sign of ``x``, 0 past a length; no gradient.
        lengths: [B] int64 or None for T.
        config: of the quantizer.
        scale: of the codes.
    """
    losses = {}
    if config.commitment_weight:
        count = Frames(x, lengths).total().to(x.dtype).clamp(min=1)
        squared = (x - quantized).square().sum() / (count * x.shape[-2] * x.shape[-1])
        losses["commitment"] = config.commitment_weight * squared
    if config.entropy_weight:
        losses["entropy"] = config.entropy_weight * entropy_loss(x, lengths, config, scale)
    return losses


def entropy_loss(x: Tensor, lengths: Tensor | None, config: LFQConfig, scale: float) -> Tensor:
    """Mean over frames of the entropy H(p), minus ``diversity`` times H of the mean of p: it is small if each frame is
    certain of its code and all codes are in use.

    p is the softmax over all 2^bits codes c of -|x - c|^2 / temperature (Yu et al. 2023, equation 5), in nats. Its bits
    are independent, so that the entropy of a frame is the sum over its bits, and p is the outer product of the p of two
    halves of the bits. The mean of p is then a matrix product of the halves, and [N, 2^bits] for all frames is never
    stored. More than ``entropy_group`` bits are split into groups; the sum of their entropies is an upper bound of the
    joint entropy.

    Args:
        x: [B, T, C, bits], finite, 0 past a length.
        lengths: [B] int64 or None for T.
        config: of the quantizer.
        scale: of the codes.

    Returns:
        A scalar in the dtype of x, the mean over the C codes of a token.
    """
    frames = Frames(x, lengths)
    valid = frame_mask(lengths, x.shape[1])
    logits = x * (4 * scale / config.temperature)
    own = zero_past((F.softplus(logits) - logits * torch.sigmoid(logits)).sum((-2, -1)).unsqueeze(-1), valid)
    each = own.sum() / (frames.total().clamp(min=1) * x.shape[2])
    (total,) = pooled(frames.total().to(x.dtype))
    probability = torch.sigmoid(logits)
    together = x.new_zeros(())
    for group in probability.split(config.entropy_group, dim=-1):
        first, second = group.tensor_split(2, dim=-1)
        halves = joint(first), joint(second)
        if valid is not None:
            halves = halves[0], torch.where(valid.unsqueeze(-1), halves[1], 0.0)
        mean = pooled_with_gradient(torch.einsum("ntca,ntcb->cab", *halves)) / total.clamp(min=1)
        together = together - (mean * mean.clamp(min=torch.finfo(x.dtype).tiny).log()).sum() / x.shape[2]
    return each - config.diversity * together


def joint(probability: Tensor) -> Tensor:
    """The probabilities of all combinations of independent bits: [..., n] of each being 1 to [..., 2^n]."""
    every = probability.new_ones((*probability.shape[:-1], 1))
    for bit in range(probability.shape[-1]):
        one = probability[..., bit : bit + 1]
        every = torch.cat((every * (1 - one), every * one), dim=-1)
    return every
