"""Raw Triton ops (``torch.ops.losatok_triton.*``) with wrong arguments: nothing crashes."""

from ops.hostile_calls import in_a_child
from ops.triton_cases import needs_working_triton

pytestmark = needs_working_triton

OPS = (
    "gated_residual_forward",
    "layer_norm_modulate_backward",
    "polar_istft_forward",
    "rvq_decode_forward",
    "vq_nearest_backward",
    "fsq_quantize_backward",
    "fsq_dequantize_forward",
    "affine_dequantize_forward",
)
"""Those that go by codes, lengths, strides and numbers: the interpreter is slow. The checks of all are compared with
those in C++ in test_raw_ops.py."""


def test_no_wrong_argument_ends_the_process():
    calls, refused = in_a_child("triton", *OPS)
    assert calls > 400
    assert refused > calls / 2
