"""What is installed, on which machine, and which implementation of each op runs here and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

import losatok_ext
from losatok_ext import _native
from losatok_ext.ops import dispatch

_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "soundfile",
    "soxr",
    "matplotlib",
    "typer",
    "rich",
    "tensorboard",
)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    gpus = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": facts.name,
                "capability": f"{facts.major}.{facts.minor}",
                "memory_gib": round(facts.total_memory / 2**30, 1),
            }
        )
    return gpus


def _why_unavailable(backend: str, device_type: str, op: str) -> str | None:
    """Why ``backend`` cannot run ``op``. That the native module did not load is explained once, in ``native``."""
    reason = dispatch.unavailable(backend, device_type, op)
    return "not loaded (see above)" if reason is not None and reason == _native.failure else reason


def _op_on(op: str, device_type: str) -> dict[str, Any]:
    """What runs for ``op`` on ``device_type``, why, and what cannot run there."""
    reasons = {backend: _why_unavailable(backend, device_type, op) for backend in dispatch.BACKENDS}
    requested = dispatch.requested_backend()
    preferences = dispatch.preferences(op, device_type)
    if requested is not None:
        runs = requested if reasons[requested] is None else None
        why = f"chosen by hand{'' if runs else ', but unavailable: ' + str(reasons[requested])}"
    else:
        runs = next((backend for backend in preferences if reasons[backend] is None), None)
        better = preferences[: preferences.index(runs)] if runs else preferences
        why = "; ".join(f"{backend}: {reasons[backend]}" for backend in better) or "the default there"
    return {"runs": runs, "why": why, "unavailable": {backend: reason for backend, reason in reasons.items() if reason}}


def info() -> dict[str, Any]:
    """Facts about this installation and machine, as plain dicts, lists and strings (JSON-ready).

    Keys: ``version``, ``python``, ``platform``, ``packages`` (name to version, None where it is not installed),
    ``native`` (facts of the build, or ``error``: why the native ops were not loaded, and what to do), ``processor``
    (name, cores, threads, instruction set of the CPU kernels), ``gpus`` (name, capability, memory in GiB),
    ``triton_interpreter``, and ``ops``: for each op and device type the implementation that ``runs`` (None where
    there is none), ``why``, and those that are ``unavailable``, each with the reason.
    """
    native = _native.module
    devices = ("cpu", "cuda")
    return {
        "version": losatok_ext.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "native": native.build_info() if native else {"error": _native.failure},
        "processor": {
            "name": _processor_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instruction_set": native.instruction_set() if native else None,
        },
        "gpus": _gpus(),
        "triton_interpreter": dispatch.triton_interprets(),
        "ops": {op: {device: _op_on(op, device) for device in devices} for op in dispatch.OPS},
    }


def format_info(facts: dict[str, Any]) -> str:
    """The result of :func:`info` as text for a terminal."""
    native, processor = facts["native"], facts["processor"]
    if "error" in native:
        built = native["error"]
    else:
        built = f"torch {native['torch']}, {native['compiler']}, kernels for {native['instruction_sets']}"
        built += f"; CUDA {native['cuda']}"
        if native["cuda_archs"]:
            built += f" ({native['cuda_archs']})"
    gpus = ", ".join(
        f"{g['name']} (sm_{g['capability'].replace('.', '')}, {g['memory_gib']} GiB)" for g in facts["gpus"]
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
    missing = ", ".join(name for name, version in facts["packages"].items() if not version)
    rows = [
        ("losatok_ext", f"{facts['version']}, Python {facts['python']}, {facts['platform']}"),
        ("packages", versions + (f"; not installed: {missing}" if missing else "")),
        ("native build", built),
        (
            "processor",
            f"{processor['name']}, {processor['cores']} cores, {processor['threads']} threads, "
            f"kernels for {processor['instruction_set']}",
        ),
        ("GPU", gpus or "none seen by torch"),
    ]
    if facts["triton_interpreter"]:
        rows.append(("Triton", "runs in its interpreter (TRITON_INTERPRET is set): on CPU tensors, slow, for tests"))
    lines = [f"{name:<14}{text}" for name, text in rows] + ["", f"{'op':<32}{'device':<8}{'runs':<12}why"]
    for op, devices in facts["ops"].items():
        for device, choice in devices.items():
            lines.append(f"{op:<32}{device:<8}{choice['runs'] or 'nothing':<12}{choice['why']}")
    return "\n".join(lines)
