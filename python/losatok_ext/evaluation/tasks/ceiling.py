"""How fast the matrix products of a machine are at best, which is the ceiling of every computation made of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from losatok_ext.evaluation.tasks.side_by_side import seconds

_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Rows and columns of the matrices, by device type."""
_TRIAL_SIZE = 256
"""Of the product by which libraries are left out that are several times slower: without a unit for bfloat16, torch.mm
takes a minute for what float32 does in a tenth of a second."""


@dataclass(frozen=True)
class Ceiling:
    """The fastest square matrix product that was measured.

    Attributes:
        flop_per_second: floating-point operations per second (a multiplication and an addition are two).
        library: what computed it, such as ``"oneDNN"``; ``"oneDNN in float32"`` where float32 was the faster dtype.
    """

    flop_per_second: float
    library: str

    def __str__(self) -> str:
        return f"{self.flop_per_second / 1e9:.0f} GFLOP/s ({self.library})"


def _onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies ``dtype`` here. torch uses it for float32 on request only, in linear layers."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def products(dtype: torch.dtype, device: str, size: int) -> dict[str, Callable[[], Tensor]]:
    """By library, functions that each compute the same product of two square matrices.

    ``torch.mm`` on a CPU is MKL in float32 (or the BLAS that torch was built with); oneDNN, which linear layers can use
    for float32, is twice as fast on some AMD processors. On a CPU half precision may be computed in float32 as well:
    where a processor has no unit for it, that is the faster way. float16 is computed in float32 there and no other way,
    as torch's own float16 product is far slower.

    Args:
        dtype: float32, bfloat16 or float16.
        device: ``"cpu"`` or ``"cuda"``.
        size: rows and columns.
    """
    if device != "cpu":
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        return {"torch.mm": partial(torch.mm, a, b)}
    found: dict[str, Callable[[], Tensor]] = {}
    for computed in (torch.float32,) if dtype == torch.float16 else dict.fromkeys((dtype, torch.float32)):
        x, y = (torch.randn(size, size).to(computed) for _ in range(2))
        suffix = "" if computed == dtype else " in float32"
        found[f"torch.mm{suffix}"] = partial(torch.mm, x, y)
        if _onednn(computed):
            packed = torch.ops.mkldnn._reorder_linear_weight(y)
            found[f"oneDNN{suffix}"] = partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], "")
    return found


@cache
def matrix_ceiling(dtype: torch.dtype, device: str = "cpu", budget: float = 1.0) -> Ceiling:
    """The fastest square matrix product in ``dtype``, over all libraries and repeats.

    Args:
        dtype: float32, bfloat16 or float16.
        device: ``"cpu"`` or ``"cuda"``.
        budget: seconds to spend; each library runs four times at least.
    """
    best = Ceiling(0.0, "")
    with torch.no_grad():
        trials = {
            library: min(seconds(product, device) for _ in range(3))
            for library, product in products(dtype, device, _TRIAL_SIZE).items()
        }
        near = [library for library, trial in trials.items() if trial < 4 * min(trials.values())]
        for size in _SIZES[device]:
            candidates = products(dtype, device, size)
            for library in near:
                end = time.perf_counter() + budget / len(_SIZES[device]) / len(near)
                rounds = 0
                while rounds < 4 or time.perf_counter() < end:
                    found = 2 * size**3 / seconds(candidates[library], device)
                    if found > best.flop_per_second:
                        best = Ceiling(found, library)
                    rounds += 1
    return best
