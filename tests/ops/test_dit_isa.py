"""Each instruction set of the CPU kernels on its own: a process takes one, so each gets a process."""

import pytest

from losatok_ext import _native, ops
from ops.dit_cases import DTYPES, LARGE, SMALL, check, check_attention, modulation_inputs
from ops.isa import ASKED, INSTRUCTION_SETS, inside, outside, run_inside


@outside
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_each_instruction_set(isa):
    run_inside(isa, __file__)


@inside
def test_inside_the_one_asked_for():
    assert _native.module.instruction_set() == ASKED
    for dtype in DTYPES:
        for case in (*SMALL[2:7], *LARGE[:2]):
            check_attention(case, dtype, "native")
        for per_frame in ((False, False), (True, True)):
            inputs = modulation_inputs((3, 33, 40), per_frame, dtype)
            check(ops.layer_norm_modulate, inputs, dtype, "native")
            check(ops.gated_residual, [inputs[0], inputs[0].flip(1), inputs[2]], dtype, "native")
