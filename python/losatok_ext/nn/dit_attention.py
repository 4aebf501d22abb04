"""The attention layers of a diffusion transformer, on ``ops.dit_attention``."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext import ops

QKNorm = Literal["none", "rms", "layer"]
Rope = tuple[Tensor, Tensor]


class _Attention(nn.Module):
    """Base of self- and cross-attention: heads, the norm of queries and keys, and the output map."""

    def __init__(
        self, heads: int, head_dim: int, out_dim: int, out_bias: bool, qk_norm: QKNorm, qk_bias: bool, eps: float
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.qk_norm, self.eps = heads, head_dim, qk_norm, eps
        normed, biased = qk_norm != "none", qk_norm == "layer" and qk_bias
        self.q_weight = nn.Parameter(torch.ones(head_dim)) if normed else None
        self.k_weight = nn.Parameter(torch.ones(head_dim)) if normed else None
        self.q_bias = nn.Parameter(torch.zeros(head_dim)) if biased else None
        self.k_bias = nn.Parameter(torch.zeros(head_dim)) if biased else None
        self.out = nn.Linear(heads * head_dim, out_dim, bias=out_bias)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor | None,
        key_lengths: Tensor | None = None,
        rope: Rope | None = None,
        interleaved: bool = False,
    ) -> Tensor:
        """Attention of q [B, T, H, h] to k, v [B, S, H, h]: [B, T, H, h]."""
        norm = None if self.qk_norm == "none" else self.qk_norm
        q_weight, k_weight = self.q_weight, self.k_weight
        if self.q_bias is not None:  # the fused norm has weights and no biases
            q = F.layer_norm(q, (self.head_dim,), q_weight, self.q_bias, self.eps)
            k = F.layer_norm(k, (self.head_dim,), k_weight, self.k_bias, self.eps)
            norm = q_weight = k_weight = None
        return ops.dit_attention(
            q, k, v, q_weight, k_weight, rope, lengths, norm=norm, eps=self.eps, interleaved=interleaved,
            key_lengths=key_lengths,
        )  # fmt: skip


class SelfAttention(_Attention):
    """Multi-head self-attention; queries, keys and values are views of one projection and are read once.

    Args:
        dim: width of the input and output.
        heads: attention heads.
        head_dim: their size.
        qkv_bias: of the projection to queries, keys and values.
        out_bias: of the output map.
        qk_norm: norm of queries and keys over each head: ``"rms"``, ``"layer"`` or ``"none"``.
        qk_bias: ``"layer"`` has biases too. The norm is then computed before the attention op instead of inside it.
        eps: of that norm.
        interleaved: rotary pairs are neighbours (2i, 2i + 1) instead of halves (i, i + n / 2).
        rotary_heads: number of heads (the first ones) that get rotary embedding; 0: all.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        qkv_bias: bool = True,
        out_bias: bool = True,
        qk_norm: QKNorm = "none",
        qk_bias: bool = False,
        eps: float = 1e-6,
        interleaved: bool = False,
        rotary_heads: int = 0,
    ) -> None:
        super().__init__(heads, head_dim, dim, out_bias, qk_norm, qk_bias, eps)
        self.interleaved, self.rotary_heads = interleaved, rotary_heads
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=qkv_bias)

    def forward(self, x: Tensor, lengths: Tensor | None = None, rope: Rope | None = None) -> Tensor:
        """x [B, T, dim] to [B, T, dim].

        Args:
            x: values past a length do not affect those below it.
            lengths: [B] int64, or None for all T.
            rope: (cos, sin), each [T, n / 2], of the first n features of each head.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        some = self.rotary_heads
        if rope is None or some in (0, self.heads):
            attended = self.attend(q, k, v, lengths, rope=rope, interleaved=self.interleaved)
        else:
            turned = self.attend(
                q[:, :, :some], k[:, :, :some], v[:, :, :some], lengths, rope=rope, interleaved=self.interleaved
            )
            attended = torch.cat([turned, self.attend(q[:, :, some:], k[:, :, some:], v[:, :, some:], lengths)], dim=2)
        return self.out(attended.flatten(2))


class CrossAttention(_Attention):
    """Multi-head attention to a context, such as the tokens of a text.

    Args:
        dim: width of the input and output.
        context_dim: width of the context.
        heads: attention heads.
        head_dim: their size.
        context_heads: heads of keys and values, a divisor of ``heads``; each serves ``heads / context_heads`` heads in
            a row. 0: as many as ``heads``.
        qkv_bias: as in :class:`SelfAttention`.
        out_bias: as in :class:`SelfAttention`.
        qk_norm: as in :class:`SelfAttention`.
        qk_bias: as in :class:`SelfAttention`.
        eps: as in :class:`SelfAttention`.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        heads: int,
        head_dim: int,
        context_heads: int = 0,
        qkv_bias: bool = True,
        out_bias: bool = True,
        qk_norm: QKNorm = "none",
        qk_bias: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(heads, head_dim, dim, out_bias, qk_norm, qk_bias, eps)
        self.context_heads = context_heads or heads
        self.q = nn.Linear(dim, heads * head_dim, bias=qkv_bias)
        self.kv = nn.Linear(context_dim, 2 * self.context_heads * head_dim, bias=qkv_bias)

    def forward(
        self, x: Tensor, context: Tensor, lengths: Tensor | None = None, context_lengths: Tensor | None = None
    ) -> Tensor:
        """x [B, T, dim] and context [B, S, context_dim] to [B, T, dim].

        ``lengths`` and ``context_lengths`` [B] int64 count the valid rows of each (None: all). An item without context
        gets what attention to nothing is, zero, through the output map.
        """
        q = self.q(x).unflatten(-1, (self.heads, self.head_dim))
        k, v = self.kv(context).unflatten(-1, (2, self.context_heads, self.head_dim)).unbind(2)
        if self.context_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.context_heads, dim=2) for t in (k, v))
        if context_lengths is None and lengths is not None:  # None would mean that the lengths of the queries apply
            context_lengths = torch.full_like(lengths, context.shape[1])
        return self.out(self.attend(q, k, v, lengths, context_lengths).flatten(2))
