"""Raw ops (``torch.ops.losatok.*``) with wrong arguments: they raise, or compute what they can;
nothing crashes. The CUDA ops: tests/cuda/test_raw_ops.py; the Triton ops: test_triton_raw_ops.py.
"""

from pathlib import Path

import pytest
import torch

from losatok_ext.ops import raw_checks
from losatok_ext.ops.registry import OPS
from ops.hostile_calls import in_a_child, valid_calls

CSRC = Path(__file__).parents[2] / "csrc"
RAW = [(op, name) for op in OPS.values() for name in op.schemas]


def test_no_wrong_argument_ends_the_process():
    """And the checks of the Triton ops refuse the calls that those in C++ refuse."""
    calls, refused = in_a_child("native")
    assert calls > 2000
    assert refused > calls / 2


def test_every_raw_op_is_checked_on_every_device():
    cpu, cuda = (
        "".join(path.read_text() for path in sorted((CSRC / where).glob(names)))
        for where, names in (("cpu", "*.cpp"), ("cuda", "bindings*.cpp"))
    )
    assert [name for _, name in RAW if f"check::{name}(" not in cpu] == []
    assert [name for op, name in RAW if op.cuda and f"check::{name}(" not in cuda] == []
    assert raw_checks.TENSORS.keys() == {name for op, name in RAW if op.triton is not None}
    assert raw_checks.RULES.keys() <= raw_checks.TENSORS.keys()


VALID = valid_calls()


def changed(op, position, value, case=-1):
    """A valid call with another value of the argument at ``position``."""
    arguments = list(VALID[op][case])
    arguments[position] = value
    return lambda: getattr(torch.ops.losatok, op)(*arguments)


CODES = [
    ("rvq_decode_backward", 1),
    ("rvq_decode_forward", 0),
    ("vq_nearest_backward", 3),
    ("fsq_dequantize_forward", 0),
]


@pytest.mark.parametrize(("op", "position"), CODES)
@pytest.mark.parametrize("code", [-2, 10 * 12, 2**40])
def test_a_code_that_is_not_there_is_refused(op, position, code):
    codes = VALID[op][-1][position].clone()
    codes.view(-1)[-1] = code
    with pytest.raises(ValueError, match=rf"(codes|indices) should lie within -1\.\.\d+ .*{code}"):
        changed(op, position, codes)()


@pytest.mark.parametrize(
    "op", ["vq_nearest_forward", "rvq_encode_forward", "fsq_quantize_forward", "fsq_quantize_backward"]
)
def test_lengths_are_one_for_each_clip(op):
    case, position = next(
        (case, i)
        for case, arguments in enumerate(VALID[op])
        for i, a in enumerate(arguments)
        if isinstance(a, torch.Tensor) and a.shape == (2,)
    )
    for wrong, error in ((torch.tensor([7]), ValueError), (torch.tensor([7, 4], dtype=torch.int32), TypeError)):
        with pytest.raises(error, match="lengths should"):
            changed(op, position, wrong, case)()


@pytest.mark.parametrize("op", ["rvq_decode_forward", "rvq_decode_backward"])
def test_codes_of_more_stages_than_there_are_codebooks(op):
    position = 0 if op == "rvq_decode_forward" else 1
    with pytest.raises(ValueError, match="codes should be of at most 3 stages, got 4"):
        changed(op, position, torch.zeros(18, 4, dtype=torch.int64))()


@pytest.mark.parametrize("size", [-1, 0, 2, 5, 2**40])
def test_packed_rows_hold_what_they_are_said_to_hold(size):
    with pytest.raises(ValueError, match="size should be the number of values that a row of packed holds, 4, got"):
        changed("affine_dequantize_forward", 4, size)()


@pytest.mark.parametrize("levels", [[0, 5, 2], [4, -5, 2], [4, 5, 2**40]])
@pytest.mark.parametrize("op", ["fsq_quantize_forward", "fsq_quantize_backward", "fsq_dequantize_forward"])
def test_levels_are_at_least_two(op, levels):
    position = next(i for i, a in enumerate(VALID[op][-1]) if isinstance(a, tuple))
    with pytest.raises(ValueError, match=r"levels should each lie within 2\.\.65536"):
        changed(op, position, levels)()


@pytest.mark.parametrize(
    "op",
    [
        "gated_residual_backward",
        "layer_norm_modulate_backward",
        "depthwise_conv_norm_backward",
        "dit_attention_backward",
    ],
)
def test_a_gradient_has_the_dtype_of_what_it_belongs_to(op):
    with pytest.raises(TypeError, match="grad should be Float, got BFloat16"):
        changed(op, 0, VALID[op][-1][0].bfloat16())()
