"""Each instruction set of the CPU kernels on its own: a process takes one, so each gets a process.

A test module hands its own path to :func:`run_inside`, and marks what runs in those processes as :data:`inside`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from losatok_ext import _native

ROOT = Path(__file__).parents[2]
ASKED = os.environ.get("LOSATOK_TEST_ISA")
INSTRUCTION_SETS = ["default", "avx2", "avx512"]

outside = pytest.mark.skipif(ASKED is not None, reason="runs inside test_each_instruction_set")
inside = pytest.mark.skipif(ASKED is None, reason="runs in the processes that test_each_instruction_set starts")


def run_inside(isa: str, path: str) -> None:
    """Run the tests of ``path`` whose name has "inside" on the instruction set ``isa``; skips where there is none."""
    best = _native.module.instruction_set()
    built = _native.module.build_info()["instruction_sets"]
    if isa not in built or INSTRUCTION_SETS.index(isa) > INSTRUCTION_SETS.index(best):
        pytest.skip(f"this processor and build have no {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path, "-k", "inside"]
    environment = {**os.environ, "LOSATOK_ISA": isa, "LOSATOK_TEST_ISA": isa, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
