"""Calls raw ops with wrong arguments: ``python -m ops.hostile_calls BACKEND [OP ...]`` in tests/; without names, all.

BACKEND is ``native`` (the C++ ops on the CPU), ``cuda`` (the CUDA bindings and kernels, through the host shim) or
``triton`` (its interpreter, with TRITON_INTERPRET=1). Each call differs from a valid one in one argument. Before a call
its description goes to standard output, so that the last line names the call that ended the process. At the end a line
counts the calls and those that were refused.

With ``native``, the check of the Triton op is asked too: it should refuse the same calls. The other backends are slow.
They leave out values that cannot lead a kernel astray, and ``triton`` all but the last valid call of each op.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from losatok_ext.ops.raw_checks import Check
from losatok_ext.ops.registry import OPS
from ops import opcheck

MOST = 1 << 24
"""Elements that a result may have: the valid calls give about a thousand."""


def valid_calls() -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for each raw op: its cases for ``torch.library.opcheck``, in float32 on the CPU."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if "\n@opchecked(" in path.read_text():
            importlib.import_module(f"ops.{path.stem}")
    calls: dict[str, list[tuple[Any, ...]]] = {name: [] for op in OPS.values() for name in op.schemas}
    for cases in dict.fromkeys(opcheck.CASES.values()):
        torch.manual_seed(0)
        for name, arguments in cases(torch.float32, torch.device("cpu")):
            calls[name].append(arguments)
    return calls


def functions(backend: str) -> dict[str, Callable[..., Any]]:
    """What ``backend`` has for each of its raw ops; tensors are on the CPU."""
    if backend == "native":
        return {name: getattr(torch.ops.losatok, name).default for op in OPS.values() for name in op.schemas}
    if backend == "triton":
        has = [op for op in OPS.values() if op.triton is not None]
        return {name: getattr(torch.ops.losatok_triton, name).default for op in has for name in op.schemas}
    from host_shim.ops import shim_ops

    return {name: partial(shim_ops(), name) for op in OPS.values() if op.cuda for name in op.schemas}


def wrong_calls(op: str, arguments: tuple[Any, ...], backend: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The calls that differ from a valid one in one argument, and what is wrong with each."""
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    for position, argument in enumerate(getattr(torch.ops.losatok, op).default._schema.arguments):
        for what, value in wrong(arguments[position]):
            if backend != "native" and what.startswith("with") and arguments[position].is_floating_point():
                continue
            if backend == "cuda" and what == "on another device" and len(tensors) == 1:
                continue  # the dispatcher sends it there; the shim would not
            yield f"{argument.name} is {what}", (*arguments[:position], value, *arguments[position + 1 :])


def wrong(value: Any) -> Iterator[tuple[str, Any]]:
    """What may stand in place of a valid argument, and what is wrong with it."""
    if isinstance(value, torch.Tensor):
        yield from _wrong_tensors(value)
    elif isinstance(value, bool):
        yield "the opposite", not value
    elif isinstance(value, int):
        yield from ((str(n), n) for n in (-(2**62), -5, -1, 0, 1, 3, 8, 1000, 2**31, 2**62))
    elif isinstance(value, float):
        yield from ((str(n), n) for n in (-1.0, 0.0, float("nan"), float("inf"), 1e300))
    elif isinstance(value, str):
        yield from ((repr(s), s) for s in ("", "evil", "x" * 10000))
    elif isinstance(value, list | tuple):
        wrong_lists = ([], [0], [-3] * 3, [1] * 3, [2**40] * 3, [2] * 70, value[:-1], [*value, 2], [0, *value[1:]])
        yield from ((str(numbers), numbers) for numbers in wrong_lists)
    elif isinstance(value, torch.dtype):
        yield from ((str(d), d) for d in (torch.int8, torch.int64, torch.bool, torch.complex64, torch.float64))


