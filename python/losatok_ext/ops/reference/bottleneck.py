"""The bottleneck ops in plain PyTorch: two linear maps with an activation between them, and the cosine loss on top."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.masks import valid_mask

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "none": lambda x: x,
}
"""Every activation that the bottleneck ops take, by name; ``"gelu"`` is the exact one, by the error function."""

NORM_EPS = 1e-12


def bottleneck_project(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    activation: str = "gelu",
) -> Tensor:
    """act(x W_in^T + b_in) W_out^T + b_out: x [..., D], weight_in [H, D], weight_out [d, H] -> [..., d]."""
    return F.linear(ACTIVATIONS[activation](F.linear(x, weight_in, bias_in)), weight_out, bias_out)


def normalize(x: Tensor) -> Tensor:
    """x / max(|x|, 1e-12) over the last dimension; float16 cannot hold 1e-12 and takes its smallest number."""
    facts = torch.finfo(x.dtype)
    return F.normalize(x, dim=-1, eps=max(NORM_EPS, facts.smallest_normal * facts.eps))


def normalized_reconstruction_loss(
    z: Tensor,
    target: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    lengths: Tensor | None = None,
    activation: str = "gelu",
) -> Tensor:
    """Mean over valid frames and features of (normalize(restored) - normalize(target))^2; the target takes no gradient.

    z [..., d], target [..., D]; with ``lengths`` [B] z is [B, T, d]. Without a valid frame it is 0.
    """
    target = target.detach()
    if lengths is None:
        frames: Tensor | float = float(max(target.numel() // max(target.shape[-1], 1), 1))
        valid = None
    else:
        valid = valid_mask(lengths, z.shape[1]).unsqueeze(-1)
        frames = valid.sum().clamp(min=1)
        # Replaced, not multiplied: NaN * 0 is NaN.
        z, target = torch.where(valid, z, 0), torch.where(valid, target, 0)
    restored = bottleneck_project(z, weight_in, bias_in, weight_out, bias_out, activation)
    squares = (normalize(restored) - normalize(target)).square()
    if valid is not None:
        squares = torch.where(valid, squares, 0)
    # A frame's sum is at most 4; the sum of many frames would overflow float16.
    return ((squares.sum(-1) / target.shape[-1]).double().sum() / frames).to(z.dtype)
