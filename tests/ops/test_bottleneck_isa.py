"""Each instruction set of the CPU kernels on its own: a process takes one, so each gets a process."""

import pytest
import torch

from losatok_ext import _native
from ops.bottleneck_cases import LOSS_CASES, PROJECT_CASES, check_loss, check_projection
from ops.isa import ASKED, INSTRUCTION_SETS, inside, outside, run_inside


@outside
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_each_instruction_set(isa):
    run_inside(isa, __file__)


@inside
def test_inside_the_one_asked_for():
    assert _native.module.instruction_set() == ASKED
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for case in PROJECT_CASES[3:7]:
            check_projection(case, dtype, "native")
        for case in LOSS_CASES[1:7]:
            check_loss(case, dtype, "native")
        for activation in ("gelu_tanh", "silu", "relu", "none"):
            check_projection(PROJECT_CASES[6], dtype, "native", activation=activation)
            check_loss(LOSS_CASES[6], dtype, "native", activation=activation)
