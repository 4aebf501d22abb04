"""Gated residual in plain PyTorch: the definition, and the oracle of every test of the op."""

from __future__ import annotations

from torch import Tensor

from losatok_ext.ops.checks import wide
from losatok_ext.ops.reference.layer_norm_modulate import per_frame


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """``x`` + ``gate`` * ``branch``, in float32 (float64) and rounded once; x, branch [B, T, C]."""
    dtype = wide(x)
    return (x.to(dtype) + per_frame(gate).to(dtype) * branch.to(dtype)).to(x.dtype)
