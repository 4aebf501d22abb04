"""Quantization in plain PyTorch: nearest codes and their residual chain, finite scalar levels, affine integers.

The definitions, and the oracle of every test of the family. Distances, bounds and levels are computed in float32, or in
float64 for float64 inputs. Codes out of range and values that are not finite raise, as in the op on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from losatok_ext.masks import valid_mask
from losatok_ext.ops.checks import wide

FSQ_MARGIN = 1e-3


def valid_frames(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Which rows of ``x`` [..., d] count: bool [...]. With ``lengths`` [B], x is [B, T, d]; None: all."""
    if lengths is None:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    return valid_mask(lengths.to(x.device), x.shape[1])


def squared_distances(x: Tensor, codebook: Tensor) -> Tensor:
    """|x - c|^2 of every row of ``x`` [..., d] to every code of ``codebook`` [K, d], by differences: [..., K]."""
    dtype = wide(x, codebook)
    return (x.to(dtype).unsqueeze(-2) - codebook.to(dtype)).square().sum(-1)


def vq_nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest code of each row: indices [...] int64, squared distance [...]; -1 and 0 past a length.

    The lowest index wins a tie. A distance that is NaN counts as infinite, so that a row without a finite distance
    gets index 0.
    """
    valid = valid_frames(x, lengths)
    # Replaced, not multiplied: NaN * 0 is NaN, in the gradient too.
    distances = squared_distances(torch.where(valid.unsqueeze(-1), x, 0), codebook)
    indices = distances.detach().nan_to_num(nan=torch.inf, posinf=torch.inf).argmin(-1)
    nearest = distances.gather(-1, indices.unsqueeze(-1)).squeeze(-1)
    return torch.where(valid, indices, -1), torch.where(valid, nearest, 0)


def rvq_encode(x: Tensor, codebooks: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each stage codes the residual of the stages before it: codes [..., Q], and the sum of the chosen codes [..., d].

    ``codebooks`` is [Q, K, d]. The residual takes no gradient; the sum has one to the codebooks.
    """
    residual = x.detach().to(wide(x, codebooks))
    stages = []
    for codebook in codebooks.detach():
        indices, _ = vq_nearest(residual, codebook, lengths)
        stages.append(indices)
        residual = residual - codebook[indices.clamp(min=0)].to(residual.dtype)
    codes = torch.stack(stages, dim=-1)
    return codes, _sum_of_codes(codes, codebooks, wide(x, codebooks)).to(x.dtype)


def rvq_decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The sum over stages of the chosen codes, in the order of the stages: [..., d]; a code of -1 adds nothing.

    Raises:
        ValueError: a code outside -1..K-1.
    """
    check_range("codes", codes, codebooks.shape[1], "the codebooks have {} codes each (K)")
    return _sum_of_codes(codes, codebooks, wide(codebooks)).to(codebooks.dtype)


def _sum_of_codes(codes: Tensor, codebooks: Tensor, dtype: torch.dtype) -> Tensor:
    total = torch.zeros((*codes.shape[:-1], codebooks.shape[-1]), dtype=dtype, device=codebooks.device)
    for stage in range(codes.shape[-1]):
        chosen = codes[..., stage]
        vectors = codebooks[stage].to(dtype)[chosen.clamp(min=0)]
        total = total + torch.where((chosen >= 0).unsqueeze(-1), vectors, 0)
    return total


def sums_by_code(rows: Tensor, codes: Tensor, size: int) -> Tensor:
    """For each of ``size`` codes the sum of the ``rows`` [N, d] that chose it: [size, d]; ``codes`` [N], -1: none."""
    sums = torch.zeros((size + 1, rows.shape[1]), dtype=torch.float64, device=rows.device)
    return sums.index_add(0, codes + 1, rows.double())[1:].to(rows.dtype)


def fsq_constants(levels: Sequence[int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Per dimension: the half range of the bound, its offset (1/2 for even levels) and the shift that maps 0 to 0."""
    count = torch.tensor(levels, dtype=torch.float64)
    half_range = (count - 1) * (1 + FSQ_MARGIN) / 2
    offset = torch.where(count % 2 == 0, 0.5, 0.0).double()
    shift = torch.atanh(offset / half_range)
    return half_range.to(device, dtype), offset.to(device, dtype), shift.to(device, dtype)


def fsq_bound(x: Tensor, levels: Sequence[int]) -> Tensor:
    """tanh(x + shift) * half_range - offset: ``x`` [..., D] bounded so that rounding gives each dimension its levels.

    Finite Scalar Quantization (Mentzer et al., 2023), appendix A, with the shift as the inverse of tanh.
    """
    half_range, offset, shift = fsq_constants(levels, x.dtype, x.device)
    return torch.tanh(x + shift) * half_range - offset


