"""Attention with QK norm and rotary embedding in plain PyTorch: the definition, and the oracle of every test.

It stores full [B, H, T, S] matrices. Queries, keys and attention weights are rounded to the dtype of the inputs where
they enter a product; products, norms and the softmax are in float32 (float64), as in every fused attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.masks import valid_frames
from losatok_ext.ops.checks import wide


def normalize(x: Tensor, weight: Tensor | None, norm: str | None, eps: float) -> Tensor:
    """Each head of ``x`` [B, T, H, h] over its root mean square, for "layer" minus its mean first; times weight."""
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    if norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x if weight is None else x * weight.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate pairs of the first 2 R features of ``x`` [B, T, H, h] by the angles of ``cos``, ``sin`` [T, R].

    Pairs are (i, i + R), or (2 i, 2 i + 1) when ``interleaved``: (a, b) -> (a cos - b sin, b cos + a sin). RoFormer
    (Su et al., 2021), equation 34.
    """
    size = 2 * cos.shape[1]
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]  # [T, 1, R]
    turned, rest = x[..., :size], x[..., size:]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((turned, rest), dim=-1)


def dit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
    norm: str | None = "rms",
    eps: float = 1e-6,
    interleaved: bool = False,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """softmax(Q K^T / sqrt(h)) V for each head, Q and K normalised and rotated; [B, T, H, h].

    ``q`` is [B, T, H, h], ``k`` and ``v`` [B, S, H, h]. ``key_lengths`` counts keys; None means all S, also with
    ``lengths``. Rows past a length, and of clips without a key, are zero.
    """
    rows, keys = valid_frames(q, lengths), valid_frames(k, key_lengths)
    # Replaced, not multiplied: NaN * 0 is NaN, in the gradient too.
    q, k, v = (torch.where(valid[:, :, None, None], x, 0) for valid, x in ((rows, q), (keys, k), (keys, v)))
    dtype, wider = q.dtype, wide(q)
    queries, features = normalize(q.to(wider), q_weight, norm, eps), normalize(k.to(wider), k_weight, norm, eps)
    if rope is not None:
        queries, features = rotate(queries, *rope, interleaved), rotate(features, *rope, interleaved)
    queries, features = (queries * q.shape[-1] ** -0.5).to(dtype).to(wider), features.to(dtype).to(wider)
    scores = torch.einsum("bthc,bshc->bhts", queries, features)
    valid = keys[:, None, None, :]
    weights = scores.masked_fill(~valid, torch.finfo(wider).min).softmax(-1)
    weights = torch.where(valid, weights, 0).to(dtype).to(wider)  # all zero where no key is valid
    out = torch.einsum("bhts,bshc->bthc", weights, v.to(wider)).to(dtype)
    return torch.where(rows[:, :, None, None], out, 0)
