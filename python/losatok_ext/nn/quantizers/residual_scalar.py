"""Several codes per token without a codebook, each for the residual of those before it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from losatok_ext.masks import zero_past
from losatok_ext.nn.quantizers.base import Quantized, Quantizer, frame_mask, wide_dtype
from losatok_ext.nn.quantizers.config import ResidualFSQConfig, ResidualLFQConfig
from losatok_ext.nn.quantizers.gradients import Choice, pass_gradient
from losatok_ext.nn.quantizers.lookup_free import codes_of_signs, lookup_free_losses, signs_of_codes
from losatok_ext.nn.quantizers.stages import stage_lengths
from losatok_ext.ops.reference.quantize import check_range


class Rounded(NamedTuple):
    """A residual [B, T, n] rounded by a stage.

    Attributes:
        values: [B, T, n], what the codes stand for.
        codes: [B, T] int64.
        passed: [B, T, n] bool, where a gradient passes; None: everywhere.
    """

    values: Tensor
    codes: Tensor
    passed: Tensor | None


class ResidualScalar(Quantizer):
    """The base of :class:`ResidualFSQ` and :class:`ResidualLFQ`: Q stages that round with finer and finer steps."""

    config: ResidualFSQConfig | ResidualLFQConfig

    @property
    def bits_per_token(self) -> float:
        """Q times the bits of a code."""
        return self.config.stages * math.log2(self.codebook_size)

    def _bounded(self, x: Tensor) -> Tensor:
        """What the first stage rounds, made of the latent ``x`` [B, T, n]."""
        return x

    def _round(self, stage: int, residual: Tensor) -> Rounded:
        raise NotImplementedError

    def _values(self, stage: int, codes: Tensor) -> Tensor:
        """Codes [...] of a stage, none of them -1, to float32 [..., n]."""
        raise NotImplementedError

    def _stage_losses(self, stage: int, residual: Tensor, values: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
        return {}

    def _quantize(self, x: Tensor, lengths: Tensor | None, used: Tensor | None = None) -> Quantized:
        valid = frame_mask(lengths, x.shape[1])
        x = self._bounded(zero_past(x.to(wide_dtype(x)), valid))
        residual, total = x, torch.zeros_like(x)
        codes, choices = [], []
        losses: dict[str, Tensor] = {}
        for stage, own in enumerate(stage_lengths(used, x, lengths, self.config.stages)):
            present = frame_mask(own, x.shape[1])
            values, chosen, passed = self._round(stage, residual.detach())
            values = zero_past(values, present)
            codes.append(chosen if present is None else torch.where(present.squeeze(-1), chosen, -1))
            if self.training:
                for name, value in self._stage_losses(stage, zero_past(residual, present), values, own).items():
                    losses[name] = losses[name] + value if name in losses else value
            if self.config.stage_gradients:
                both = present if passed is None else passed if present is None else passed & present
                choices.append(Choice(x, values, both))
            total = total + values
            residual = residual - values
        if not self.config.stage_gradients:
            choices = [Choice(x, total, valid)]
        return Quantized(pass_gradient(x, choices, "straight_through"), torch.stack(codes, dim=-1), losses)

    def _encode(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        valid = frame_mask(lengths, x.shape[1])
        residual = self._bounded(zero_past(x.to(wide_dtype(x)), valid))
        codes = []
        for stage in range(self.config.stages):
            values, chosen, _ = self._round(stage, residual)
            codes.append(chosen)
            residual = residual - values
        stacked = torch.stack(codes, dim=-1)
        return stacked if valid is None else torch.where(valid, stacked, -1)

    def _decode(self, codes: Tensor) -> Tensor:
        stages = self.config.stages
        if not 1 <= codes.shape[-1] <= stages:
            raise ValueError(
                f"codes should have shape [..., q], the first q of the Q = {stages} codes of a token, "
                f"got {list(codes.shape)}"
            )
        check_range("codes", codes, self.codebook_size, "a stage has {} codes")
        total = torch.zeros((*codes.shape[:-1], self.inner_dim), device=codes.device)
        for stage, own in enumerate(codes.unbind(-1)):
            values = self._values(stage, own.clamp(min=0))
            total = total + torch.where((own >= 0).unsqueeze(-1), values, 0.0)
        return total


class ResidualFSQ(ResidualScalar):
    """Residual finite scalar quantization: levels in Q stages, as in vector-quantize-pytorch.

    A dimension with L levels is first squeezed to tanh(x / c) c with c = 1 + 1 / (L - 1). A stage rounds to L values
    evenly spaced within -1..1, both ends included (symmetric levels: Parker et al. 2024, arXiv 2411.19842, section
    3.2); it takes its residual times L^s in stage s = 0, 1, ... and its values count 1 / L^s. Only the linear maps are
    learned, and there are no losses. The gradient is straight-through, to the squeezed latent. With
    ``stage_gradients``, each stage passes it where its residual lies within its levels.

    With ``dropout``, some clips of a training batch use only their first stages: their later codes are -1, and add
    nothing to ``quantized``.

    Args:
        config: of the quantizer.
        dim: d, features of the latents.

    Codes are [..., Q] for latents [..., d]; fewer than Q can be decoded too. The first dimension is the least
    significant digit. A NaN stays NaN in ``quantized``, and counts as level 0 in the codes.
    """

    config: ResidualFSQConfig

    def __init__(self, config: ResidualFSQConfig, dim: int) -> None:
        super().__init__(config, dim, len(config.levels), code_dim=True)

    @property
    def codebook_size(self) -> int:
        """The product of the levels, of each stage."""
        return math.prod(self.config.levels)

    def _levels(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The levels [n] and what a step of each dimension adds to the code [n], int64."""
        # Filled there: a tensor of a list would be copied to a GPU, which waits for it.
        levels = torch.cat([torch.full((1,), level, device=device) for level in self.config.levels])
        return levels, torch.cat((torch.ones_like(levels[:1]), levels[:-1].cumprod(0)))

    def _scale(self, levels: Tensor, stage: int, dtype: torch.dtype) -> Tensor:
        return levels.to(dtype) ** -stage

    def _bounded(self, x: Tensor) -> Tensor:
        levels, _ = self._levels(x.device)
        bound = (1 + 1 / (levels - 1)).to(x.dtype)
        return (x / bound).tanh() * bound

    def _round(self, stage: int, residual: Tensor) -> Rounded:
        levels, steps = self._levels(residual.device)
        scale, top = self._scale(levels, stage, residual.dtype), levels - 1
        enlarged = residual / scale
        level = (top * (enlarged.clamp(-1, 1) + 1) / 2 + 0.5).floor()
        codes = (level.nan_to_num(nan=0.0).to(torch.int64) * steps).sum(-1)
        return Rounded((level * (2 / top) - 1) * scale, codes, enlarged.abs() <= 1)

    def _values(self, stage: int, codes: Tensor) -> Tensor:
        levels, steps = self._levels(codes.device)
        level = codes.unsqueeze(-1) // steps % levels
        return (level * (2 / (levels - 1)) - 1) * self._scale(levels, stage, torch.float32)


