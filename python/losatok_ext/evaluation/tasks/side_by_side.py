"""Time and memory of functions that do the same, measured in turn in one run, so that they can be compared."""

from __future__ import annotations

import ctypes
import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


def synchronize(device: str) -> None:
    """Wait until the GPU has finished its work; nothing to do on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], device: str) -> float:
    """Wall time of one call, kernels on a GPU included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


class PeakUnknownError(RuntimeError):
    """The system does not report the peak of resident memory."""


def peak_memory(function: Callable[[], object], device: str = "cpu") -> int:
    """Bytes of peak memory of ``function`` beyond what was in use before.

    On a CPU this is the resident memory of the process (Linux only), scratch space of libraries included; on a GPU it
    is what torch's allocator reports.

    Raises:
        PeakUnknownError: the system does not report the peak of resident memory.
    """
    function()  # so that lasting allocations (workspaces, compiled code) are not counted
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if platform.system() != "Linux":
        raise PeakUnknownError("peak memory on the CPU is read from /proc, which only Linux has")
    ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak to what is resident now
    except OSError as error:
        raise PeakUnknownError(f"the peak of resident memory cannot be reset: {error}") from error
    before = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise PeakUnknownError(f"/proc/self/status has no {key}")


@dataclass(frozen=True)
class Timing:
    """Wall seconds of one implementation over all rounds of a comparison.

    Attributes:
        best: of all rounds.
        median: of all rounds.
    """

    best: float
    median: float


def interleave(
    functions: dict[str, Callable[[], object]], device: str, budget: float = 2.0, rounds: int = 7
) -> dict[str, Timing]:
    """Time all ``functions`` round by round, so that what slows the machine down slows all of them.

    At least ``rounds`` rounds are run, and more until ``budget`` seconds are over. Each round has its own random order,
    and a function that takes less than 10 ms is called once before it is timed, so that what the previous one left in
    the caches has no effect.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    usual = {name: min(seconds(function, device) for _ in range(2)) for name, function in functions.items()}
    order, shuffle = list(functions), random.Random(0).shuffle
    end = time.perf_counter() + budget
    while len(times[order[0]]) < rounds or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            if usual[name] < 0.01:
                functions[name]()
            times[name].append(seconds(functions[name], device))
    return {name: Timing(min(all_), sorted(all_)[len(all_) // 2]) for name, all_ in times.items()}
