"""Quantizer dropout: which stages of a residual quantizer each clip of a training batch uses."""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.nn.noise import integers, uniform
from losatok_ext.nn.quantizers.config import QuantizerConfig, StagedConfig


def draw_stages(config: QuantizerConfig, batch: int, device: torch.device) -> Tensor | None:
    """[B] int64, number of stages that each of ``batch`` clips uses in a training step; None: all use all.

    A share of ``dropout`` clips uses a number drawn evenly from ``min_stages`` to Q, rounded up to a multiple of
    ``dropout_multiple_of`` and down to Q.
    """
    if not isinstance(config, StagedConfig) or not config.dropout:
        return None
    drawn = integers(config.min_stages, config.stages + 1, (batch,), device=device)
    if (multiple := config.dropout_multiple_of) > 1:
        drawn = ((drawn + multiple - 1) // multiple * multiple).clamp(max=config.stages)
    return torch.where(uniform((batch,), device=device) < config.dropout, drawn, config.stages)


def stage_lengths(used: Tensor | None, x: Tensor, lengths: Tensor | None, stages: int) -> list[Tensor | None]:
    """The lengths of ``x`` [B, T, d] for each stage: 0 for clips that do not use it (``used``: :func:`draw_stages`)."""
    if used is None:
        return [lengths] * stages
    whole = torch.full_like(used, x.shape[1]) if lengths is None else lengths
    return [torch.where(stage < used, whole, 0) for stage in range(stages)]
