"""Gradients of choosing a code, which has none of its own: straight-through, rotated from the code to the latent, or
through the distance between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops.quantize import sums_by_code


class Choice(NamedTuple):
    """The choice of a stage, for its gradient.

    Attributes:
        source: [B, T, d], the input of the stage.
        quantized: [B, T, d], the chosen codes.
        valid: [B, T, 1] bool, frames that have a gradient; None: all.
    """

    source: Tensor
    quantized: Tensor
    valid: Tensor | None


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rotate: bool, *parts: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(part if rotate or i % 3 == 2 else None for i, part in enumerate(parts)))
        return _sum(parts[1::3]).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        own = []
        for source, quantized, valid in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
            turned = grad if source is None else rotate_back(grad, source, quantized)
            own.append(turned if valid is None else torch.where(valid, turned, 0.0))
        return _sum(own), None, *(None for _ in parts)


def _sum(parts: Sequence[Any]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def pass_gradient(x: Tensor, choices: Sequence[Choice], kind: str) -> Tensor:
    """The sum of the chosen codes, added in their order, with the sum of their gradients to ``x``.

    Args:
        x: [B, T, d]; it gets the gradient.
        choices: of one stage or of several; they get no gradient.
        kind: ``"straight_through"`` or ``"rotation"``, see :attr:`VQConfig.gradient`.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _sum([choice.quantized for choice in choices])
    parts = (part for source, quantized, valid in choices for part in (source.detach(), quantized, valid))
    return _Passed.apply(x, kind == "rotation", *parts)


class _Directed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        value: Tensor,
        direction: Tensor,
        unit: Tensor,
        valid: Tensor | None,
        codes: Tensor,
        *tables: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(direction, unit, valid, codes)
        ctx.sizes = [len(table) for table in tables]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        direction, unit, valid, codes = ctx.saved_tensors
        to_codes = (grad * direction).sum(-1, keepdim=True) * unit
        to_x = grad - to_codes
        if valid is not None:
            to_x, to_codes = torch.where(valid, to_x, 0.0), torch.where(valid, to_codes, 0.0)
        rows = to_codes.flatten(0, 1)
        moved = (
            sums_by_code(rows, codes[..., stage].flatten(), size) if ctx.needs_input_grad[6 + stage] else None
            for stage, size in enumerate(ctx.sizes)
        )
        return to_x, None, None, None, None, None, *moved


def pass_direction(choice: Choice, codes: Tensor, tables: Sequence[Tensor], noise: Tensor | None = None) -> Tensor:
    """The code ``x + |c - x| u`` with its gradient to x and c through x and the length, the direction u being constant
    (DiVeQ: Vali et al. 2025, arXiv 2509.26469).

    Args:
        choice: x, the code c [B, T, d] (a sum of codes in a chain), and the frames.
        codes: [B, T, Q], the codes that c is the sum of; -1 for none.
        tables: where they are from, [K, d] for each of the Q stages, each of which gets the gradient of c; or none.
        noise: [B, T, d], added to c - x before u is taken from it; None: u is the direction of c - x, and the result
            is c.

    Returns:
        [B, T, d], 0 where the frames are not valid. Where c = x, u and the gradient through the length are 0.
    """
    x, target, valid = choice
    shortest = torch.finfo(x.dtype).tiny
    error = target - x.detach()
    length = error.norm(dim=-1, keepdim=True)
    unit = error / length.clamp(min=shortest)
    direction, value = unit, target
    if noise is not None:
        noised = error + noise
        direction = noised / noised.norm(dim=-1, keepdim=True).clamp(min=shortest)
        value = x.detach() + direction * length
    if valid is not None:
        value = torch.where(valid, value, 0.0)
    if not torch.is_grad_enabled() or not (x.requires_grad or any(table.requires_grad for table in tables)):
        return value
    return _Directed.apply(x, value, direction, unit, valid, codes, *tables)


def rotate_back(grad: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The gradient to ``source`` if ``target`` is written as ``s R source`` with constant R and s.

    R turns the direction u of ``source`` into that of ``target``, t, within their plane, and s is the ratio of their
    lengths: ``R = I - 2 r r^T + 2 t u^T``, r the direction of u + t (Fifty et al. 2024, arXiv 2410.06424, section 4.2).
    Where u and t are opposite to 1e-3, r has no direction, and its term is left out; for a source shorter than 1e-6
    the gradient is not rotated.

    All are [..., d].
    """
    # Not in the module: torch.compile with dynamic shapes would take a module's floats for variables.
    shortest = 1e-6  # rows shorter than this have no direction
    opposite = 1e-6  # |u + t|^2 up to which directions u and t count as opposite
    length, target_length = (rows.norm(dim=-1, keepdim=True) for rows in (source, target))
    short = length < shortest
    length, apart = length.clamp(min=shortest), target_length.clamp(min=shortest)
    along_u = (source * grad).sum(-1, keepdim=True) / length
    along_t = (target * grad).sum(-1, keepdim=True) / apart
    square = 2 + 2 * (source * target).sum(-1, keepdim=True) / (length * apart)  # of |u + t|
    reflected = torch.where(square > opposite, 2 * (along_u + along_t) / square.clamp(min=opposite), 0.0)
    ratio = torch.where(short, 1.0, target_length / length)
    # s R^T grad as a sum of the three vectors: fewer passes over them than one for each product above.
    of_source = torch.where(short, 0.0, ratio * (2 * along_t - reflected) / length)
    of_target = torch.where(short, 0.0, -ratio * reflected / apart)
    return (grad * ratio).addcmul(source, of_source).addcmul(target, of_target)


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
