"""Time-relation loss: which frames of a clip are alike should be the same in the latent as in the teacher's features.

A Gram loss over time, free of dimension: with L2-normalised rows l_i of the latent and h_i of the teacher it compares
the [T, T] matrices of their inner products (LoSATok, arXiv 2605.27840, on SemBo), without ever storing one.

.. measured: time_relation float32

The peer's time over ours, time_relation float32 (2 cores of Intel(R) Xeon(R) Processor, torch 2.13.0+cpu,
2026-11-25): B=8 T=250: 1.76x eager, 1.57x compile; B=64 T=250: 2.14x eager, 1.86x compile; B=8 T=750: 1.84x eager,
1.69x compile; B=1 T=750: 1.74x eager, 1.64x compile; B=1 T=7500: 10.93x eager, 9.32x compile; B=8 T=250, high_energy:
1.75x eager, 1.58x compile; B=8 T=750, high_energy: 3.63x eager, 3.31x compile; B=1 T=7500, high_energy: 35.60x eager,
29.10x compile.

.. end

.. measured: time_relation bfloat16

The peer's time over ours, time_relation bfloat16 (2 cores of Intel(R) Xeon(R) Processor, torch 2.13.0+cpu,
2026-11-25): B=8 T=250: 0.97x eager, 0.72x compile; B=64 T=250: 1.56x eager, 1.17x compile; B=8 T=750: 1.27x eager,
0.87x compile; B=1 T=750: 1.76x eager, 1.42x compile.

.. end
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch
from losatok_ext.ops.fakes import fake
from losatok_ext.ops.reference import time_relation as reference

ALGORITHMS = ("auto", "tiled", "factored", "banded")
FACTORED_ERROR = 5 * 2.0**-24
"""What *factored* may lose in float32, where its terms nearly cancel: the loss at most this times
(||L L^T||^2 + ||H H^T||^2) / pairs, both at most 1; the gradient at most this times its two terms (root mean square).
"""


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@fake("time_relation_forward")
def _time_relation_fake(
    low: Tensor,
    high: Tensor,
    lengths: Tensor | None,
    window: int,
    algorithm: str,
    high_energy: Tensor | None,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    dtype = _result_dtype(low.dtype)
    grad = low.new_empty(low.shape if need_grad else (0,), dtype=dtype)
    return low.new_empty((), dtype=dtype), grad


@fake("gram_energy_forward")
def _gram_energy_fake(high: Tensor, lengths: Tensor | None, window: int) -> Tensor:
    return high.new_empty((high.shape[0],), dtype=_result_dtype(high.dtype))


class _TimeRelation(torch.autograd.Function):
    """The raw op gives loss and gradient at once; what comes back is only scaled."""

    @staticmethod
    def forward(
        ctx: Any,
        low: Tensor,
        high: Tensor,
        lengths: Tensor | None,
        window: int,
        algorithm: str,
        high_energy: Tensor | None,
        backend: str,
        compute_dtype: torch.dtype,
    ) -> Tensor:
        loss, grad = dispatch.kernels(backend).time_relation_forward(
            low.to(compute_dtype), high.to(compute_dtype), lengths, window, algorithm, high_energy, True
        )
        ctx.save_for_backward(grad)
        ctx.dtype = low.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return ((grad_output * grad).to(ctx.dtype), *[None] * 7)


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
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm should be one of {', '.join(map(repr, ALGORITHMS))}, got {algorithm!r}")
    if algorithm == "banded" and window < 0:
        raise ValueError(
            "algorithm 'banded' should come with a window (frames), got window=None; give one, or use 'auto'"
        )
    if algorithm == "factored" and 0 <= window < time - 1:
        raise ValueError(
            f"algorithm 'factored' compares all pairs and takes no window below T - 1 = {time - 1}, got {window}; "
            "use 'banded', or 'auto'"
        )


def _autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype in which autocast would multiply matrices there; None outside autocast, or for float64."""
    kind = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def time_relation_loss(
    low: Tensor,
    high: Tensor,
    lengths: Tensor | None = None,
    window: int | None = None,
    algorithm: str = "auto",
    high_energy: Tensor | None = None,
) -> Tensor:
    """Mean over valid pairs (i, j) of (l_i.l_j - h_i.h_j)^2; l, h: the L2-normalised rows of ``low`` and ``high``.

    Rows are normalised as by ``torch.nn.functional.normalize`` (over max(norm, 1e-12)). A pair is valid when i and j
    lie below the clip's length and, with a window, |i - j| <= window; (i, i) counts. The mean is over all valid pairs
    of the batch: a clip of twice the length weighs four times as much. Without a valid pair the loss is 0.

    Args:
        low: [B, T, d], the latent; float32, bfloat16, float16 or float64.
        high: [B, T, D], the teacher's features, of the same dtype and device (any under autocast); it gets no gradient.
        lengths: [B] int64, valid frames of each clip, or None for T. What lies past a length never matters, even NaN.
        window: in frames, at least 0; None compares all pairs, and so does T - 1 or more. 1 is temporal smoothness.
        algorithm: ``"tiled"`` goes over [T, T] in tiles; ``"factored"`` (no window) uses
            ||L L^T - H H^T||^2 = ||L^T L||^2 - 2 ||L^T H||^2 + ||H^T H||^2 and is linear in T; ``"banded"`` (with a
            window) visits the tiles that the band touches; ``"auto"`` takes the cheapest by the sizes, and never
            *factored* where no clip is longer than 128 frames: it would save little there, and may lose digits.
        high_energy: [B], what :func:`gram_energy` gives for the same ``high``, ``lengths`` and ``window``. It is
            constant in training, and saves *factored* its largest product; the others do not need it and ignore it.

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
    autocast = _autocast_dtype(low)
    if autocast is None or high.dtype == torch.float64:
        checks.same_dtype_and_device("high", high, "low", low)
    elif high.device != low.device:
        raise ValueError(f"high should be on low's device {low.device}, got {high.device}")
    band = _check_window(window)
    _check_algorithm(algorithm, band, low.shape[1])
    lengths = checks.lengths(lengths, low.shape[0], low.shape[1], low.device)
    compute_dtype = autocast or low.dtype
    if high_energy is not None:
        checks.floating("high_energy", high_energy, (torch.float32, torch.float64))
        checks.shape("high_energy", high_energy, (low.shape[0],), "[B]")
        high_energy = high_energy.detach().to(device=low.device, dtype=_result_dtype(compute_dtype))
    result_dtype = torch.float32 if autocast else low.dtype
    high = high.detach()

    backend = dispatch.choose("time_relation_loss", low.device)
    if backend == "reference":
        return reference.time_relation_loss(low.to(compute_dtype), high.to(compute_dtype), lengths, window).to(
            result_dtype
        )
    if low.requires_grad and torch.is_grad_enabled():
        loss = _TimeRelation.apply(low, high, lengths, band, algorithm, high_energy, backend, compute_dtype)
    else:
        loss, _ = dispatch.kernels(backend).time_relation_forward(
            low.to(compute_dtype), high.to(compute_dtype), lengths, band, algorithm, high_energy, False
        )
    return loss.to(result_dtype)


def gram_energy(high: Tensor, lengths: Tensor | None = None, window: int | None = None) -> Tensor:
    """Per clip, the sum over valid pairs (i, j) of (h_i.h_j)^2, h being the L2-normalised rows of ``high``.

    The constant term of :func:`time_relation_loss`: cache it with the teacher's features, and hand it over there as
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
    high = high.detach().to(_autocast_dtype(high) or high.dtype)
    backend = dispatch.choose("gram_energy", high.device)
    if backend == "reference":
        return reference.gram_energy(high, lengths, window)
    return dispatch.kernels(backend).gram_energy_forward(high, lengths, band)
