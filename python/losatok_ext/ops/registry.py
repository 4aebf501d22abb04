"""The table of all ops: what each is called, which implementations it has, and the schemas of its raw ops.

An op is declared once, in ``losatok_ext/ops/<family>.py``, next to its public function::

    _OP = registry.declare("gated_residual", triton="gated_residual")

    @_OP.raw("gated_residual_forward(Tensor x, Tensor branch, Tensor gate) -> Tensor")
    def _forward_fake(x, branch, gate):
        return x.new_empty(x.shape)

That defines ``torch.ops.losatok.gated_residual_forward``, whose kernels are registered in C++ (``csrc/cpu``,
``csrc/cuda``), and ``torch.ops.losatok_triton.gated_residual_forward``, which runs the function of that name in
``triton_kernels/gated_residual.py``. The decorated function is the fake implementation of both: it makes outputs of the
right shapes and dtypes without data, for ``torch.compile`` and ``torch.export``. The dispatch table
(:mod:`losatok_ext.ops.dispatch`), ``losatok info`` and the tests read the ops from :data:`OPS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from torch.library import Library

from losatok_ext.ops import raw_checks

_Function = TypeVar("_Function", bound=Callable[..., Any])

REBUILD = (
    "the compiled part of losatok_ext was built from other sources than its Python files; build it again: "
    "pip install --no-build-isolation . (make build in a checkout)"
)


def _new_library(namespace: str) -> Library:
    try:
        return Library(namespace, "DEF")
    except RuntimeError as error:
        raise ImportError(f"{REBUILD} ({error})") from error


_NATIVE = _new_library("losatok")
_TRITON = _new_library("losatok_triton")


def _triton_kernel(module: str, name: str) -> Callable[..., Any]:
    """A checked call of ``name`` in ``triton_kernels/<module>.py``, imported at the first call: Triton is slow to
    import.
    """

    @cache
    def functions() -> tuple[Callable[..., None], Callable[..., Any]]:
        schema = getattr(torch.ops.losatok_triton, name).default._schema
        kernel = getattr(importlib.import_module(f"losatok_ext.triton_kernels.{module}"), name)
        return raw_checks.Check(schema), kernel

    def run(*arguments: Any) -> Any:
        check, kernel = functions()
        check(arguments)
        return kernel(*arguments)

    return run


@dataclass(frozen=True)
class Op:
    """One op of the table; :func:`declare` makes it.

    Attributes:
        name: of the public function.
        triton: the module in ``triton_kernels`` that has its kernels, or None where there are none.
        cuda: whether it has CUDA C++ kernels. Every op has C++ kernels for the CPU.
        schemas: the schema of each of its raw ops, by the raw op's name.
        fakes: the fake implementation of each of its raw ops.
    """

    name: str
    triton: str | None
    cuda: bool
    schemas: dict[str, str] = field(default_factory=dict)
    fakes: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def has(self, backend: str, device_type: str) -> bool:
        """Whether this op has kernels of ``backend`` for ``device_type``; every op has a reference for all devices."""
        if backend == "triton":
            return self.triton is not None
        return backend == "reference" or device_type != "cuda" or self.cuda

    def raw(self, schema: str) -> Callable[[_Function], _Function]:
        """Decorator: define the raw op of ``schema`` for all backends; the function is its fake implementation.

        Raises:
            ImportError: the C++ implementation of the raw op has another signature than ``schema``.
        """
        name = schema.partition("(")[0]

        def register(fake: _Function) -> _Function:
            try:
                _NATIVE.define(schema)
            except RuntimeError as error:
                raise ImportError(f"{REBUILD} ({error})") from error
            torch.library.register_fake(f"losatok::{name}", fake, lib=_NATIVE)
            if self.triton is not None:
                _TRITON.define(schema)
                torch.library.register_fake(f"losatok_triton::{name}", fake, lib=_TRITON)
                # For CPU tensors too: Triton's interpreter runs on them. Without it, the launcher raises.
                for key in ("CUDA", "CPU"):
                    _TRITON.impl(name, _triton_kernel(self.triton, name), key)
            self.schemas[name] = schema
            self.fakes[name] = fake
            return fake

        return register


OPS: dict[str, Op] = {}
"""Every public op that has more than one implementation, by name; complete once ``losatok_ext.ops`` is imported."""


PREFERENCES: dict[str, tuple[str, ...]] = {"cpu": ("native",), "cuda": ("triton", "native"), "meta": ("native",)}
"""For each type of device, the implementations to run by default, best first. An op that measures differently gets an
entry ``"<device>:<op>"`` here, which is read instead of the device's own; so do ops without kernels for GPUs."""


def declare(name: str, *, triton: str | None, cuda: bool = True) -> Op:
    """Add the op ``name`` to :data:`OPS`.

    Args:
        name: of the public function.
        triton: the module in ``triton_kernels`` that has its kernels, or None where it has none.
        cuda: whether it has CUDA C++ kernels. Without them and without Triton, it runs as the reference on a GPU.
    """
    OPS[name] = Op(name, triton, cuda)
    if triton is None and not cuda:
        PREFERENCES[f"cuda:{name}"] = ("reference",)
    return OPS[name]
