"""Rotary position embedding: the tables that ``ops.dit_attention`` rotates queries and keys by."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from losatok_ext.audio.constants import Constants


def _frequencies(dim: int, base: float) -> Tensor:
    """[dim / 2] float64: radians per position of each pair, ``base ** (-2 i / dim)``."""
    return base ** (torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / -dim)


class RotaryEmbedding(Constants):
    """Cosines and sines of rotary position embedding (RoFormer, arXiv 2104.09864).

    Pair i of a head is rotated by ``position * base ** (-2 i / dim)``. Angles are computed in float64: in float32
    those of an hour's positions would be wrong in their third digit.

    Args:
        dim: features of a head that are rotated, even; may be fewer than the head has.
        base: of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if dim <= 0 or dim % 2:
            raise ValueError(f"dim should be a positive even number of features, got {dim}")
        self.add_constant("frequencies", partial(_frequencies, dim, base))

    def forward(self, time: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [time, dim / 2] of ``dtype``, of the positions 0..time - 1."""
        positions = torch.arange(time, dtype=torch.float64, device=self.frequencies.device)
        angles = positions[:, None] * self.frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)
