"""Quantization by codebooks: latents to discrete tokens and back.

The nearest code (vector quantization), and several in turn, each for the residual of those before (residual vector
quantization). Everywhere -1 means "no code": it stands past the end of a clip, and decodes to zeros. Quantization
without a codebook is in :mod:`losatok_ext.ops.quantize_scalar`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch, registry
from losatok_ext.ops.reference import quantize as reference

PRECISIONS = ("exact", "fast")

_NEAREST = registry.declare("vq_nearest", triton="quantize")
_ENCODE = registry.declare("rvq_encode", triton="quantize")
_DECODE = registry.declare("rvq_decode", triton="quantize")

# --- the raw ops: schemas, and what they return, for tracing ---------------------------------------------------------


@_NEAREST.raw(
    "vq_nearest_forward(Tensor x, Tensor codebook, Tensor? lengths, str precision) -> (Tensor indices, Tensor "
    "squared_distance)"
)
def _vq_nearest_fake(x: Tensor, codebook: Tensor, lengths: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    """x [B, T, d], codebook [K, d] of any floating dtypes -> indices [B, T] (int64, -1 past a length) and the squared
    distance [B, T] in float32 (float64).
    """
    rows = x.shape[:-1]
    return x.new_empty(rows, dtype=torch.int64), x.new_empty(rows, dtype=checks.wide(x, codebook))


@_NEAREST.raw(
    "vq_nearest_backward(Tensor grad, Tensor x, Tensor codebook, Tensor indices, bool need_x, bool need_codebook) -> "
    "(Tensor grad_x, Tensor grad_codebook)"
)
def _vq_nearest_backward_fake(
    grad: Tensor, x: Tensor, codebook: Tensor, indices: Tensor, need_x: bool, need_codebook: bool
) -> tuple[Tensor, Tensor]:
    """grad [B, T] of squared_distance -> gradients in the dtypes of x and codebook, [0] where not needed."""
    return x.new_empty(x.shape if need_x else (0,)), codebook.new_empty(codebook.shape if need_codebook else (0,))


@_ENCODE.raw(
    "rvq_encode_forward(Tensor x, Tensor codebooks, Tensor? lengths, str precision) -> (Tensor codes, Tensor quantized)"
)
def _rvq_encode_fake(x: Tensor, codebooks: Tensor, lengths: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    """x [B, T, d], codebooks [Q, K, d] -> codes [B, T, Q] (int64, -1 past a length), quantized like x."""
    return x.new_empty((*x.shape[:-1], codebooks.shape[0]), dtype=torch.int64), x.new_empty(x.shape)


@_DECODE.raw("rvq_decode_forward(Tensor codes, Tensor codebooks) -> Tensor quantized")
def _rvq_decode_fake(codes: Tensor, codebooks: Tensor) -> Tensor:
    """codes [N, q], q <= Q, where -1 adds nothing -> quantized [N, d] in the codebooks' dtype."""
    return codebooks.new_empty((codes.shape[0], codebooks.shape[2]))


@_DECODE.raw("rvq_decode_backward(Tensor grad, Tensor codes, Tensor codebooks) -> Tensor grad_codebooks")
def _rvq_decode_backward_fake(grad: Tensor, codes: Tensor, codebooks: Tensor) -> Tensor:
    """The gradient of rvq_encode to its codebooks, too."""
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
        return *checks.wanted(grads, need[:2]), None, None, None


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


def _check_codes(name: str, codes: Tensor, x: Tensor, sizes: tuple[int | None, ...], meaning: str) -> None:
    """Check ``codes``, one or several codebooks in which ``x`` [..., d] is looked up."""
    checks.floating(name, codes)
    checks.shape(name, codes, sizes, meaning)
    if codes.numel() == 0:
        raise ValueError(f"{name} should hold at least one code of at least one feature, got {list(codes.shape)}")
    checks.same_device(name, codes, "x", x)
    if (codes.dtype == torch.float64) != (x.dtype == torch.float64):
        raise TypeError(f"{name} and x should both be float64 or neither, got {codes.dtype} and {x.dtype}")


# --- statistics -----------------------------------------------------------------------------------------------------


