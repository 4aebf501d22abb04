"""The CUDA ops of losatok_ext on CPU tensors, through the host shim: bindings, launchers and kernels as they are."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from host_shim import build
from losatok_ext.ops.registry import OPS

ORDERS = [("forward", 0, 0), ("reverse", 1, 0), *((f"priority{seed}", 2, seed) for seed in range(1, 6))]
"""(name, order, seed) of every schedule that kernels are run in."""


def schemas() -> list[str]:
    """The schemas of all raw ops that have CUDA kernels."""
    return [schema for op in OPS.values() if op.cuda for schema in op.schemas.values()]


class ShimOps:
    """Calls ops by name: ``ShimOps()("gram_energy_forward", high, None, -1)``."""

    def __init__(self) -> None:
        path = build.shim_ops()
        self._definitions = torch.library.Library("losatok_shim", "DEF")
        for schema in schemas():
            self._definitions.define(schema)
        torch.ops.load_library(str(path))
        self._library = ctypes.CDLL(str(path))
        self._library.losatok_shim_set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self._keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    def set_order(self, order: int, seed: int) -> None:
        """How threads take turns from now on: 0 forward, 1 reverse, 2 by priorities drawn from ``seed``."""
        self._library.losatok_shim_set_order(order, seed)

    def __call__(self, name: str, *arguments: Any) -> Any:
        """What the CUDA implementation of ``name`` returns for CPU tensors; fresh memory holds NaN."""
        with _nan_in_fresh_memory():
            return getattr(torch.ops.losatok_shim, name).default.redispatch(self._keys, *arguments)


@contextmanager
def _nan_in_fresh_memory() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # with fill_uninitialized_memory, its default
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@cache
def shim_ops() -> ShimOps:
    """The one instance: an op can be defined once in a process."""
    return ShimOps()
