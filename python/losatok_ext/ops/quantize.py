"""Quantization by codebooks: latents to discrete tokens and back.

Nearest codes (vector quantization), and chains of them on what is left over (residual vector quantization). Everywhere
-1 is the code of nothing: it stands where a clip has ended, and decodes to zeros. What needs no codebook is in
:mod:`losatok_ext.ops.quantize_scalar`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch
from losatok_ext.ops.fakes import fake
from losatok_ext.ops.reference import quantize as reference

PRECISIONS = ("exact", "fast")

# --- what the raw ops return, for tracing ---------------------------------------------------------------------------


@fake("vq_nearest_forward")
def _vq_nearest_fake(x: Tensor, codebook: Tensor, lengths: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    rows = x.shape[:-1]
    return x.new_empty(rows, dtype=torch.int64), x.new_empty(rows, dtype=reference.wide(x, codebook))


@fake("vq_nearest_backward")
def _vq_nearest_backward_fake(
    grad: Tensor, x: Tensor, codebook: Tensor, indices: Tensor, need_x: bool, need_codebook: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else (0,)), codebook.new_empty(codebook.shape if need_codebook else (0,))


@fake("rvq_encode_forward")
def _rvq_encode_fake(x: Tensor, codebooks: Tensor, lengths: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    return x.new_empty((*x.shape[:-1], codebooks.shape[0]), dtype=torch.int64), x.new_empty(x.shape)


@fake("rvq_decode_forward")
def _rvq_decode_fake(codes: Tensor, codebooks: Tensor) -> Tensor:
    return codebooks.new_empty((codes.shape[0], codebooks.shape[2]))


@fake("rvq_decode_backward")
def _rvq_decode_backward_fake(grad: Tensor, codes: Tensor, codebooks: Tensor) -> Tensor:
    return codebooks.new_empty(codebooks.shape)


# --- autograd -------------------------------------------------------------------------------------------------------


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codebook: Tensor, lengths: Tensor | None, precision: str, backend: str
    ) -> tuple[Tensor, Tensor]:
        indices, distance = dispatch.kernels(backend).vq_nearest_forward(x, codebook, lengths, precision)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(x, codebook, indices)
        ctx.backend = backend
        return indices, distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad
        grads = dispatch.kernels(ctx.backend).vq_nearest_backward(grad, *ctx.saved_tensors, need[0], need[1])
        return *(g if n else None for g, n in zip(grads, need[:2], strict=True)), None, None, None


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, codebooks: Tensor, x: Tensor, lengths: Tensor | None, precision: str, backend: str
    ) -> tuple[Tensor, Tensor]:
        codes, quantized = dispatch.kernels(backend).rvq_encode_forward(x, codebooks, lengths, precision)
        ctx.mark_non_differentiable(codes)
        ctx.save_for_backward(codes, codebooks)
        ctx.backend = backend
        return codes, quantized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, codebooks = ctx.saved_tensors
        rows = dispatch.kernels(ctx.backend).rvq_decode_backward(grad.flatten(0, 1), codes.flatten(0, 1), codebooks)
        return rows, None, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codebooks: Tensor, codes: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(codes, codebooks)
        ctx.backend = backend
        return dispatch.kernels(backend).rvq_decode_forward(codes, codebooks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return dispatch.kernels(ctx.backend).rvq_decode_backward(grad, *ctx.saved_tensors), None, None


# --- checks ---------------------------------------------------------------------------------------------------------


def check_rows(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Check ``x`` [..., features] and ``lengths``, with which x is [B, T, features]; the lengths on x's device."""
    checks.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x should have shape [..., features], got a scalar")
    if lengths is None:
        return None
    checks.shape("x", x, (None, None, None), "[B, T, features] with lengths")
    return checks.lengths(lengths, x.shape[0], x.shape[1], x.device)


def _check_codes(name: str, codes: Tensor, x: Tensor, sizes: tuple[int | None, ...], meaning: str) -> None:
    """Check a codebook, or several: of which ``x`` [..., d] is to be looked up."""
    checks.floating(name, codes)
    checks.shape(name, codes, sizes, meaning)
    if codes.numel() == 0:
        raise ValueError(f"{name} should hold at least one code of at least one feature, got {list(codes.shape)}")
    if codes.device != x.device:
        raise ValueError(f"{name} should be on x's device {x.device}, got {codes.device}")
    if (codes.dtype == torch.float64) != (x.dtype == torch.float64):
        raise TypeError(f"{name} and x should both be float64 or neither, got {codes.dtype} and {x.dtype}")


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision should be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")


