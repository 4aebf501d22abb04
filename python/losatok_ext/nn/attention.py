"""The semantic encoder's transformer block: pre-norm attention and MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention through the fused scaled-dot-product kernel: no [heads, T, T] in memory.

    Args:
        dim: width of the input and output.
        heads: attention heads; ``dim / heads`` is their size.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, dim] to [B, T, dim]; ``mask`` [B, 1, 1, T] bool is True at the keys to attend to (None: all)."""
        batch, time, dim = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).reshape(batch, time, dim))


class TransformerBlock(nn.Module):
    """``x + attention(LN(x))``, then ``x + MLP(LN(x))`` with GELU (erf).

    Args:
        dim: width.
        heads: attention heads.
        hidden_dim: width inside the MLP.
        eps: of the layer norms.
    """

    def __init__(self, dim: int, heads: int, hidden_dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, dim] to [B, T, dim]; ``mask`` as in :class:`Attention`."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def key_mask(lengths: Tensor, time: int) -> Tensor:
    """[B, 1, 1, T] bool: the keys below each length; with length 0 the first key, since none would be 0 / 0."""
    return (torch.arange(time, device=lengths.device) < lengths.clamp(min=1)[:, None])[:, None, None, :]
