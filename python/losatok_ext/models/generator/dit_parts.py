"""Parts of the generator's network: the embedding of the time and of conditions, and the normalization of latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_SCALE = 1000.0
"""Times within 0..1 are multiplied by this: sinusoidal embeddings are usual for 1000 diffusion steps."""


def table_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sines and cosines for a network in ``dtype``: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time at geometric frequencies, then ``Linear, SiLU, Linear`` (DiT, arXiv 2212.09748)."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.features = features
        self.fc1 = nn.Linear(features, dim)
        self.fc2 = nn.Linear(dim, dim)
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        """t [B] within 0..1 to [B, dim]."""
        half = self.features // 2
        dtype = table_dtype(self.fc1.weight.dtype)
        frequencies = torch.exp(torch.arange(half, dtype=dtype, device=t.device) * (-math.log(10000) / half))
        angles = t.to(dtype)[:, None] * TIME_SCALE * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(waves)))


class LatentNormalization(nn.Module):
    """The mean and standard deviation of each latent dimension over a training set, which normalize latents.

    They stay in float32 when a model is cast to another dtype.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers())
        result = super()._apply(fn, recurse)
        for name, buffer in before.items():
            if getattr(self, name).dtype != buffer.dtype:
                setattr(self, name, buffer.to(getattr(self, name).device))
        return result


def embedding(in_dim: int, dim: int) -> nn.Sequential:
    """``Linear, SiLU, Linear`` from a condition [..., in_dim] to [..., dim]."""
    layers = nn.Sequential(nn.Linear(in_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
    for layer in (layers[0], layers[2]):
        nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layers
