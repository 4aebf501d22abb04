"""Chains of codebooks: each stage quantizes the residual of the stages before. One codebook is a chain of one stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext import ops
from losatok_ext.masks import zero_past
from losatok_ext.nn.noise import normal
from losatok_ext.nn.quantizers.base import Quantized, Quantizer, frame_mask, wide_dtype
from losatok_ext.nn.quantizers.config import CodebookConfig, StagedConfig
from losatok_ext.nn.quantizers.gradients import Choice, known_gradient, pass_direction, pass_gradient
from losatok_ext.nn.quantizers.kmeans import usable
from losatok_ext.nn.quantizers.pool import Frames
from losatok_ext.nn.quantizers.stages import stage_lengths
from losatok_ext.nn.quantizers.tables import CodeTables
from losatok_ext.ops.quantize import sums_by_code


class Chain(Quantizer):
    """The base of quantizers with codebooks: Q stages, with a codebook each or one for all.

    Args:
        config: of the codebooks.
        dim: features of the latents.
        stages: Q.
        codebooks: makes the codes of the stages, of as many features as it is given.
        code_dim: whether codes are [..., Q]; otherwise there is one stage, and they are [...].
        shared: whether all stages use one codebook.
    """

    config: CodebookConfig
    codebooks: CodeTables

    def __init__(
        self,
        config: CodebookConfig,
        dim: int,
        stages: int,
        codebooks: Callable[[int], CodeTables],
        code_dim: bool,
        shared: bool = False,
    ) -> None:
        super().__init__(config, dim, config.codebook_dim or dim, code_dim)
        self.stages, self.shared = stages, shared
        self.codebooks = codebooks(self.inner_dim)

    @property
    def codebook_size(self) -> int:
        """K, number of codes of a codebook."""
        return self.config.codebook_size

    def _draw_stages(self, batch: int, device: torch.device) -> Tensor | None:
        # The batch that the codebooks start from uses all stages.
        return super()._draw_stages(batch, device) if self.codebooks.ready else None

    def _quantize(self, x: Tensor, lengths: Tensor | None, used: Tensor | None = None) -> Quantized:
        if self.training:
            return self._learn(self._unit(x.to(wide_dtype(x)), lengths), lengths, used)
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.to(wide_dtype(x))
        x = self._unit(x, lengths)
        codes, quantized = ops.rvq_encode(x.detach(), self.codebooks.tables(self.stages), lengths)
        choice = Choice(x, quantized, frame_mask(lengths, x.shape[1]))
        if self.config.gradient == "directional":
            quantized = pass_direction(choice, codes, [])
        else:
            quantized = pass_gradient(x, [choice], self.config.gradient)
        return Quantized(quantized, self._codes(codes), {})

    def _encode(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return self._codes(ops.rvq_encode(self._unit(x, lengths), self.codebooks.tables(self.stages), lengths)[0])

    def _decode(self, codes: Tensor) -> Tensor:
        return ops.rvq_decode(codes if self.code_dim else codes.unsqueeze(-1), self.codebooks.tables(self.stages))

    def _codes(self, codes: Tensor) -> Tensor:
        return codes if self.code_dim else codes.squeeze(-1)

    def _unit(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """``x`` with rows of length 1 if the option ``cosine`` is set, else ``x`` itself."""
        if not self.codebooks.cosine:
            return x
        return F.normalize(zero_past(x, frame_mask(lengths, x.shape[1])).to(wide_dtype(x)), dim=-1, eps=1e-6)

    def _learn(self, x: Tensor, lengths: Tensor | None, clip_stages: Tensor | None) -> Quantized:
        """One training step: every stage chooses codes and computes its losses, and its codebook learns."""
        books, config = self.codebooks, self.config
        starting, started = not books.ready, False
        residual = x.detach()
        total: Tensor | None = None
        codes, choices, seen, tables = [], [], [], []
        losses = _Losses(config, x, books.learned)
        each = isinstance(config, StagedConfig) and config.stage_gradients
        for stage, used in enumerate(stage_lengths(clip_stages, x, lengths, self.stages)):
            book = 0 if self.shared else stage
            frames = Frames(residual, used)
            if starting and (stage == 0 or not self.shared):
                started = books.start(book, frames)
            table = books.table(book)
            indices, distance = ops.vq_nearest(residual, table.detach(), used)
            chosen = ops.rvq_decode(indices.unsqueeze(-1), table.detach().unsqueeze(0))
            codes.append(indices)
            tables.append(table)
            valid = frame_mask(used, x.shape[1])
            left = residual - chosen
            losses.add(frames, zero_past(left, valid), distance, indices, table)
            if each:
                choices.append(Choice(residual, chosen, valid))
            else:
                total = chosen if total is None else total + chosen
            books.update(book, frames, usable(indices, distance), refresh=not self.shared)
            if self.shared:
                seen.append(frames)
            residual = left
        if self.shared:
            books.refresh(0)
            books.revive(0, _joined(seen))
        if started:
            books.finish_start()
        chosen_codes = torch.stack(codes, dim=-1)
        if total is not None:
            choices = [Choice(x, total, frame_mask(lengths, x.shape[1]))]
        if config.gradient == "directional":
            noise = normal(x.shape, dtype=x.dtype, device=x.device) * config.direction_noise**0.5
            quantized = pass_direction(choices[0], chosen_codes, tables, noise)
        else:
            quantized = pass_gradient(x, choices, config.gradient)
        return Quantized(quantized, self._codes(chosen_codes), losses.values())


class _Losses:
    """The losses of all stages with their gradients, so that one gradient is kept instead of the rows of each stage.

    Commitment is the mean of (x - sg(c))^2 over the frames and features of a stage; the codebook loss that of
    (sg(x) - c)^2 (van den Oord et al. 2017, equation 3). Both are summed over the stages.
    """

    def __init__(self, config: CodebookConfig, x: Tensor, learned: bool) -> None:
        self.config, self.x, self.learned = config, x, learned
        self.commitment, self.codebook = x.new_zeros(()), x.new_zeros(())
        self.gradient: Tensor | None = None

    def add(self, frames: Frames, left: Tensor, distance: Tensor, indices: Tensor, table: Tensor) -> None:
        """Add a stage; ``left`` [B, T, d] is the residual of its ``frames``, 0 past their lengths."""
        config = self.config
        scale = 1 / (frames.total().clamp(min=1).to(left.dtype) * left.shape[-1])
        value = distance.sum() * scale
        self.commitment = self.commitment + config.commitment_weight * value
        if torch.is_grad_enabled() and self.x.requires_grad:
            slope = 2 * config.commitment_weight * scale
            self.gradient = left * slope if self.gradient is None else self.gradient.addcmul(left, slope)
        if self.learned:
            weight = config.codebook_weight
            sums = sums_by_code(left.flatten(0, 1), indices.flatten(), config.codebook_size)
            self.codebook = self.codebook + known_gradient(table, weight * value, (-2 * weight * scale) * sums)

    def values(self) -> dict[str, Tensor]:
        """The losses that the configuration asks for."""
        losses = {}
        if self.config.commitment_weight:
            known = self.gradient
            losses["commitment"] = self.commitment if known is None else known_gradient(self.x, self.commitment, known)
        if self.learned and self.config.codebook_weight:
            losses["codebook"] = self.codebook
        return losses


def _joined(seen: list[Frames]) -> Frames:
    """The frames of all stages as one batch."""
    lengths = [frames.lengths for frames in seen]
    return Frames(
        torch.cat([frames.x for frames in seen]),
        None if lengths[0] is None else torch.cat([own for own in lengths if own is not None]),
    )
