"""What all launchers share: the kind of device a kernel runs on, the precision of its products, and the launch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from losatok_ext.ops.dispatch import BackendUnavailableError

KINDS = ("sm90", "sm80", "small", "interpreter")
"""The kinds of device in launch tables: data-centre GPUs from Hopper on (227 KB of shared memory), Ampere (163 KB),
GPUs with 99 KB (RTX cards, for example), and Triton's interpreter, which has small tiles so that small shapes need
several.
"""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MINIMUM_TILE = 16
"""The smallest side of a matrix product's tile."""


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def kind(device: torch.device) -> str:
    """Which of :data:`KINDS` ``device`` is.

    Raises:
        BackendUnavailableError: a CPU without the interpreter, or a GPU before compute capability 8.0.
    """
    if device.type == "cuda":
        capability = _capability(torch.cuda.current_device() if device.index is None else device.index)
        if capability < (8, 0):
            raise BackendUnavailableError(
                f"the Triton kernels need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}; "
                "use_backend('native') or use_backend('reference')"
            )
        if capability in ((9, 0), (10, 0), (10, 3)):
            return "sm90"
        return "sm80" if capability in ((8, 0), (8, 7)) else "small"
    if os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        raise BackendUnavailableError(
            f"Triton kernels cannot run on {device.type} tensors; move them to a GPU, or set TRITON_INTERPRET=1 "
            "before Triton is imported, or use_backend('native')"
        )
    return "interpreter"


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has, for choosing how far to split the work; 4 in the interpreter."""
    if device.type != "cuda":
        return 4
    return _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise TypeError for a dtype that Triton's matrix products do not take (float64)."""
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name} should be float32, bfloat16 or float16 for the Triton kernels, got "
            f"{str(tensor.dtype).removeprefix('torch.')}; use_backend('reference') takes it, and on the CPU 'native'"
        )


def precision(dtype: torch.dtype) -> str:
    """How float32 products are computed: ``"tf32"`` where torch allows it for its own (``torch.backends.cuda.matmul``),
    else ``"ieee"``.
    """
    if dtype != torch.float32:
        return "ieee"
    matmul = torch.backends.cuda.matmul
    # Newer versions of torch raise when the old setting is read after the new one was set.
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed else "ieee"


def arithmetic(dtype: torch.dtype) -> str:
    """The arithmetic of ``dtype`` in a launch table: ``"half"`` (bfloat16, float16), ``"tf32"`` or ``"fp32"``."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if precision(dtype) == "tf32" else "fp32"


def tiles(m: int, n: int, k: int, warps: int, stages: int) -> dict[str, int]:
    """One entry of a launch table: a program computes a tile of BLOCK_M x BLOCK_N, BLOCK_K elements of the summed
    dimension at a time, with ``stages`` loads of them in flight.
    """
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}


INTERPRETER = {("interpreter", "any"): tiles(16, 16, 16, 4, 1)}
"""The entry of the interpreter, in every launch table."""

Table = Mapping[tuple[str, str], dict[str, int]]


def config(table: Table, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """The launch configuration of ``table`` for ``device`` and ``dtype``: tile sizes (``BLOCK_*``), ``num_warps``,
    ``num_stages``.
    """
    where = kind(device)
    how = arithmetic(dtype)
    return table[where, "any" if where == "interpreter" else how]


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of ``tensor`` current, for Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    kernel[grid](*arguments, **constants)


runner: Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None] = _run
"""Performs a launch. The tests replace it by a recorder, to compile the kernels ahead of time."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run ``kernel`` over ``grid`` (nothing for an empty one); a None among ``arguments`` is a null pointer."""
    if all(grid):
        runner(kernel, grid, arguments, constants)


def ceil_div(size: int, block: int) -> int:
    """size / block, rounded up."""
    return -(-size // block)


def tile(size: int) -> int:
    """The smallest power of two that is at least ``size`` and at least 16."""
    return max(MINIMUM_TILE, 1 << (size - 1).bit_length())


def rows_contiguous(x: Tensor, rows: int = -2) -> Tensor:
    """``x``, copied if the elements of its last dimension are not next to each other in memory, or if the stride of the
    dimension ``rows`` is so large that 32-bit offsets within a tile of rows would overflow.
    """
    beside = x.shape[-1] <= 1 or x.stride(-1) == 1
    return x if beside and x.stride(rows) < 1 << 23 else x.contiguous()


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """``tensors``, each contiguous; None stays None."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b (two or three dimensions) in float32 from operands of any dtype, by cuBLAS: for products that nothing is
    fused with.
    """
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cpu":  # the interpreter's device: no CPU product gives float32 from half operands
        return a.float() @ b.float()
    multiply = torch.mm if a.dim() == 2 else torch.bmm
    return multiply(a, b, out_dtype=torch.float32)