def _wrong_tensors(tensor: torch.Tensor) -> Iterator[tuple[str, Any]]:
    yield "None", None
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool):
        if dtype != tensor.dtype:
            yield str(dtype), tensor.to(dtype)
    yield "complex", tensor.to(torch.complex64)
    yield "on another device", tensor.to("meta")
    yield "a scalar", tensor.flatten()[0]
    yield "one dimension more", tensor[None]
    yield "flat", tensor.flatten()
    yield "sparse", tensor.to_sparse()
    for dim in range(tensor.dim()):
        size = tensor.shape[dim]
        yield f"shorter along {dim}", tensor.narrow(dim, 0, size - 1)
        yield f"empty along {dim}", tensor.narrow(dim, 0, 0)
        yield f"longer along {dim}", torch.cat([tensor, tensor], dim)
        yield f"one repeated along {dim}", tensor.narrow(dim, 0, 1).expand_as(tensor)
    if tensor.dim() >= 2:
        yield "transposed in memory", tensor.mT.contiguous().mT
    fills = (torch.nan, torch.inf, 1e38) if tensor.is_floating_point() else (-(2**62), -5, 10, 120, 1000, 2**40)
    for fill in fills:
        info = None if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
        if info is None or info.min <= fill <= info.max:
            changed = tensor.clone()
            changed.view(-1)[-1] = fill
            yield f"with {fill} at its end", changed


UNLIKE = ("None", "sparse", "on another device")
"""What torch's dispatcher looks at before a native op."""

VALUES = ("-1 is none", "finite values")
"""In the messages of native ops that have read a tensor."""


def check_disagrees(check: Check, what: str, arguments: tuple[Any, ...], error: Exception | None) -> str | None:
    """Whether the check of a Triton op refuses what the native op takes, or takes what it refuses: in words."""
    if what.endswith(UNLIKE):
        return None
    try:
        check(arguments)
    except (TypeError, ValueError) as refusal:
        return f"the Triton op refuses: {refusal}" if error is None else None
    read = error is None or any(words in str(error) for words in VALUES)
    return None if read else f"the Triton op does not refuse: {error}"


def in_a_child(backend: str, *wanted: str) -> tuple[int, int]:
    """Run :func:`main` in a process of its own: the number of calls, and of those that were refused."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "TRITON_INTERPRET": "1" if backend == "triton" else "0"}
    command = [sys.executable, "-m", "ops.hostile_calls", backend, *wanted]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    assert done.returncode == 0, f"exit code {done.returncode} at {last}\n{done.stderr[-2000:]}"
    counts = re.fullmatch(r"(\d+) calls, (\d+) refused", last)
    assert counts is not None
    return int(counts[1]), int(counts[2])


def main(backend: str, wanted: list[str]) -> None:
    """Call the ``wanted`` ops of ``backend``, or all."""
    calls, ops = valid_calls(), functions(backend)
    count = refused = 0
    schemas = {name: getattr(torch.ops.losatok, name).default._schema for op in OPS.values() for name in op.schemas}
    checks = {name: Check(schemas[name]) for op in OPS.values() if op.triton is not None for name in op.schemas}
    for op in wanted or ops:
        assert calls[op], f"{op} has no case for opcheck"
        for arguments in calls[op][-1:] if backend == "triton" else calls[op]:
            ops[op](*arguments)
            for what, changed in wrong_calls(op, arguments, backend):
                print(f"{op}: {what}", flush=True)
                count += 1
                error: Exception | None = None
                results: Any = ()
                try:
                    results = ops[op](*changed)
                except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as raised:
                    error = raised
                    refused += 1
                if backend == "native" and op in checks:
                    difference = check_disagrees(checks[op], what, changed, error)
                    assert difference is None, f"{op}: {what}: {difference}"
                for result in results if isinstance(results, tuple | list) else [results]:
                    assert result.numel() <= MOST, f"a result of {result.numel()} elements"
    print(f"{count} calls, {refused} refused")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
