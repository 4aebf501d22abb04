"""Masks of padded batches: which positions of each row lie within its length."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """[B, size] bool: True where the position is below ``lengths`` [B]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def valid_frames(x: Tensor, lengths: Tensor | None) -> Tensor:
    """[B, T] bool: which frames of ``x`` [B, T, ...] are below ``lengths`` [B] (None: all)."""
    if lengths is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return valid_mask(lengths.to(x.device), x.shape[1])


def zero_past(x: Tensor, valid: Tensor | None) -> Tensor:
    """``x`` with zeros where ``valid``, broadcast to it, is False (None: all valid); NaN there does not survive."""
    return x if valid is None else torch.where(valid, x, x.new_zeros(()))


def keep_valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    """``x`` [B, T, ...] with zeros from each clip's length on (lengths [B]; None keeps all); NaN there is gone."""
    if lengths is None:
        return x
    mask = valid_mask(lengths, x.shape[1])
    return zero_past(x, mask.view(mask.shape + (1,) * (x.dim() - 2)))
