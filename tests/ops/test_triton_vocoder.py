"""polar_istft and depthwise_conv_norm in Triton against the reference: in Triton's interpreter, or on a GPU where there
is one.
"""

import itertools

import pytest
import torch

from losatok_ext import ops, use_backend
from losatok_ext.triton_kernels import polar_istft as kernels
from ops.bottleneck_cases import cast, evaluate
from ops.triton_cases import DTYPES, INTERPRETED, fill_with_nan, needs_working_triton
from ops.vocoder_cases import (
    CONV_CASES,
    ISTFT_CASES,
    check_conv_norm,
    check_istft,
    check_past_two_billion_elements,
    conv_inputs,
    conv_norm,
    istft,
    istft_inputs,
)

pytestmark = needs_working_triton

NAN = float("nan")
# The interpreter takes a frame of the decoder's size in 20 ms: few of them there.
ISTFT = [*ISTFT_CASES[:-1], (2, 9, 1280, 320, [9, 4])] if INTERPRETED else ISTFT_CASES
CONV = [*CONV_CASES[:-1], (2, 9, 1280, 7, [9, 4])] if INTERPRETED else CONV_CASES


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_with_nan(monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ISTFT, ids=str)
def test_istft(case, dtype, device):
    check_istft(case, dtype, "triton", device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONV, ids=str)
def test_conv_norm(case, dtype, device):
    check_conv_norm(case, dtype, "triton", device)


@pytest.mark.parametrize("vectors", list(itertools.product([True, False], repeat=3)), ids=str)
def test_each_vector_may_be_none(vectors, device):
    check_conv_norm(CONV_CASES[2], torch.float32, "triton", device, vectors=vectors)


@pytest.mark.parametrize("need", [[0], [1], [4], [1, 2, 3, 4]], ids=str)
def test_only_wanted_gradients(need, device):
    check_conv_norm(CONV_CASES[2], torch.float32, "triton", device, need=need)


def test_a_mean_far_from_zero_costs_no_precision(device):
    inputs = cast(conv_inputs(2, 9, 96, 7, None), torch.float32, device)
    inputs[2] += 300
    exact = evaluate(conv_norm, cast(inputs, torch.float64, device), range(5), "reference")
    for result, truth in zip(evaluate(conv_norm, inputs, range(5), "triton"), exact, strict=True):
        torch.testing.assert_close(result.double(), truth, rtol=1e-3, atol=1e-3)


