"""polar_istft and depthwise_conv_norm at the decoder's sizes, beside eager PyTorch and torch.compile of it."""

import pytest
import torch
import torch.nn.functional as F

from losatok_ext import ops

CHANNELS, TAPS, N_FFT, HOP = 1280, 7, 1280, 320
DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(1, 50), (1, 500), (8, 500)]  # a second, ten seconds, eight clips of ten


def name(dtype):
    return str(dtype).removeprefix("torch.")


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def eager_istft(head, window):
    """As one writes it down: the envelope is folded along at each call."""
    log_magnitude, phase = head.float().chunk(2, dim=-1)
    spectrum = log_magnitude.exp().clip(max=100) * (torch.cos(phase) + 1j * torch.sin(phase))
    frames = (torch.fft.irfft(spectrum, N_FFT) * window).mT
    squares = window.square().expand(1, head.shape[1], -1).mT
    length, pad = (head.shape[1] - 1) * HOP + N_FFT, (N_FFT - HOP) // 2
    audio, envelope = (
        F.fold(t, (1, length), (1, N_FFT), stride=(1, HOP))[:, 0, 0, pad:-pad] for t in (frames, squares)
    )
    return audio / envelope


def eager_conv_norm(x, conv_weight, conv_bias, norm_weight, norm_bias):
    """Channels-last in and out, as our decoder needs it; the transposes cost PyTorch nothing but strides."""
    convolved = F.conv1d(x.mT, conv_weight, conv_bias, padding=TAPS // 2, groups=CHANNELS).mT
    return F.layer_norm(convolved, (CHANNELS,), norm_weight, norm_bias, 1e-6)


def run(function, inputs, training):
    if not training:
        return lambda: function(*inputs)
    leaves = [t for t in inputs if t.requires_grad]

    def step():
        result = function(*inputs)
        return torch.autograd.grad(result, leaves, torch.ones_like(result))

    return step


@pytest.mark.parametrize("training", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("clips", "frames"), SIZES)
def test_istft(compare, device, dtype, clips, frames, training):
    head = torch.randn(clips, frames, N_FFT + 2).to(device, dtype).requires_grad_(training)
    inputs = head, torch.hann_window(N_FFT, device=device)
    peers = {"eager": eager_istft, "compile": compiled(eager_istft)}
    compare(
        f"polar_istft{' + backward' if training else ''} {name(dtype)} B={clips} T={frames}",
        run(lambda head, window: ops.polar_istft(head, window, HOP), inputs, training),
        {peer: run(function, inputs, training) for peer, function in peers.items()},
        memory=True,
    )


@pytest.mark.parametrize("training", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("clips", "frames"), SIZES)
def test_conv_norm(compare, device, dtype, clips, frames, training):
    shapes = (clips, frames, CHANNELS), (CHANNELS, 1, TAPS), (CHANNELS,), (CHANNELS,), (CHANNELS,)
    inputs = [torch.randn(*shape).to(device, dtype).requires_grad_(training) for shape in shapes]
    peers = {"eager": eager_conv_norm, "compile": compiled(eager_conv_norm)}
    compare(
        f"depthwise_conv_norm{' + backward' if training else ''} {name(dtype)} B={clips} T={frames}",
        run(ops.depthwise_conv_norm, inputs, training),
        {peer: run(function, inputs, training) for peer, function in peers.items()},
        memory=True,
    )
