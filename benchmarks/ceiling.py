"""What the machine can do, measured in the run that compares against it; and how time and memory are measured."""

from __future__ import annotations

import time
from functools import cache

import torch

from losatok_ext.evaluation.tasks.side_by_side import interleave, peak_memory, seconds

__all__ = ["interleave", "matrix_ceiling", "peak_memory"]


@cache
def matrix_ceiling(dtype: torch.dtype, device: str = "cpu", budget: float = 1.0) -> float:
    """FLOP/s of torch's own square matrix product in ``dtype``: the best of all repeats in ``budget`` seconds.

    float16 on a CPU takes float32's, in which it is computed (torch's own float16 product is far slower).
    """
    if dtype == torch.float16 and device == "cpu":
        dtype = torch.float32
    best = 0.0
    for size in (1024, 2048) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        end = time.perf_counter() + budget / 2
        rounds = 0
        while rounds < 4 or time.perf_counter() < end:
            best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, device))
            rounds += 1
    return best
