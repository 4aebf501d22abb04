"""Layer norm and modulation in plain PyTorch: the definition, and the oracle of every test of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.ops.checks import wide


def per_frame(parameter: Tensor) -> Tensor:
    """[B, C] as [B, 1, C], one for all frames; [B, T, C] as it is."""
    return parameter.unsqueeze(1) if parameter.dim() == 2 else parameter


def layer_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """LN(``x``) * (1 + ``scale``) + ``shift``, in float32 (float64) and rounded once; x [B, T, C]."""
    dtype = wide(x)
    normalized = torch.nn.functional.layer_norm(x.to(dtype), x.shape[-1:], eps=eps)
    return (normalized * (1 + per_frame(scale).to(dtype)) + per_frame(shift).to(dtype)).to(x.dtype)
