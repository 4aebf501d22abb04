"""Which implementation of an op runs, and how to choose another.

Every op exists up to three times: ``reference`` (plain PyTorch, the definition), ``native`` (C++ on the CPU, CUDA C++
on a GPU) and ``triton``. The default for a device is the first entry of :data:`PREFERENCES` that is available there;
:func:`use_backend` or the environment variable ``LOSATOK_BACKEND`` chooses by hand. A choice that cannot be met raises
:class:`BackendUnavailableError` with the reason and the cure: nothing falls back in silence.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from contextvars import ContextVar, Token
from typing import Any

import torch

from losatok_ext import _native

BACKENDS = ("reference", "native", "triton")

OPS = (
    "bottleneck_project",
    "normalized_reconstruction_loss",
    "time_relation_loss",
    "gram_energy",
    "vq_nearest",
    "rvq_encode",
    "rvq_decode",
    "fsq_quantize",
    "fsq_dequantize",
    "affine_quantize",
    "affine_dequantize",
    "layer_norm_modulate",
    "gated_residual",
    "dit_attention",
    "polar_istft",
    "depthwise_conv_norm",
    "int8_linear",
)
"""Every public op that has more than one implementation."""

CPU_ONLY = frozenset({"int8_linear"})
"""Ops whose kernels exist for the CPU only: on a GPU they run as the reference."""

PREFERENCES: dict[str, tuple[str, ...]] = {
    "cpu": ("native",),
    "cuda": ("triton", "native"),
    **{f"cuda:{op}": ("reference",) for op in CPU_ONLY},
}
"""Per device, what runs by default: the first that is available. One table for all ops; an op that measures differently
gets an entry ``"<device>:<op>"`` here, which goes before the device's own."""

_chosen: ContextVar[str | None] = ContextVar("losatok_backend", default=None)
# torch.compile cannot trace a ContextVar. It guards a module global instead: a graph compiled under one backend
# is compiled anew under another.
_chosen_for_tracing: str | None = None


class BackendUnavailableError(RuntimeError):
    """The implementation that was asked for cannot run here; the message says why and what to do."""


def _check_name(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}; it takes one of {', '.join(map(repr, BACKENDS))}")
    return name


class use_backend:  # noqa: N801 - reads as a statement: with use_backend("triton"):
    """Run ops by the implementation ``name`` (``"reference"``, ``"native"`` or ``"triton"``) inside a ``with`` block.

    The choice is local to the context (thread or asyncio task) and may be nested. Functions compiled by
    ``torch.compile`` are recompiled when it changes.

    Raises:
        ValueError: ``name`` is none of the three.
    """

    def __init__(self, name: str) -> None:
        self.name = _check_name(name, "use_backend(name)")
        self._token: Token[str | None] | None = None
        self._previous: str | None = None

    def __enter__(self) -> use_backend:
        global _chosen_for_tracing
        if not torch.compiler.is_compiling():
            self._token = _chosen.set(self.name)
        self._previous = _chosen_for_tracing
        _chosen_for_tracing = self.name
        return self

    def __exit__(self, *exception: object) -> None:
        global _chosen_for_tracing
        if not torch.compiler.is_compiling() and self._token is not None:
            _chosen.reset(self._token)
        _chosen_for_tracing = self._previous


def _from_environment() -> str | None:
    name = os.environ.get("LOSATOK_BACKEND")
    return _check_name(name, "the environment variable LOSATOK_BACKEND") if name else None


def requested_backend() -> str | None:
    """The implementation asked for by :func:`use_backend` or ``LOSATOK_BACKEND``, or None."""
    chosen = _chosen_for_tracing if torch.compiler.is_compiling() else _chosen.get()
    return chosen or _environment


_environment = _from_environment()


def triton_interprets() -> bool:
    """Whether Triton kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), for tests on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _why_not(backend: str, device_type: str) -> str | None:
    if backend == "reference":
        return None
    if backend == "native":
        if _native.module is None:
            return _native.failure
        if device_type == "cuda" and not _native.module.build_info()["with_cuda"]:
            reason = _native.module.build_info()["cuda"].removeprefix("no: ")
            return (
                f"this build of losatok_ext has no CUDA kernels ({reason}); rebuild with LOSATOK_CUDA=1 "
                "next to a CUDA build of torch and nvcc: LOSATOK_CUDA=1 pip install --no-build-isolation ."
            )
        return None
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'losatok-ext[triton]'"
    if device_type == "cpu" and not triton_interprets():
        return (
            "Triton kernels run on CUDA tensors; on the CPU only in its interpreter, "
            "with TRITON_INTERPRET=1 set before the import"
        )
    return None


# Found out once, at import: a plain table is what torch.compile can read while it traces.
_WHY_NOT = {
    (backend, device_type): _why_not(backend, device_type) for backend in BACKENDS for device_type in ("cpu", "cuda")
}


def unavailable(backend: str, device_type: str, op: str = "") -> str | None:
    """Why ``backend`` cannot run (``op``) on ``device_type`` with its cure, or None when it can."""
    if op in CPU_ONLY and (backend == "triton" or (backend == "native" and device_type == "cuda")):
        where = "" if backend == "triton" else " for CUDA"
        return f"{op} has no {backend} kernel{where} yet; without use_backend it runs there as the reference"
    if backend != "reference" and (backend, device_type) not in _WHY_NOT:
        return (
            f"losatok_ext has no {backend} kernels for {device_type} tensors; "
            "move them to cpu or cuda, or use_backend('reference')"
        )
    return _WHY_NOT.get((backend, device_type))


def preferences(op: str, device_type: str) -> tuple[str, ...]:
    """The implementations to try for ``op`` on ``device_type``, best first."""
    return PREFERENCES.get(f"{device_type}:{op}") or PREFERENCES.get(device_type, ())


def default_backend(op: str, device_type: str) -> str:
    """The implementation that runs for ``op`` on ``device_type`` when nobody chose one.

    Raises:
        BackendUnavailableError: none of the preferred implementations is available.
    """
    candidates = preferences(op, device_type)
    for backend in candidates:
        if unavailable(backend, device_type, op) is None:
            return backend
    reasons = "; ".join(f"{backend}: {unavailable(backend, device_type, op)}" for backend in candidates or ("native",))
    raise BackendUnavailableError(f"{op} cannot run on {device_type}. {reasons}")


def choose(op: str, device: torch.device) -> str:
    """The implementation to run ``op`` by on ``device``: the requested one, else the default.

    Raises:
        BackendUnavailableError: the requested implementation cannot run there, or there is no default.
    """
    requested = requested_backend()
    if requested is None:
        return default_backend(op, device.type)
    reason = unavailable(requested, device.type, op)
    if reason is not None:
        raise BackendUnavailableError(f"{op} was asked to run as {requested!r}, which cannot run here: {reason}")
    return requested


@torch.compiler.assume_constant_result
def _import_triton_kernels() -> bool:
    """Import the Triton kernels, which registers their raw ops; torch.compile does this while it traces."""
    importlib.import_module("losatok_ext.triton_kernels")
    return True


def kernels(backend: str) -> Any:
    """The namespace of the raw ops of ``backend``: ``torch.ops.losatok`` or ``torch.ops.losatok_triton``."""
    if backend == "native":
        return torch.ops.losatok
    _import_triton_kernels()
    return torch.ops.losatok_triton
