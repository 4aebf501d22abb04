"""layer_norm_modulate and gated_residual in Triton against the reference: in Triton's interpreter, or on a GPU where
there is one.
"""

import pytest
import torch

from losatok_ext import use_backend
from losatok_ext.ops.gated_residual import gated_residual
from losatok_ext.ops.layer_norm_modulate import layer_norm_modulate
from ops.triton_cases import DTYPES, check_op, evaluate, fill_with_nan, needs_working_triton

pytestmark = needs_working_triton

SIZES = [(2, 5, 33), (3, 1, 16), (1, 40, 7), (2, 3, 1100)]
OPS = {"layer_norm_modulate": layer_norm_modulate, "gated_residual": gated_residual}


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_with_nan(monkeypatch)


def draw(op, batch, time, channels, first_per_frame=False, second_per_frame=False):
    """x with shift and scale, or x with branch and gate."""

    def modulation(per_frame):
        return torch.randn(*((batch, time, channels) if per_frame else (batch, channels)))

    x = torch.randn(batch, time, channels)
    if op == "gated_residual":
        return [x, torch.randn(batch, time, channels), modulation(second_per_frame)]
    return [x + 0.5, modulation(first_per_frame), modulation(second_per_frame)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift_per_frame", [False, True])
@pytest.mark.parametrize("scale_per_frame", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_layer_norm_modulate(sizes, shift_per_frame, scale_per_frame, dtype, device):
    tensors = draw("layer_norm_modulate", *sizes, shift_per_frame, scale_per_frame)
    check_op(layer_norm_modulate, tensors, [True] * 3, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gated_residual(sizes, per_frame, dtype, device):
    check_op(gated_residual, draw("gated_residual", *sizes, False, per_frame), [True] * 3, dtype, device)


def test_a_large_eps_is_the_one_that_counts(device):
    check_op(layer_norm_modulate, draw("layer_norm_modulate", 2, 5, 33), [True] * 3, torch.float32, device, eps=0.3)


@pytest.mark.parametrize("op", OPS)
def test_long_clips_are_summed_in_chunks(op, device):
    """Gradients of what belongs to a clip, over more frames than one program takes."""
    check_op(OPS[op], draw(op, 1, 700, 5), [True] * 3, torch.float32, device)
    check_op(OPS[op], draw(op, 30, 70, 5), [True] * 3, torch.float32, device)


def test_a_mean_far_from_zero_costs_no_precision(device):
    x, shift, scale = draw("layer_norm_modulate", 2, 5, 96)
    check_op(layer_norm_modulate, [x + 300, shift, scale], [True] * 3, torch.float32, device)


@pytest.mark.parametrize("op", OPS)
def test_views_of_a_larger_tensor(op, device):
    """Modulations are columns of one projection, and x may be a view with frames apart."""
    x = torch.randn(2, 7, 40).to(device)[:, 1:, 5:29]
    columns = torch.randn(2, 72).to(device)[:, 24:48], torch.randn(2, 72).to(device)[:, 48:]
    branch = torch.randn(2, 6, 30).to(device)[:, :, 2:26]
    views = [x, branch, columns[1]] if op == "gated_residual" else [x, *columns]
    with use_backend("triton"):
        viewed = OPS[op](*views)
        packed = OPS[op](*(t.contiguous() for t in views))
        transposed = OPS[op](views[0].transpose(1, 2).contiguous().transpose(1, 2), *views[1:])
    assert viewed.equal(packed)
    assert transposed.equal(packed)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)], ids=str)
def test_nothing_to_do(op, shape, device):
    tensors = draw(op, *shape)
    result = evaluate(OPS[op], "triton", tensors, [True] * 3, torch.float32, device)
    for got, like in zip(result, [tensors[0], *tensors], strict=True):
        assert got.shape == like.shape
        assert (got == 0).all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_are_bitwise_equal(op, dtype, device):
    tensors = draw(op, 3, 70, 40)
    first, *others = (evaluate(OPS[op], "triton", tensors, [True] * 3, dtype, device) for _ in range(3))
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_float64_is_refused_with_the_cure(op, device):
    tensors = [t.double().to(device) for t in draw(op, 1, 3, 8)]
    with use_backend("triton"), pytest.raises(TypeError, match="use_backend"):
        OPS[op](*tensors)


def test_a_zero_gate_is_the_identity(device):
    x, branch, gate = draw("gated_residual", 2, 5, 33)
    with use_backend("triton"):
        assert gated_residual(x.to(device), branch.to(device), 0 * gate.to(device)).cpu().equal(x)


def test_modulating_by_nothing_normalises(device):
    x, shift, _ = draw("layer_norm_modulate", 2, 5, 33)
    zero = torch.zeros_like(shift).to(device)
    with use_backend("triton"):
        y = layer_norm_modulate(x.to(device), zero, zero).cpu()
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, 5), rtol=0, atol=1e-6)
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones(2, 5), rtol=1e-4, atol=0)