def sums_by_code(rows: Tensor, codes: Tensor, size: int) -> Tensor:
    """For each of ``size`` codes the sum of the rows that chose it, as needed to update a codebook.

    It is the gradient of :func:`rvq_decode` to its codebook, and runs by that kernel: there is no one-hot and no
    [N, size] matrix, and repeated runs give the same bits.

    Args:
        rows: [N, d], float32 or float64; no gradient.
        codes: [N] int64 within -1..size-1; -1 is ignored.
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
    like = rows.new_zeros((1, 1, 1)).expand(1, size, rows.shape[1])  # the op reads only its shape and dtype
    return dispatch.kernels(backend).rvq_decode_backward(rows, codes.unsqueeze(-1), like)[0]


# --- the public functions -------------------------------------------------------------------------------------------


def vq_nearest(
    x: Tensor, codebook: Tensor, lengths: Tensor | None = None, precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """The nearest code of each row: argmin_k |x - c_k|^2, and that squared distance.

    Args:
        x: [..., d]; float32, bfloat16, float16 or float64 (on a GPU as the reference only), any strides. With
            ``lengths``, [B, T, d].
        codebook: [K, d]; any of these dtypes: with bfloat16 rows a float32 codebook keeps its codes unrounded. float64
            goes with float64 only.
        lengths: [B] int64, valid frames of each clip, or None for T. Values past a length, NaN included, have no
            effect.
        precision: ``"exact"`` or ``"fast"``, see below.

    Returns:
        indices: [...] int64, within 0..K-1; -1 past a length. The lowest index wins a tie. It has no gradient.
        squared_distance: [...], float32 (float64 for float64): in float16 it would overflow. 0 past a length. It has a
            gradient to x, 2 (x - c), and to the codebook.

    ``"exact"``: matrix products find the candidates that are nearest within the products' rounding error, and
    differences x - c in float32 decide between them. The chosen distance is the least to 1e-5 relative, also where
    |x|^2 is far larger, and a row that equals a code finds it at distance 0. ``"fast"`` leaves out the second step: the
    squared distance of its choice may exceed the least by 2^-5 |x - m| |c - m|, where m is the mean of about 256 codes
    and c the code farthest from it (products in bfloat16 where the processor has them, on a GPU in float16), and a row
    that equals a code may find another. Measured on a CPU with normal rows and 8192 codes of 128 features: at most
    0.12 % farther, another code for 0.5 % of the rows. The returned distance is that to the chosen code. On a CPU
    ``"fast"`` saves nothing worth having: the second step takes 1 to 3 % of the time.

    A row with a NaN, or so large that every distance is infinite, gets index 0 and the distance to that code (NaN or
    infinity). A code with a NaN or an infinity is never chosen while another has a finite distance. Autocast changes
    nothing here. Memory beyond inputs and outputs is O(N + K d): the [N, K] distances are never stored. On the CPU the
    result, gradients included, has the same bits on any number of threads.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, an empty codebook, an unknown precision, or lengths outside 0..T
            (checked on the CPU only: on a GPU it would wait for the device).
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    lengths = checks.rows(x, lengths)
    _check_codes("codebook", codebook, x, (None, x.shape[-1]), "[K, features of x]")
    checks.one_of("precision", precision, PRECISIONS)
    backend = dispatch.choose("vq_nearest", x.device)
    if backend == "reference":
        return reference.vq_nearest(x, codebook, lengths)
    rows = checks.as_batch(x)
    if checks.need_grad(x, codebook):
        indices, distance = _Nearest.apply(rows, codebook, lengths, precision, backend)
    else:
        indices, distance = dispatch.kernels(backend).vq_nearest_forward(rows, codebook, lengths, precision)
    return indices.view(x.shape[:-1]), distance.view(x.shape[:-1])


def rvq_encode(
    x: Tensor, codebooks: Tensor, lengths: Tensor | None = None, precision: str = "exact"
) -> tuple[Tensor, Tensor]:
    """Residual vector quantization: each stage codes the residual of the stages before it, all in one pass.

    Args:
        x: [..., d], as in :func:`vq_nearest`.
        codebooks: [Q, K, d], one codebook per stage, of dtypes as in :func:`vq_nearest`. For fewer stages, pass fewer.
        lengths: [B] int64, valid frames of each clip, or None for T.
        precision: of every stage's choice, as in :func:`vq_nearest`.

    Returns:
        codes: [..., Q] int64; -1 past a length. No gradient.
        quantized: [..., d], in x's dtype, the sum of the chosen codes; 0 past a length. It has a gradient to the
            codebooks (that of each row goes to the codes it chose) and none to x: a module that trains x adds its own
            estimate, such as the straight-through x + (quantized - x).detach().

    The residual is kept in float32 (float64) and in cache for all stages, on a GPU on the chip. Sums run in the order
    of the stages, as in :func:`rvq_decode`: in float32 the two agree bit for bit. On the CPU the same bits on any
    number of threads, gradients included.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, an empty codebook, an unknown precision, or lengths outside 0..T
            (checked on the CPU only: on a GPU it would wait for the device).
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    lengths = checks.rows(x, lengths)
    _check_codes("codebooks", codebooks, x, (None, None, x.shape[-1]), "[Q, K, features of x]")
    checks.one_of("precision", precision, PRECISIONS)
    backend = dispatch.choose("rvq_encode", x.device)
    if backend == "reference":
        return reference.rvq_encode(x, codebooks, lengths)
    rows = checks.as_batch(x.detach())
    if checks.need_grad(codebooks):
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
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, or a code outside -1..K-1. Codes are checked on the CPU only:
            on a GPU, where that would wait for the device, such a code adds nothing.
        BackendUnavailableError: the implementation asked for cannot run on the codebooks' device.
    """
    codes = checks.integers("codes", codes)
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
    rows = checks.as_rows(codes)
    if checks.need_grad(codebooks):
        quantized = _Decode.apply(codebooks, rows, backend)
    else:
        quantized = dispatch.kernels(backend).rvq_decode_forward(rows, codebooks)
    return quantized.view((*codes.shape[:-1], codebooks.shape[2]))