def test_frames_meet_over_the_edge_of_a_workspace(monkeypatch, device):
    """Clips end within a workspace of 64 frames, at its end and one frame after."""
    inputs = [
        cast(istft_inputs(3, time, 40, 8, [time, time - 1, time // 2]), torch.float32, device) for time in (64, 65)
    ]
    whole = [evaluate(istft(8), each, [0], "triton") for each in inputs]
    monkeypatch.setattr(kernels, "WORKSPACE", 1)
    for each, expected in zip(inputs, whole, strict=True):
        for a, b in zip(evaluate(istft(8), each, [0], "triton"), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scale", [1.0, 8000.0, 1e5, 1e30])
def test_any_phase(scale, device):
    head = torch.zeros(1, 40, 66)
    head[:, :, 33:] = scale * (2 * torch.rand(1, 40, 33) - 1)
    window = torch.hann_window(64)
    with use_backend("reference"):
        exact = ops.polar_istft(head.double(), window.double(), 16)
    with use_backend("triton"):
        result = ops.polar_istft(head.to(device), window.to(device), 16)
    assert (result.cpu() - exact).abs().max() <= 1e-6


def test_extreme_magnitudes(device):
    window, head = torch.hann_window(16, device=device), torch.zeros(1, 6, 18, device=device)
    head[:, :, 3] = torch.tensor([500.0, 88.8, float("inf"), 4.7, 4.6051702, 4.60517])
    with use_backend("triton"):
        audio = ops.polar_istft(head.requires_grad_(), window, 4)
        (grad,) = torch.autograd.grad(audio.square().sum(), head)
        assert torch.isfinite(grad).all()
        assert not grad[0, :4, 3].any()
        assert grad[0, 5, 3] != 0
        silent = head.detach().clone()
        silent[:, :, :9] = -float("inf")
        assert not ops.polar_istft(silent, window, 4).any()
        silent[0, 2, 12] = NAN
        assert ops.polar_istft(silent, window, 4).isnan().any()


def test_nan_past_the_lengths_is_not_read(device):
    lengths = torch.tensor([9, 4, 0])
    for op, inputs, factor in (
        (istft(4), istft_inputs(3, 9, 16, 4, None)[:-1], 4),
        (conv_norm, conv_inputs(3, 9, 5, 7, None)[:-1], 1),
    ):
        first, *rest = cast([*inputs, lengths], torch.float32, device)
        clean = evaluate(op, [first, *rest], [0], "triton")
        past = torch.arange(9, device=device) >= rest[-1][:, None]
        filled = evaluate(op, [torch.where(past[..., None], NAN, first), *rest], [0], "triton")
        assert all(a.equal(b) for a, b in zip(clean, filled, strict=True))
        assert not clean[0].unflatten(1, (9, factor))[past].any()
        assert not clean[1][past].any()


def test_raw_ops_clamp_lengths(device):
    raw = torch.ops.losatok_triton
    head, window, _ = cast(istft_inputs(3, 4, 16, 4, None), torch.float32, device)
    x, *parameters, _ = cast(conv_inputs(3, 4, 5, 7, None), torch.float32, device)
    beyond, at_the_ends = (torch.tensor(n, device=device) for n in ([9, -3, 9], [4, 0, 4]))
    audio = raw.polar_istft_forward(head, window, 4, at_the_ends)
    assert raw.polar_istft_forward(head, window, 4, beyond).equal(audio)
    by = [raw.polar_istft_backward(audio, head, window, 4, n) for n in (beyond, at_the_ends)]
    assert by[0].equal(by[1])
    both = [raw.depthwise_conv_norm_forward(x, *parameters, 1e-5, n) for n in (beyond, at_the_ends)]
    assert both[0].equal(both[1])
    both = [raw.depthwise_conv_norm_backward(x, x, *parameters[:3], 1e-5, n, True, True) for n in (beyond, at_the_ends)]
    assert all(a.equal(b) for a, b in zip(*both, strict=True))


def test_views_of_larger_tensors(device):
    def spread(t):
        wide = torch.full([2 * s + 3 for s in t.shape], NAN, device=device)
        return wide[tuple(slice(2, 2 + 2 * s, 2) for s in t.shape)].copy_(t)

    for op, inputs, need in (
        (istft(4), istft_inputs(2, 7, 16, 4, [7, 3]), [0]),
        (conv_norm, conv_inputs(2, 9, 24, 7, [9, 4]), range(5)),
    ):
        *tensors, lengths = cast(inputs, torch.float32, device)
        plain = evaluate(op, [*tensors, lengths], need, "triton")
        viewed = evaluate(op, [*map(spread, tensors), lengths], need, "triton")
        transposed = tensors[0].transpose(1, 2).contiguous().transpose(1, 2)
        for other in (viewed, evaluate(op, [transposed, *tensors[1:], lengths], need, "triton")):
            assert all(a.equal(b) for a, b in zip(plain, other, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("gradients", [False, True])
def test_rows_past_two_billion_elements(gradients):
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("needs 60 GiB of free device memory")
    check_past_two_billion_elements(torch.ops.losatok_triton, gradients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_are_bitwise_equal(dtype, device):
    for op, inputs, need in (
        (istft(16), istft_inputs(2, 30, 64, 16, [30, 20]), [0]),
        (conv_norm, conv_inputs(2, 70, 40, 7, [70, 60]), range(5)),
    ):
        given = cast(inputs, dtype, device)
        first, *others = (evaluate(op, given, need, "triton") for _ in range(3))
        for other in others:
            assert all(a.equal(b) for a, b in zip(first, other, strict=True))


def test_the_waveform_has_the_promoted_dtype(device):
    head, window, _ = istft_inputs(1, 5, 16, 4, None)
    with use_backend("triton"):
        for ours, theirs in itertools.product([torch.float32, torch.bfloat16, torch.float16], repeat=2):
            leaf = head.to(device, ours).requires_grad_()
            audio = ops.polar_istft(leaf, window.to(device, theirs), 4)
            assert audio.dtype == torch.promote_types(ours, theirs)
            audio.sum().backward()
            assert leaf.grad.dtype == ours


def test_float64_is_refused_with_the_cure(device):
    head, window, _ = cast(istft_inputs(1, 3, 16, 4, None), torch.float64, device)
    x, *parameters, _ = cast(conv_inputs(1, 3, 5, 7, None), torch.float64, device)
    with use_backend("triton"):
        with pytest.raises(TypeError, match=r"head should be float32.*use_backend"):
            ops.polar_istft(head, window, 4)
        with pytest.raises(TypeError, match=r"window should be float32.*use_backend"):
            ops.polar_istft(head.float(), window, 4)
        with pytest.raises(TypeError, match=r"x should be float32.*use_backend"):
            conv_norm(x, *parameters, None)
