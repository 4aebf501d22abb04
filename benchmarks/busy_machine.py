#!/usr/bin/env python3
"""What other programs on the same cores cost, by how OpenMP's threads wait for each other.

    python benchmarks/busy_machine.py --beside 0 2

A thread that waits for its peers spins by default: where another program holds a peer's core, it spins through its own
share of time too, and so the peer waits longer. ``OMP_WAIT_POLICY=PASSIVE`` has it sleep; the command ``losatok`` sets
that. Each row is a process of its own, because OpenMP reads the variable once, when it is loaded. The rows take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from losatok_ext.models import LoSATok, LoSATokConfig
from machine import machine_name

WAITS = {
    "as OpenMP does": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""What is set in the environment of a row."""


@contextmanager
def programs_beside(count: int) -> Iterator[None]:
    """``count`` processes that never rest, until the block ends."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def measure(preset: str, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of each of ``rounds`` encodings and decodings of ``seconds`` of noise; a short one goes before them."""
    torch.manual_seed(0)
    model = LoSATok(LoSATokConfig.preset(preset)).eval()
    rate = model.config.sample_rate
    audio = 0.1 * torch.randn(1, int(seconds * rate))
    times: dict[str, list[float]] = {"encode": [], "decode": []}
    with torch.inference_mode():
        model.decode(model.encode(audio[:, :rate]))
        for _ in range(rounds):
            start = time.perf_counter()
            latents = model.encode(audio)
            encoded = time.perf_counter()
            model.decode(latents)
            times["encode"].append(encoded - start)
            times["decode"].append(time.perf_counter() - encoded)
    return times


def measure_apart(wait: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """:func:`measure` in a process that waits as ``wait`` says."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, __file__, "--child", "--preset", options.preset]
    command += ["--seconds", str(options.seconds), "--rounds", str(options.rounds)]
    done = subprocess.run(command, env={**clean, **WAITS[wait]}, stdout=subprocess.PIPE, text=True, check=True)
    times: dict[str, list[float]] = json.loads(done.stdout)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 2], help="programs beside, one table for each")
    parser.add_argument("--preset", default="tiny", help="of the model (random weights)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio")
    parser.add_argument("--rounds", type=int, default=3, help="measurements in each process")
    parser.add_argument("--turns", type=int, default=3, help="processes of each row")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.preset, options.seconds, options.rounds)))
        return
    print(f"{machine_name('cpu')}, torch {torch.__version__}; {options.preset}, {options.seconds:g} s of audio")
    for beside in options.beside:
        times: dict[str, dict[str, list[float]]] = {wait: {"encode": [], "decode": []} for wait in WAITS}
        with programs_beside(beside):
            for _ in range(options.turns):
                for wait in WAITS:
                    for step, found in measure_apart(wait, options).items():
                        times[wait][step] += found
        print(f"\n{beside} programs beside; seconds: median (least to most)")
        for wait, steps in times.items():
            cells = (f"{s} {statistics.median(t):.3f} ({min(t):.3f} to {max(t):.3f})" for s, t in steps.items())
            print(f"  {wait:15}", *cells, sep="  ")


if __name__ == "__main__":
    main()
