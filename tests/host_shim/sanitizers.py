"""Every CUDA launcher on tiny shapes under sanitizers: the program of all_kernels.cpp, and a digest of its sources."""

from __future__ import annotations

import hashlib
import re
import subprocess

from host_shim import build

SCHEDULES = {"asan": ((0, 0), (1, 0), (2, 1)), "tsan": ((2, 1),)}
"""By sanitizer (a key of ``build.SANITIZERS``), the schedules it runs: order and seed of all_kernels.cpp."""

SOURCES = (*build.ALL_KERNELS, *build.KERNELS, *build.RUNTIME)


class NotCleanError(RuntimeError):
    """A sanitizer has found something; the message holds what it printed."""


def digest(sanitizer: str) -> str:
    """16 hex digits: a hash of all that decides what a run finds, the compiler's version excepted."""
    parts = [repr((build.SANITIZERS[sanitizer], SCHEDULES[sanitizer])).encode()]
    read = {path for source in SOURCES for path in (source, *build.included(source))}
    for path in sorted(read, key=lambda path: path.relative_to(build.ROOT).as_posix()):
        parts += [path.relative_to(build.ROOT).as_posix().encode(), path.read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def launches(sanitizer: str) -> int:
    """Compile the program, run it in each schedule, and return how many launches were clean.

    Raises:
        NotCleanError: the sanitizer found something, or a result is not finite.
    """
    program = build.shim_program(*build.ALL_KERNELS, *build.KERNELS, sanitizer=sanitizer)
    total = 0
    for order, seed in SCHEDULES[sanitizer]:
        done = subprocess.run([str(program), str(order), str(seed)], capture_output=True, text=True)
        counted = re.search(r"^ok: (\d+) launches$", done.stdout, re.MULTILINE)
        if done.returncode != 0 or counted is None:
            said = done.stdout[-2000:] + done.stderr[-6000:]
            raise NotCleanError(f"{sanitizer}, order {order}, seed {seed}: exit code {done.returncode}\n{said}")
        total += int(counted[1])
    return total
