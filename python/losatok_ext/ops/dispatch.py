"""Which implementation of an op runs, and how to choose another.

Every op exists up to three times: ``reference`` (plain PyTorch, the definition), ``native`` (C++ on the CPU, CUDA C++
on a GPU) and ``triton``. The default for a device is the first entry of :data:`PREFERENCES` that is available there;
:func:`use_backend` or the environment variable ``LOSATOK_BACKEND`` chooses by hand. A choice that cannot be met raises
:class:`BackendUnavailableError` with the reason and the cure: nothing falls back in silence.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from losatok_ext import _native
from losatok_ext.ops import choice
from losatok_ext.ops.choice import BACKENDS, check_name, use_backend
from losatok_ext.ops.registry import OPS, PREFERENCES

__all__ = [
    "BACKENDS",
    "OPS",
    "PREFERENCES",
    "BackendUnavailableError",
    "choose",
    "default_backend",
    "kernels",
    "preferences",
    "requested_backend",
    "triton_interprets",
    "unavailable",
    "use_backend",
]


class BackendUnavailableError(RuntimeError):
    """The implementation that was asked for cannot run here; the message says why and what to do."""


def _from_environment() -> str | None:
    name = os.environ.get("LOSATOK_BACKEND")
    return check_name(name, "the environment variable LOSATOK_BACKEND") if name else None


_environment = _from_environment()


def requested_backend() -> str | None:
    """The implementation asked for by :class:`use_backend` or ``LOSATOK_BACKEND``, or None."""
    if torch.compiler.is_dynamo_compiling():
        return choice.traced.name or choice.current or _environment
    return choice.current or _environment


def triton_interprets() -> bool:
    """Whether Triton kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), for tests on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _why_not(backend: str, device_type: str) -> str | None:
    if backend == "reference" or (backend == "native" and device_type == "meta"):
        return None  # meta tensors hold no data: outputs of the right shape and dtype need no kernel
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
    if device_type != "cuda" and not (device_type == "cpu" and triton_interprets()):
        return (
            "Triton kernels run on CUDA tensors; on the CPU only in its interpreter, "
            "with TRITON_INTERPRET=1 set before the import"
        )
    return None


# Computed once, at import: torch.compile can read a plain table while it traces.
_WHY_NOT = {
    (backend, device_type): _why_not(backend, device_type)
    for backend in BACKENDS
    for device_type in ("cpu", "cuda", "meta")
}


def unavailable(backend: str, device_type: str, op: str = "") -> str | None:
    """Why ``backend`` cannot run (``op``) on ``device_type`` with its cure, or None when it can."""
    if op and not OPS[op].has(backend, device_type):
        where = "" if backend == "triton" else " for CUDA"
        return f"{op} has no {backend} kernel{where}; leave out use_backend, and its default there runs"
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


def kernels(backend: str) -> Any:
    """The namespace of the raw ops of ``backend``: ``torch.ops.losatok`` or ``torch.ops.losatok_triton``."""
    return torch.ops.losatok if backend == "native" else torch.ops.losatok_triton
