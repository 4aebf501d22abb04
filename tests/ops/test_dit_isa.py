"""Each instruction set of the CPU kernels on its own: a process takes one, so each gets a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from losatok_ext import _native, ops
from ops.dit_cases import DTYPES, LARGE, SMALL, check, check_attention, modulation_inputs

ROOT = Path(__file__).parents[2]
ASKED = os.environ.get("LOSATOK_TEST_ISA")


@pytest.mark.skipif(ASKED is not None, reason="runs inside test_each_instruction_set")
@pytest.mark.parametrize("isa", ["default", "avx2", "avx512"])
def test_each_instruction_set(isa):
    best = _native.module.instruction_set()
    order = ["default", "avx2", "avx512"]
    if isa not in _native.module.build_info()["instruction_sets"] or order.index(isa) > order.index(best):
        pytest.skip(f"this processor and build have no {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), "-k", "inside"]
    environment = {**os.environ, "LOSATOK_ISA": isa, "LOSATOK_TEST_ISA": isa, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


@pytest.mark.skipif(ASKED is None, reason="runs in the processes that test_each_instruction_set starts")
def test_inside_the_one_asked_for():
    assert _native.module.instruction_set() == ASKED
    for dtype in DTYPES:
        for case in (*SMALL[2:7], *LARGE[:2]):
            check_attention(case, dtype, "native")
        for per_frame in ((False, False), (True, True)):
            inputs = modulation_inputs((3, 33, 40), per_frame, dtype)
            check(ops.layer_norm_modulate, inputs, dtype, "native")
            check(ops.gated_residual, [inputs[0], inputs[0].flip(1), inputs[2]], dtype, "native")
