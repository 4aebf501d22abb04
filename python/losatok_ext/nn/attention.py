"""The semantic encoder's transformer block: pre-norm attention and MLP."""

from __future__ import annotations

from torch import Tensor, nn

from losatok_ext import ops
from losatok_ext.nn.linear import Linear


class Attention(nn.Module):
    """Multi-head self-attention through ``ops.dit_attention``, which stores no [heads, T, T] and copies no heads.

    Args:
        dim: width of the input and output.
        heads: attention heads; ``dim / heads`` is their size.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x [B, T, dim] to [B, T, dim]; ``lengths`` [B] is where the valid keys of each clip end (None: all T)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        return self.proj(ops.dit_attention(q, k, v, lengths=lengths, norm=None).flatten(2))


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
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x [B, T, dim] to [B, T, dim]; ``lengths`` as in :class:`Attention`."""
        x = x + self.attention(self.norm1(x), lengths)
        return x + self.fc2(self.fc1(self.norm2(x), gelu=True))