def integers(name: str, tensor: Tensor) -> Tensor:
    """``tensor`` as int64, after checking that it holds int64 or int32."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} should be a torch.Tensor of int64, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} should be int64, got {str(tensor.dtype).removeprefix('torch.')}")
    return tensor.to(torch.int64)


def as_batch(x: Tensor) -> Tensor:
    """[..., C] as [B, T, C]: three dimensions stay, others become one item."""
    if x.dim() == 3:
        return x
    return (x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)).unsqueeze(0)


def need_grad(*tensors: Tensor) -> bool:
    """Whether autograd will ask for a gradient to any of ``tensors``."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


# --- statistics -----------------------------------------------------------------------------------------------------


def sums_by_code(rows: Tensor, codes: Tensor, size: int) -> Tensor:
    """For each of ``size`` codes the sum of the rows that chose it: what a codebook learns from.

    The gradient of :func:`rvq_decode` to its codebook, by whose kernel it runs: no one-hot, no [N, size] matrix; equal
    rows give equal bits.

    Args:
        rows: [N, d], float32 or float64; no gradient.
        codes: [N] int64 within -1..size-1; -1 belongs to none.
        size: how many codes there are.

    Returns:
        [size, d] in the dtype of ``rows``.

    Raises:
        BackendUnavailableError: the implementation asked for cannot run on the device of ``rows``.
    """
    rows = rows.detach()
    backend = dispatch.choose("rvq_decode", rows.device)
    if backend == "reference":
        return reference.sums_by_code(rows, codes, size)
    like = rows.new_zeros((1, 1, 1)).expand(1, size, rows.shape[1])  # its shape and dtype are all that is read
    return dispatch.kernels(backend).rvq_decode_backward(rows, codes.unsqueeze(-1), like)[0]


# --- the public functions -------------------------------------------------------------------------------------------


