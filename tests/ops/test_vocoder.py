"""polar_istft and depthwise_conv_norm on the CPU, against the reference."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext import ops, use_backend
from ops.bottleneck_cases import DTYPES, cast, evaluate
from ops.vocoder_cases import (
    CONV_CASES,
    ISTFT_CASES,
    check_conv_norm,
    check_istft,
    conv_inputs,
    conv_norm,
    istft,
    istft_inputs,
)

NAN = float("nan")
BACKENDS = ["native", "reference"]
every = settings(max_examples=30, deadline=None)


pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ISTFT_CASES, ids=str)
def test_istft(case, dtype, threads):
    check_istft(case, dtype, "native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("half", [1, 3, 7, 9, 14, 36, 49, 75, 121, 128, 254, 315, 509, 960])
def test_istft_of_any_size(half, dtype):
    """Powers of the small factors, other primes, and products of both."""
    check_istft((1, 3, 2 * half, 2, None) if half < 100 else (1, 3, 2 * half, 2 * half, None), dtype, "native")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_conv_norm(case, dtype, threads):
    check_conv_norm(case, dtype, "native")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vectors", list(itertools.product([True, False], repeat=3)), ids=str)
def test_each_vector_may_be_none(vectors, dtype):
    check_conv_norm(CONV_CASES[2], dtype, "native", vectors=vectors)


@pytest.mark.parametrize("need", [[0], [1], [4], [1, 2, 3, 4]], ids=str)
def test_only_wanted_gradients(need):
    check_conv_norm(CONV_CASES[4], torch.float32, "native", need=need)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    with use_backend(backend):
        for case in (ISTFT_CASES[2], (2, 3, 6, 2, [3, 1])):
            head, window, lengths = istft_inputs(*case)
            assert torch.autograd.gradcheck(
                partial(istft(case[3]), window=window, lengths=lengths), head.requires_grad_()
            )
        *leaves, lengths = conv_inputs(2, 5, 4, 3, [5, 2])
        leaves = [leaf.requires_grad_() for leaf in leaves]
        assert torch.autograd.gradcheck(lambda *a: conv_norm(*a, lengths), leaves)


def test_it_is_what_the_libraries_give():
    head, window, _ = cast(istft_inputs(2, 9, 64, 16, None), torch.float32)
    spectrum = torch.polar(head[..., :33].exp().clamp(max=100), head[..., 33:])
    frames = (torch.fft.irfft(spectrum) * window).mT
    squares = window.square()[None, :, None].expand(2, -1, 9)
    folded, envelope = (F.fold(t, (1, 8 * 16 + 64), (1, 64), stride=(1, 16)).flatten(1) for t in (frames, squares))
    expected = (folded / envelope)[:, 24:-24]
    torch.testing.assert_close(ops.polar_istft(head, window, 16), expected)
    x, weight, bias, gain, shift, _ = cast(conv_inputs(2, 9, 6, 7, None), torch.float32)
    convolved = F.conv1d(x.mT, weight, bias, padding=3, groups=6).mT
    expected = F.layer_norm(convolved, (6,), gain, shift, 1e-5)
    torch.testing.assert_close(ops.depthwise_conv_norm(x, weight, bias, gain, shift, 1e-5), expected)
    torch.testing.assert_close(ops.depthwise_conv_norm(x, weight[:, 0], bias, gain, shift, 1e-5), expected)


@pytest.mark.parametrize("scale", [1.0, 100.0, 8000.0, 1e5, 1e30])
def test_any_phase(scale):
    """Against fp64 of the same float32 phases: a rounding or two of the waveform, however many turns they make."""
    head = torch.zeros(1, 40, 66)
    head[:, :, 33:] = scale * torch.rand(1, 40, 33) * 2 - scale
    window = torch.hann_window(64)
    result = ops.polar_istft(head, window, 16)
    with use_backend("reference"):
        exact = ops.polar_istft(head.double(), window.double(), 16)
    assert (result - exact).abs().max() <= 1e-6


def test_extreme_magnitudes():
    window = torch.hann_window(16)
    head = torch.zeros(1, 6, 18)
    head[:, :, 3] = torch.tensor([500.0, 88.8, float("inf"), 4.7, 4.6051702, 4.60517])
    leaf = head.clone().requires_grad_()
    capped = ops.polar_istft(leaf, window, 4)
    head[:, :, 3] = 4.6051702
    torch.testing.assert_close(capped, ops.polar_istft(head, window, 4), rtol=1e-5, atol=1e-5)
    capped.square().sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert not leaf.grad[0, :4, 3].any()
    assert leaf.grad[0, 5, 3] != 0
    head[:, :, :9] = -float("inf")
    assert not ops.polar_istft(head, window, 4).any()
    head[0, 2, 12] = NAN
    assert ops.polar_istft(head, window, 4).isnan().any()


def test_where_no_window_reaches_the_waveform_is_zero():
    head = torch.randn(1, 3, 6, requires_grad=True)
    audio = ops.polar_istft(head, torch.tensor([0.0, 1.0, 1.0, 1e-6]), 4)
    audio.sum().backward()
    assert torch.isfinite(head.grad).all()
    assert not audio.view(3, 4)[:, [0, 3]].any()
    assert audio.view(3, 4)[:, [1, 2]].all()


@every
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 9), st.sampled_from([NAN, 1e30]))
def test_a_clip_is_the_same_alone(counts, extra, fill):
    """Alone, in any batch and behind any padding: values and gradients; zeros past its end."""
    time, lengths = max(counts) + extra, torch.tensor(counts)
    head, window, _ = istft_inputs(len(counts), time, 12, 4, None)
    x, *parameters, _ = conv_inputs(len(counts), time, 5, 7, None)
    past = torch.arange(time) >= lengths[:, None]
    head[past], x[past] = fill, fill
    for op, batch, rest, factor in ((istft(4), head, [window], 4), (conv_norm, x, parameters, 1)):
        batch.requires_grad_()
        result = op(batch, *rest, lengths)
        weights = torch.linspace(0.5, 1.5, result[0].numel(), dtype=torch.float64).view(result[0].shape)
        (grad,) = torch.autograd.grad((result * weights).sum(), batch)
        assert not result.detach().unflatten(1, (time, factor))[past].any()
        assert not grad[past].any()
        for row, count in enumerate(counts):
            alone = batch[row : row + 1, :count].detach().requires_grad_()
            expected = op(alone, *rest, None)
            torch.testing.assert_close(result[row : row + 1, : count * factor], expected, rtol=1e-9, atol=1e-9)
            (by,) = torch.autograd.grad((expected * weights[: count * factor]).sum(), alone)
            torch.testing.assert_close(grad[row : row + 1, :count], by, rtol=1e-9, atol=1e-9)


@every
@given(st.integers(1, 60), st.integers(1, 20))
def test_later_frames_later_sound(time, shift):
    """Both ops move with their input, but for what the ends see of each other."""
    head, window, _ = istft_inputs(1, time, 12, 4, None)
    silent = torch.full((1, shift, 14), -1e4, dtype=torch.float64)
    moved = ops.polar_istft(torch.cat([silent, head], 1), window, 4)[:, 4 * shift :]
    torch.testing.assert_close(moved[:, 8:], ops.polar_istft(head, window, 4)[:, 8:], rtol=1e-9, atol=1e-9)
    x, *parameters, _ = conv_inputs(1, time, 5, 7, None)
    later = conv_norm(F.pad(x, (0, 0, shift, 0)), *parameters, None)[:, shift:]
    torch.testing.assert_close(later, conv_norm(x, *parameters, None), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_offsets_do_not_matter(dtype):
    def awkward(t):
        if t is None:
            return t
        large = torch.full([2 * s + 3 for s in t.shape], NAN, dtype=t.dtype).transpose(0, -1).contiguous()
        return large.transpose(0, -1)[tuple(slice(2, 2 + 2 * s, 2) for s in t.shape)].copy_(t)

    for op, inputs, need in (
        (istft(16), istft_inputs(*ISTFT_CASES[5]), [0]),
        (conv_norm, conv_inputs(*CONV_CASES[4]), range(5)),
    ):
        *tensors, lengths = cast(inputs, dtype)
        plain = evaluate(op, [*tensors, lengths], need, "native")
        strided = evaluate(op, [*map(awkward, tensors), lengths.repeat_interleave(2)[::2]], need, "native")
        for a, b in zip(plain, strided, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_waveform_has_the_promoted_dtype(backend):
    head, window, _ = istft_inputs(1, 5, 16, 4, None)
    with use_backend(backend):
        for ours, theirs in itertools.product(DTYPES, repeat=2):
            leaf = head.to(ours).requires_grad_()
            audio = ops.polar_istft(leaf, window.to(theirs), 4)
            assert audio.dtype == torch.promote_types(ours, theirs)
            audio.sum().backward()
            assert leaf.grad.dtype == ours


def test_autocast():
    """The inverse STFT is none of its business; the other op is cast as a linear layer is."""
    head, window, _ = cast(istft_inputs(1, 5, 16, 4, None), torch.float32)
    inputs = cast(conv_inputs(*CONV_CASES[4]), torch.float32)
    plain = ops.polar_istft(head, window, 4)
    by_hand = evaluate(conv_norm, cast(inputs, torch.bfloat16), range(5), "native")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.polar_istft(head, window, 4), plain)
        result = evaluate(conv_norm, inputs, range(5), "native")
    assert result[0].dtype == torch.bfloat16
    for a, b in zip(result, by_hand, strict=True):
        assert torch.equal(a.to(b.dtype), b)


def test_second_derivative_is_refused():
    head, window, _ = istft_inputs(1, 3, 16, 4, None)
    (grad,) = torch.autograd.grad(
        ops.polar_istft(head.requires_grad_(), window, 4).square().sum(), head, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