def fsq_quantize(x: Tensor, levels: Sequence[int], lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round each bounded dimension; quantized [..., D] over half its levels, index [...] int64 in mixed radix.

    The gradient passes straight through the rounding. The first dimension is the least significant digit. A NaN gives
    a NaN, and the digit of zero.
    """
    valid = valid_frames(x, lengths).unsqueeze(-1)
    bounded = fsq_bound(torch.where(valid, x, 0).to(wide(x)), levels)
    half_width = torch.tensor([n // 2 for n in levels], dtype=torch.int64, device=x.device)
    highest = torch.tensor([n - 1 - n // 2 for n in levels], dtype=torch.int64, device=x.device)
    rounded = torch.clamp(bounded.detach().round(), -half_width.to(bounded.dtype), highest.to(bounded.dtype))
    # The added term is zero; it carries the gradient past the rounding.
    quantized = (rounded + (bounded - bounded.detach())) / half_width.to(bounded.dtype)
    digits = rounded.nan_to_num(nan=0.0).to(torch.int64) + half_width
    indices = (digits * fsq_basis(levels, x.device)).sum(-1)
    return torch.where(valid, quantized, 0).to(x.dtype), torch.where(valid.squeeze(-1), indices, -1)


def fsq_basis(levels: Sequence[int], device: torch.device) -> Tensor:
    """The weight of each digit of an index: 1, levels[0], levels[0] * levels[1], ...; int64 [D]."""
    weights = [1]
    for count in levels[:-1]:
        weights.append(weights[-1] * count)
    return torch.tensor(weights, dtype=torch.int64, device=device)


def fsq_dequantize(indices: Tensor, levels: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The quantized vectors [..., D] of ``indices`` [...]; -1 gives zeros.

    Raises:
        ValueError: an index outside -1..(product of levels) - 1.
    """
    check_range("indices", indices, math.prod(levels), "levels make {} codes")
    count = torch.tensor(levels, dtype=torch.int64, device=indices.device)
    digits = (indices.clamp(min=0).unsqueeze(-1) // fsq_basis(levels, indices.device)) % count
    wider = torch.float64 if dtype == torch.float64 else torch.float32
    values = (digits - count // 2).to(wider) / (count // 2).to(wider)
    return torch.where((indices >= 0).unsqueeze(-1), values, 0).to(dtype)


def affine_quantize(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ``x`` [N, n] as integers 0..2^bits-1: packed uint8, and scale and offset [N], x ~ offset + scale * q.

    The offset is the row's least value. The scale is its range over 2^bits - 1, never rounded below it, so that no
    value is clipped. Computed in float64: the range of float32 values may overflow float32, and a scale may underflow.

    Raises:
        ValueError: a value or range that is not finite.
    """
    top = 2**bits - 1
    rows, size = x.shape
    dtype = wide(x)
    if size == 0:
        empty = torch.zeros(rows, dtype=dtype, device=x.device)
        return torch.zeros((rows, 0), dtype=torch.uint8, device=x.device), empty, empty.clone()
    values = x.detach().double()
    low, high = values.amin(1), values.amax(1)
    span = high - low
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.isfinite(span).all():
        raise ValueError("x should hold finite values whose range is finite; clean it with torch.nan_to_num first")
    scale = (span / top).to(dtype)
    up = torch.nextafter(scale, torch.full_like(scale, torch.inf))
    scale = torch.where(scale.double() * top < span, up, scale)
    divisor = torch.where(scale > 0, scale.double(), 1)  # not its inverse, which may overflow
    q = ((values - low[:, None]) / divisor[:, None]).round().clamp(0, top).to(torch.uint8)
    if bits == 4:
        q = torch.nn.functional.pad(q, (0, size % 2))
        q = q[:, 0::2] | (q[:, 1::2] << 4)
    return q, scale, low.to(dtype)


def affine_dequantize(
    packed: Tensor, scale: Tensor, offset: Tensor, bits: int, size: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """offset + scale * q for the integers q in ``packed`` [N, n or ceil(n / 2)]: [N, size], by way of float64."""
    q = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :size] if bits == 4 else packed
    return (offset.double()[:, None] + scale.double()[:, None] * q.double()).to(dtype)


def check_range(name: str, values: Tensor, size: int, meaning: str) -> None:
    """Raise ValueError unless ``values`` (on the CPU) all lie within -1..size-1."""
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not values.numel():
        return
    low, high = int(values.min()), int(values.max())
    if low < -1 or high >= size:
        raise ValueError(
            f"{name} should lie within -1..{size - 1} ({meaning.format(size)}; -1 is none), got {low}..{high}"
        )
