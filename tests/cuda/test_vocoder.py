"""The vocoder's CUDA kernels and bindings, executed on the CPU by the host shim, against the reference in fp64."""

import itertools

import pytest
import torch

from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext.ops.reference import vocoder as reference
from ops.bottleneck_cases import cast
from ops.vocoder_cases import CONV_CASES, ISTFT_CASES, conv_inputs, istft_inputs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAN = float("nan")


def define(function, tensors, grad, dtype):
    """The output of the reference in ``dtype``, and its gradients by ``tensors`` (None where there is none)."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    found = iter(torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], grad.to(out.dtype)))
    return [out.detach(), *(None if leaf is None else next(found) for leaf in leaves)]


def compare(names, results, same, exact):
    for name, mine, theirs, truth in zip(names, results, same, exact, strict=True):
        if truth is not None:
            factor = {} if name == "output" else {"factor": GRADIENT_FACTOR}
            assert_within_budget(mine, theirs, truth, name=name, **factor)


def past(x, lengths, value):
    """``x`` [B, T, ...] with ``value`` past the lengths."""
    if lengths is None:
        return x
    beyond = torch.arange(x.shape[1]) >= lengths[:, None]
    return torch.where(beyond.view(*beyond.shape, *[1] * (x.dim() - 2)), value, x)


# --- polar_istft ----------------------------------------------------------------------------------------------------


def check_istft(ops, head, window, hop, lengths, call=None):
    grad = torch.randn(head.shape[0], head.shape[1] * hop).to(torch.promote_types(head.dtype, window.dtype))
    given = past(head, lengths, NAN)

    def run():
        audio = ops("polar_istft_forward", given, window, hop, lengths)
        return [audio, ops("polar_istft_backward", grad, given, window, hop, lengths)]

    results = call(run) if call else run()
    assert results[0].dtype == grad.dtype
    assert results[1].dtype == head.dtype

    def function(head, window=window):
        return reference.polar_istft(head, window.to(torch.promote_types(window.dtype, head.dtype)), hop, lengths)

    same, exact = (define(function, [head], grad, dtype) for dtype in (head.dtype, torch.float64))
    compare(["output", "gradient of head"], results, same, exact)
    for result, factor in zip(results, (hop, 1), strict=True):
        assert past(result.unflatten(1, (head.shape[1], factor)), lengths, 0).view_as(result).equal(result)
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ISTFT_CASES, ids=str)
def test_istft(ops, case, dtype):
    head, window, lengths = cast(istft_inputs(*case), dtype)
    check_istft(ops, head, window, case[3], lengths)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_istft_in_every_order_of_threads(ops, in_every_order, dtype):
    head, window, lengths = cast(istft_inputs(3, 5, 40, 8, [5, 2, 0]), dtype)
    check_istft(ops, head, window, 8, lengths, call=in_every_order)


def test_a_window_may_have_another_type(ops):
    for ours, theirs in itertools.permutations(DTYPES, 2):
        head, window, lengths = istft_inputs(2, 7, 16, 4, [7, 3])
        check_istft(ops, head.to(ours), window.to(theirs), 4, lengths)


def test_frames_meet_over_the_edge_of_a_workspace(ops):
    """The shim's workspace takes 64 frames of this size; clips end within it, at its end and one frame after."""
    for time in (63, 64, 65, 200):
        head, window, lengths = cast(istft_inputs(3, time, 1000, 100, [time, time - 1, time // 2]), torch.float32)
        check_istft(ops, head, window, 100, lengths)


@pytest.mark.parametrize("scale", [1.0, 8000.0, 1e5, 1e30])
def test_any_phase(ops, scale):
    head = torch.zeros(1, 40, 66)
    head[:, :, 33:] = scale * (2 * torch.rand(1, 40, 33) - 1)
    window = torch.hann_window(64)
    exact = reference.polar_istft(head.double(), window.double(), 16)
    assert (ops("polar_istft_forward", head, window, 16, None) - exact).abs().max() <= 1e-6


def test_extreme_magnitudes(ops):
    window, head = torch.hann_window(16), torch.zeros(1, 6, 18)
    head[:, :, 3] = torch.tensor([500.0, 88.8, float("inf"), 4.7, 4.6051702, 4.60517])
    capped = head.clone()
    capped[:, :, 3] = 4.6051702
    audio = ops("polar_istft_forward", head, window, 4, None)
    torch.testing.assert_close(audio, ops("polar_istft_forward", capped, window, 4, None), rtol=1e-5, atol=1e-5)
    grad = ops("polar_istft_backward", audio, head, window, 4, None)
    assert torch.isfinite(grad).all()
    assert not grad[0, :4, 3].any()
    assert grad[0, 5, 3] != 0
    head[:, :, :9] = -float("inf")
    assert not ops("polar_istft_forward", head, window, 4, None).any()
    head[0, 2, 12] = NAN
    assert ops("polar_istft_forward", head, window, 4, None).isnan().any()


def test_where_no_window_reaches_the_waveform_is_zero(ops):
    head, window = torch.randn(1, 3, 6), torch.tensor([0.0, 1.0, 1.0, 1e-6])
    audio = ops("polar_istft_forward", head, window, 4, None).view(3, 4)
    assert not audio[:, [0, 3]].any()
    assert audio[:, [1, 2]].all()
    grad = torch.ones(3, 4)
    grad[:, [0, 3]] = NAN  # not looked at
    assert torch.isfinite(ops("polar_istft_backward", grad.view(1, 12), head, window, 4, None)).all()


def test_strided_and_offset_heads(ops):
    head, window, _ = cast(istft_inputs(2, 7, 16, 4, None), torch.float32)
    lengths, grad = torch.tensor([7, 3]), torch.randn(28, 2).t()
    spread = torch.full((2, 15, 20), NAN)[:, 1::2, 1:19].copy_(head)
    features_apart = head.transpose(1, 2).contiguous().transpose(1, 2)
    expected = ops("polar_istft_forward", head, window, 4, lengths)
    by = ops("polar_istft_backward", grad.contiguous(), head, window, 4, lengths)
    for view in (spread, features_apart):
        assert ops("polar_istft_forward", view, window, 4, lengths).equal(expected)
        assert ops("polar_istft_backward", grad, view, window, 4, lengths).equal(by)


# --- depthwise_conv_norm --------------------------------------------------------------------------------------------


def check_conv_norm(ops, inputs, eps=1e-5, call=None):
    *tensors, lengths = inputs
    x, weight, bias, gain, _ = tensors
    grad = torch.randn(x.shape).to(x.dtype)
    given, given_grad = past(x, lengths, NAN), past(grad, lengths, NAN)

    def run():
        y = ops("depthwise_conv_norm_forward", given, *tensors[1:], eps, lengths)
        arguments = (given_grad, given, weight, bias, gain, eps, lengths)
        return [y, *ops("depthwise_conv_norm_backward", *arguments, True, True)]

    results = call(run) if call else run()
    assert results[1].equal(past(results[1], lengths, 0))

    def function(*leaves):
        return reference.depthwise_conv_norm(*leaves, eps, lengths)

    same, exact = (define(function, tensors, grad, dtype) for dtype in (x.dtype, torch.float64))
    names = ["output", *(f"gradient of {n}" for n in ("x", "conv_weight", "conv_bias", "norm_weight", "norm_bias"))]
    compare(names, results, same, exact)
    assert results[0].equal(past(results[0], lengths, 0))
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_conv_norm(ops, case, dtype):
    check_conv_norm(ops, cast(conv_inputs(*case), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "taps"), [(24, 7), (13, 7), (20, 3)])
def test_conv_norm_in_every_order_of_threads(ops, in_every_order, channels, taps, dtype):
    check_conv_norm(ops, cast(conv_inputs(2, 19, channels, taps, [19, 10]), dtype), call=in_every_order)


@pytest.mark.parametrize("taps", [3, 7])
def test_more_channels_than_eight_frames_leave_room_for(ops, taps):
    check_conv_norm(ops, cast(conv_inputs(2, 5, 1281, taps, [5, 2]), torch.float32))
    with pytest.raises(ValueError, match=r"up to 4096 channels, got 4097.*use_backend\('triton'\)"):
        check_conv_norm(ops, cast(conv_inputs(1, 1, 4097, taps, None), torch.float32))


def test_many_frames_are_summed_in_longer_chunks(ops):
    check_conv_norm(ops, cast(conv_inputs(2, 8200, 4, 7, [8200, 4000]), torch.float32))


@pytest.mark.parametrize("vectors", list(itertools.product([True, False], repeat=3)), ids=str)
def test_each_vector_may_be_none(ops, vectors):
    check_conv_norm(ops, cast(conv_inputs(2, 9, 12, 7, [9, 4], vectors=vectors), torch.float32))


def test_a_mean_far_from_zero_costs_no_precision(ops):
    inputs = cast(conv_inputs(2, 9, 96, 7, None), torch.float32)
    inputs[2] += 300
    check_conv_norm(ops, inputs)


def test_a_large_eps_is_the_one_that_counts(ops):
    check_conv_norm(ops, cast(conv_inputs(2, 9, 12, 7, None), torch.float32), eps=0.3)


@pytest.mark.parametrize("first", [0, 1])
def test_strided_and_offset_inputs(ops, first):
    """Aligned for vectors of four and not."""
    x, *parameters, lengths = cast(conv_inputs(2, 9, 24, 7, [9, 4]), torch.float32)
    view = torch.full((2, 20, 40), NAN)[:, 1:19:2, first : first + 24].copy_(x)
    spread = [t.repeat_interleave(2, 0)[::2] for t in parameters]
    grad = torch.randn(2, 24, 9).transpose(1, 2)
    plain = ops("depthwise_conv_norm_forward", x, *parameters, 1e-5, lengths)
    torch.testing.assert_close(ops("depthwise_conv_norm_forward", view, *spread, 1e-5, lengths), plain)
    options = (1e-5, lengths, True, True)
    expected = ops("depthwise_conv_norm_backward", grad.contiguous(), x, *parameters[:3], *options)
    got = ops("depthwise_conv_norm_backward", grad, view, *spread[:3], *options)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_not_asked_for(ops):
    x, *parameters, lengths = cast(conv_inputs(2, 9, 12, 7, [9, 4]), torch.float32)
    arguments = (x, x, *parameters[:3], 1e-5, lengths)
    both = ops("depthwise_conv_norm_backward", *arguments, True, True)
    for need_x, need_parameters in ((True, False), (False, True)):
        grads = ops("depthwise_conv_norm_backward", *arguments, need_x, need_parameters)
        for grad, full, needed in zip(grads, both, [need_x, *[need_parameters] * 4], strict=True):
            assert grad.equal(full) if needed else grad.shape == (0,)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=str)
def test_frames_that_are_not_there(ops, shape):
    x, *parameters, _ = cast(conv_inputs(*shape, 12, 7, None), torch.float32)
    y = ops("depthwise_conv_norm_forward", x, *parameters, 1e-5, None)
    assert y.shape == x.shape
    grads = ops("depthwise_conv_norm_backward", y, x, *parameters[:3], 1e-5, None, True, True)
    assert [g.shape for g in grads] == [t.shape for t in (x, *parameters)]
    assert not any(g.any() for g in grads)
    head, window, _ = cast(istft_inputs(*shape, 16, 4, None), torch.float32)
    audio = ops("polar_istft_forward", head, window, 4, None)
    assert audio.shape == (shape[0], 4 * shape[1])
    assert ops("polar_istft_backward", audio, head, window, 4, None).shape == head.shape


# --- both -----------------------------------------------------------------------------------------------------------


def test_lengths_are_clamped_on_the_device(ops):
    head, window, _ = cast(istft_inputs(2, 4, 16, 4, None), torch.float32)
    x, *parameters, _ = cast(conv_inputs(2, 4, 12, 7, None), torch.float32)
    for name, arguments in (
        ("polar_istft_forward", (head, window, 4)),
        ("depthwise_conv_norm_forward", (x, *parameters, 1e-5)),
    ):
        beyond, at_the_ends = (ops(name, *arguments, torch.tensor(n)) for n in ([9, -3], [4, 0]))
        assert beyond.equal(at_the_ends)


def test_bad_input_is_named(ops):
    head, window, _ = istft_inputs(2, 4, 16, 4, None)
    with pytest.raises(TypeError, match=r"head is Double; the CUDA kernels take float32.*use_backend\('reference'\)"):
        ops("polar_istft_forward", head, window, 4, None)
    head = head.float()
    with pytest.raises(TypeError, match="window is Double"):
        ops("polar_istft_forward", head, window, 4, None)
    with pytest.raises(ValueError, match="hop should divide the window"):
        ops("polar_istft_forward", head, window.float(), 5, None)
    with pytest.raises(ValueError, match=r"head should have shape \[-1, -1, 18\]"):
        ops("polar_istft_forward", head[..., :16], window.float(), 4, None)
    with pytest.raises(ValueError, match=r"grad should have shape \[2, 16\]"):
        ops("polar_istft_backward", head[..., 0], head, window.float(), 4, None)
    x, *parameters, _ = cast(conv_inputs(2, 4, 12, 7, None), torch.float32)
    with pytest.raises(TypeError, match="conv_weight should be Float"):
        ops("depthwise_conv_norm_forward", x, parameters[0].half(), *parameters[1:], 1e-5, None)
    with pytest.raises(ValueError, match=r"conv_weight should have shape \[12, 1, -1\]"):
        ops("depthwise_conv_norm_forward", x, parameters[0][:5], *parameters[1:], 1e-5, None)
    with pytest.raises(ValueError, match=r"norm_bias should have shape \[12\]"):
        ops("depthwise_conv_norm_forward", x, *parameters[:3], parameters[3][:5], 1e-5, None)
    with pytest.raises(ValueError, match=r"grad should have shape \[2, 4, 12\]"):
        ops("depthwise_conv_norm_backward", x[:1], x, *parameters[:3], 1e-5, None, True, True)
