"""Time-relation loss: frames that are alike in the teacher's features should be alike in the latent, and no others.

A Gram loss over time, for any two numbers of features: with L2-normalised rows l_i of the latent and h_i of the teacher
it compares the [T, T] matrices of their inner products (LoSATok, arXiv 2605.27840, on SemBo), without storing one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch, registry
from losatok_ext.ops.reference import time_relation as reference

ALGORITHMS = ("auto", "tiled", "factored", "banded")
FACTORED_ERROR = 5 * 2.0**-24
"""The most that *factored* loses in float32, where its terms nearly cancel: in the loss, this times
(||L L^T||^2 + ||H H^T||^2) / pairs, both at most 1; in the gradient, this times its two terms (root mean square).
"""


_RELATION = registry.declare("time_relation_loss", triton="time_relation")
_ENERGY = registry.declare("gram_energy", triton="time_relation")


@_RELATION.raw(
    "time_relation_forward(Tensor low, Tensor high, Tensor? lengths, int window, str algorithm, "
    "Tensor? high_energy, bool need_grad) -> (Tensor loss, Tensor grad_low)"
)
def _time_relation_fake(low: Tensor, high: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """low [B, T, d], high [B, T, D] -> loss [] and its gradient by low ([0] if not needed) in float32 (float64); a
    window of -1 means none.
    """
    dtype, need_grad = checks.wide(low), options[-1]
    return low.new_empty((), dtype=dtype), low.new_empty(low.shape if need_grad else (0,), dtype=dtype)


@_ENERGY.raw("gram_energy_forward(Tensor high, Tensor? lengths, int window) -> Tensor")
def _gram_energy_fake(high: Tensor, *_: Any) -> Tensor:
    """high [B, T, D] -> [B] in float32 (float64)."""
    return high.new_empty((high.shape[0],), dtype=checks.wide(high))


class _TimeRelation(torch.autograd.Function):
    """The raw op returns the loss together with its gradient; the backward only scales it."""

    @staticmethod
    def forward(ctx: Any, backend: str, compute_dtype: torch.dtype, low: Tensor, high: Tensor, *options: Any) -> Tensor:
        loss, grad = dispatch.kernels(backend).time_relation_forward(
            low.to(compute_dtype), high.to(compute_dtype), *options, True
        )
        ctx.save_for_backward(grad)
        ctx.dtype = low.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return None, None, (grad_output * grad).to(ctx.dtype), *[None] * 5


def _check_window(window: int | None) -> int:
    """``window`` as the raw ops take it: -1 for None."""
    if window is None:
        return -1
    if isinstance(window, bool) or not isinstance(window, (int, torch.SymInt)):
        raise TypeError(f"window should be None or an int (frames, at least 0), got {type(window).__name__}")
    if window < 0:
        raise ValueError(f"window should be None or at least 0 (frames), got {window}; None keeps all pairs")
    return window


def _check_high(high: Tensor) -> None:
    checks.floating("high", high)
    checks.shape("high", high, (None, None, None), "[B, T, D]")
    if high.shape[2] == 0:
        raise ValueError("high should have at least one feature (its last size), got 0")


def _check_algorithm(algorithm: str, window: int, time: int) -> None:
    checks.one_of("algorithm", algorithm, ALGORITHMS)
    if algorithm == "banded" and window < 0:
        raise ValueError(
            "algorithm 'banded' should come with a window (frames), got window=None; give one, or use 'auto'"
        )
    if algorithm == "factored" and 0 <= window < time - 1:
        raise ValueError(
            f"algorithm 'factored' compares all pairs and takes no window below T - 1 = {time - 1}, got {window}; "
            "use 'banded', or 'auto'"
        )


def time_relation_loss(
    low: Tensor,
    high: Tensor,
    lengths: Tensor | None = None,
    window: int | None = None,
    algorithm: str = "auto",
    high_energy: Tensor | None = None,
) -> Tensor:
    """Mean over valid pairs (i, j) of (l_i.l_j - h_i.h_j)^2; l, h: the L2-normalised rows of ``low`` and ``high``.

    Rows are divided by max(norm, 1e-12), as ``torch.nn.functional.normalize`` does. A pair is valid when i and j are
    below the clip's length and, with a window, |i - j| <= window; (i, i) counts. The mean is over all valid pairs of
    the batch: a clip of twice the length has four times the weight. Without a valid pair the loss is 0.

    Args:
        low: [B, T, d], the latent; float32, bfloat16, float16 or float64.
        high: [B, T, D], the teacher's features, of the same dtype and device (any under autocast); it gets no gradient.
        lengths: [B] int64, valid frames of each clip, or None for T. Values past a length have no effect, even NaN.
        window: in frames, at least 0; None compares all pairs, and so does T - 1 or more. 1 is temporal smoothness.
        algorithm: ``"tiled"`` goes over [T, T] in tiles; ``"factored"`` (no window) uses
            ||L L^T - H H^T||^2 = ||L^T L||^2 - 2 ||L^T H||^2 + ||H^T H||^2 and is linear in T; ``"banded"`` (with a
            window) computes only the tiles within the window; ``"auto"`` takes the one that is cheapest for the sizes,
            and never *factored* where no clip is longer than 128 frames: there it saves little and loses digits.
        high_energy: [B], what :func:`gram_energy` returns for the same ``high``, ``lengths`` and ``window``. It is
            constant in training, and saves *factored* its largest product; the other algorithms ignore it.

    Returns:
        [] in the dtype of ``low``; float32 under autocast, where the products are taken in autocast's dtype. On the
        CPU the same bits again on the same number of threads, and the same value to rounding on another number.

    Raises:
        TypeError: a dtype that is not floating or differs between ``low`` and ``high``; a window that is no int.
        ValueError: shapes that do not fit; lengths outside 0..T; an unknown algorithm, ``"factored"`` with a window
            below T - 1, or ``"banded"`` without one.
        BackendUnavailableError: the implementation asked for cannot run here.
    """
    checks.floating("low", low)
    checks.shape("low", low, (None, None, None), "[B, T, d]")
    if low.shape[2] == 0:
        raise ValueError("low should have at least one feature (its last size), got 0")
    _check_high(high)
    checks.shape("high", high, (low.shape[0], low.shape[1], None), "[B, T, D], B and T those of low,")
    autocast = checks.autocast_dtype(low)
    if autocast is None or high.dtype == torch.float64:
        checks.same_dtype_and_device("high", high, "low", low)
    else:
        checks.same_device("high", high, "low", low)
    band = _check_window(window)
    _check_algorithm(algorithm, band, low.shape[1])
    lengths = checks.lengths(lengths, low.shape[0], low.shape[1], low.device)
    compute_dtype = autocast or low.dtype
    if high_energy is not None:
        checks.floating("high_energy", high_energy, (torch.float32, torch.float64))
        checks.shape("high_energy", high_energy, (low.shape[0],), "[B]")
        high_energy = high_energy.detach().to(
            device=low.device, dtype=torch.float64 if compute_dtype == torch.float64 else torch.float32
        )
    result_dtype = torch.float32 if autocast else low.dtype
    high = high.detach()

    backend = dispatch.choose("time_relation_loss", low.device)
    if backend == "reference":
        loss = reference.time_relation_loss(low.to(compute_dtype), high.to(compute_dtype), lengths, window)
        return loss.to(result_dtype)
    options = (lengths, band, algorithm, high_energy)
    if checks.need_grad(low):
        loss = _TimeRelation.apply(backend, compute_dtype, low, high, *options)
    else:
        loss, _ = dispatch.kernels(backend).time_relation_forward(
            low.to(compute_dtype), high.to(compute_dtype), *options, False
        )
    return loss.to(result_dtype)


def gram_energy(high: Tensor, lengths: Tensor | None = None, window: int | None = None) -> Tensor:
    """Per clip, the sum over valid pairs (i, j) of (h_i.h_j)^2, h being the L2-normalised rows of ``high``.

    The constant term of :func:`time_relation_loss`: store it with the teacher's features, and pass it there as
    ``high_energy``.

    Args:
        high: [B, T, D]; float32, bfloat16, float16 or float64. It gets no gradient.
        lengths: [B] int64, valid frames of each clip, or None for T.
        window: keep pairs with |i - j| <= window (frames, at least 0), or None for all.

    Returns:
        [B], float32 (float64 for float64); 0 for a clip without frames. On the CPU the same bits again on the same
        number of threads.

    Raises:
        TypeError: a dtype that is not floating; a window that is no int.
        ValueError: ``high`` is not [B, T, D]; lengths outside 0..T; a negative window.
        BackendUnavailableError: the implementation asked for cannot run here.
    """
    _check_high(high)
    band = _check_window(window)
    lengths = checks.lengths(lengths, high.shape[0], high.shape[1], high.device)
    high = high.detach().to(checks.autocast_dtype(high) or high.dtype)
    backend = dispatch.choose("gram_energy", high.device)
    if backend == "reference":
        return reference.gram_energy(high, lengths, window)
    return dispatch.kernels(backend).gram_energy_forward(high, lengths, band)
