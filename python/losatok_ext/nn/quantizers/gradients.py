"""Gradients past a choice that has none: straight through, or turned as the choice turned the latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORTEST = 1e-6
"""Rows shorter than this have no direction to turn from."""


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, valid: Tensor | None) -> Tensor:
        ctx.save_for_backward(valid)
        return quantized.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (valid,) = ctx.saved_tensors
        return _keep(grad, valid), None, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, quantized: Tensor, valid: Tensor | None) -> Tensor:
        ctx.save_for_backward(source, quantized, valid)
        return quantized.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, quantized, valid = ctx.saved_tensors
        return _keep(rotate_back(grad, source, quantized), valid), None, None, None


def _keep(grad: Tensor, valid: Tensor | None) -> Tensor:
    return grad if valid is None else torch.where(valid, grad, 0.0)


def rotate_back(grad: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The gradient to ``source`` when ``target`` is taken for ``s R source``, with R and s held constant.

    R turns the direction of ``source`` into that of ``target`` within their plane; ``s`` is the ratio of their lengths:
    ``R = I - 2 r r^T + 2 t u^T``, u and t the directions, r that of u + t (Fifty et al. 2024, arXiv 2410.06424,
    section 4.2). A source shorter than 1e-6 gets the gradient as it is.

    All are [..., d].
    """
    source_length = source.norm(dim=-1, keepdim=True)
    target_length = target.norm(dim=-1, keepdim=True)
    u = source / source_length.clamp(min=SHORTEST)
    t = target / target_length.clamp(min=SHORTEST)
    r = u + t
    r = r / r.norm(dim=-1, keepdim=True).clamp(min=SHORTEST)
    turned = grad - 2 * r * (r * grad).sum(-1, keepdim=True) + 2 * u * (t * grad).sum(-1, keepdim=True)
    return torch.where(source_length < SHORTEST, grad, turned * (target_length / source_length.clamp(min=SHORTEST)))


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (known,) = ctx.saved_tensors
        return grad * known, None, None


def known_gradient(x: Tensor, value: Tensor, grad: Tensor) -> Tensor:
    """The scalar ``value`` as a loss whose gradient to ``x`` is ``grad``, of the shape of x."""
    return _KnownGradient.apply(x, value, grad)


def pass_gradient(x: Tensor, source: Tensor, quantized: Tensor, valid: Tensor | None, kind: str) -> Tensor:
    """``quantized``, bit for bit, with a gradient to ``x`` of the ``kind`` of :attr:`VQConfig.gradient`.

    Args:
        x: [B, T, d], what gets the gradient.
        source: [B, T, d], what was quantized: ``x``, or what was left of it.
        quantized: [B, T, d], without a gradient.
        valid: [B, T, 1] bool, frames that have a gradient; None: all.
        kind: ``"straight_through"`` or ``"rotation"``.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return quantized
    if kind == "rotation":
        return _Rotation.apply(x, source.detach(), quantized, valid)
    return _StraightThrough.apply(x, quantized, valid)