class ResidualLFQ(ResidualScalar):
    """Residual lookup-free quantization: :class:`LFQ` in Q stages, as in vector-quantize-pytorch.

    Stage s = 0, 1, ... takes ``scale`` / 2^s times the sign of what the stages before left over. The gradient is
    straight-through. Losses are those of :class:`LFQ`, ``"commitment"`` and ``"entropy"``, summed over the stages.

    With ``dropout``, some clips of a training batch use only their first stages: their later codes are -1, and are not
    part of ``quantized`` and of the losses.

    Args:
        config: of the quantizer.
        dim: d, features of the latents.

    Codes are [..., Q] for latents [..., d]; fewer than Q can be decoded too. The first dimension is the most
    significant bit, which is 1 for values above 0.
    """

    config: ResidualLFQConfig

    def __init__(self, config: ResidualLFQConfig, dim: int) -> None:
        super().__init__(config, dim, config.bits, code_dim=True)

    @property
    def codebook_size(self) -> int:
        """2^bits, of each stage."""
        return 2**self.config.bits

    def _scale(self, stage: int) -> float:
        return self.config.scale * 2.0**-stage

    def _round(self, stage: int, residual: Tensor) -> Rounded:
        scale = self._scale(stage)
        values = torch.where(residual > 0, scale, -scale).to(residual.dtype)
        return Rounded(values, codes_of_signs(residual), None)

    def _values(self, stage: int, codes: Tensor) -> Tensor:
        return signs_of_codes(codes, self.config.bits, self._scale(stage))

    def _stage_losses(self, stage: int, residual: Tensor, values: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
        return lookup_free_losses(
            residual.unsqueeze(-2), values.unsqueeze(-2), lengths, self.config, self._scale(stage)
        )