def vq_nearest(
    x: Tensor, codebook: Tensor, lengths: Tensor | None = None, precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """The nearest code of each row: argmin_k |x - c_k|^2, and that squared distance.

    Args:
        x: [..., d]; float32, bfloat16, float16 or float64 (on a GPU as the reference only), any strides. With
            ``lengths``, [B, T, d].
        codebook: [K, d]; any of these dtypes: a float32 codebook serves bfloat16 rows without losing codes to rounding.
            float64 goes with float64 only.
        lengths: [B] int64, valid frames of each clip, or None for T. What lies past a length, NaN included, changes
            nothing.
        precision: ``"exact"`` or ``"fast"``, see below.

    Returns:
        indices: [...] int64, within 0..K-1; -1 past a length. The lowest index wins a tie. It has no gradient.
        squared_distance: [...], float32 (float64 for float64): in float16 it would overflow. 0 past a length. It has a
            gradient to x, 2 (x - c), and to the codebook.

    ``"exact"``: products choose candidates within a bound of their rounding error, and the candidates are decided by
    differences x - c in float32: the chosen distance is the least to 1e-5 relative, also where |x|^2 is far above it,
    and a code finds itself at distance 0. ``"fast"`` takes the product's word: the squared distance of its choice may
    exceed the least by 2^-5 |x - m| |c - m|, m the mean of some 256 codes and c the code farthest from it (bfloat16
    products, where the processor has them; on a GPU float16), and a code may not find itself. Measured on a CPU, normal
    rows and 8192 codes of 128 features: at most 0.12 % farther, another code for 0.5 % of the rows. The distance that
    it returns is that of its choice. A CPU gains no time by it: there the decision costs 1 to 3 %.

    A row with a NaN, or so large that every distance is infinite, gets index 0 and the distance to that code (NaN or
    infinity). A code with a NaN or an infinity is never chosen while another has a finite distance. Autocast changes
    nothing here. Memory beyond inputs and outputs is O(N + K d): the [N, K] distances never exist. On the CPU the same
    bits on any number of threads, gradients included.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
        ValueError: shapes or devices that do not fit, an empty codebook, an unknown precision, or lengths outside 0..T
            (looked at on the CPU only: on a GPU that would wait for the device).
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    lengths = check_rows(x, lengths)
    _check_codes("codebook", codebook, x, (None, x.shape[-1]), "[K, features of x]")
    _check_precision(precision)
    backend = dispatch.choose("vq_nearest", x.device)
    if backend == "reference":
        return reference.vq_nearest(x, codebook, lengths)
    rows = as_batch(x)
    if need_grad(x, codebook):
        indices, distance = _Nearest.apply(rows, codebook, lengths, precision, backend)
    else:
        indices, distance = dispatch.kernels(backend).vq_nearest_forward(rows, codebook, lengths, precision)
    return indices.view(x.shape[:-1]), distance.view(x.shape[:-1])


def rvq_encode(
    x: Tensor, codebooks: Tensor, lengths: Tensor | None = None, precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """Residual vector quantization: each stage codes what the stages before it left over, all in one pass.

    Args:
        x: [..., d], as in :func:`vq_nearest`.
        codebooks: [Q, K, d], one codebook per stage, of dtypes as in :func:`vq_nearest`. For fewer stages, pass fewer.
        lengths: [B] int64, valid frames of each clip, or None for T.
        precision: of every stage's choice, as in :func:`vq_nearest`.

    Returns:
        codes: [..., Q] int64; -1 past a length. No gradient.
        quantized: [..., d], in x's dtype, the sum of the chosen codes; 0 past a length. Its gradient goes to the
            codebooks (each row's to the codes it chose), and none to x: a module that trains x adds its own estimate,
            such as straight-through x + (quantized - x).detach().

    The residual is kept in float32 (float64) and in cache for all stages, on a GPU on the chip. Sums run in the order
    of the stages, as in :func:`rvq_decode`: in float32 the two agree bit for bit. On the CPU the same bits on any
    number of threads, gradients included.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`vq_nearest`.
    """
    lengths = check_rows(x, lengths)
    _check_codes("codebooks", codebooks, x, (None, None, x.shape[-1]), "[Q, K, features of x]")
    _check_precision(precision)
    backend = dispatch.choose("rvq_encode", x.device)
    if backend == "reference":
        return reference.rvq_encode(x, codebooks, lengths)
    rows = as_batch(x.detach())
    if need_grad(codebooks):
        codes, quantized = _Encode.apply(codebooks, rows, lengths, precision, backend)
    else:
        codes, quantized = dispatch.kernels(backend).rvq_encode_forward(rows, codebooks, lengths, precision)
    return codes.view((*x.shape[:-1], codebooks.shape[0])), quantized.view(x.shape)


def rvq_decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The sum of the codes that each row chose: quantized = sum_q codebooks[q, codes[..., q]].

    Args:
        codes: [..., q] int64 with q <= Q: a row may use the first stages only (quantizer dropout). -1 adds nothing.
        codebooks: [Q, K, d]; float32, bfloat16, float16 or float64.

    Returns:
        [..., d] in the dtype of ``codebooks``, summed in float32 (float64); with a gradient to the codebooks.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
        ValueError: shapes or devices that do not fit, or a code outside -1..K-1. Codes are looked at on the CPU only:
            on a GPU, where that would wait for the device, such a code adds nothing.
        BackendUnavailableError: the implementation asked for cannot run on the codebooks' device.
    """
    codes = integers("codes", codes)
    checks.floating("codebooks", codebooks)
    checks.shape("codebooks", codebooks, (None, None, None), "[Q, K, d]")
    if codes.dim() == 0 or codes.shape[-1] > codebooks.shape[0]:
        raise ValueError(
            f"codes should have shape [..., q] with q <= Q = {codebooks.shape[0]} stages of codebooks, "
            f"got {list(codes.shape)}"
        )
    if codes.device != codebooks.device:
        raise ValueError(f"codes should be on the codebooks' device {codebooks.device}, got {codes.device}")
    backend = dispatch.choose("rvq_decode", codebooks.device)
    if backend == "reference":
        return reference.rvq_decode(codes, codebooks)
    rows = codes.unsqueeze(0) if codes.dim() == 1 else codes.flatten(0, -2)
    if need_grad(codebooks):
        quantized = _Decode.apply(codebooks, rows, backend)
    else:
        quantized = dispatch.kernels(backend).rvq_decode_forward(rows, codebooks)
    return quantized.view((*codes.shape[:-1], codebooks.shape[2]))
