"""What every implementation of the vocoder ops is tested on: inputs, and an op against the reference in fp64."""

import torch

from losatok_ext import ops
from ops.bottleneck_cases import check

# clips B, frames T, n_fft, hop, lengths
ISTFT_CASES = [
    (1, 1, 16, 4, None),
    (2, 0, 16, 4, None),
    (2, 2, 16, 4, [2, 1]),
    (2, 5, 30, 10, None),  # an odd number of frames over each hop: trimmed by whole hops
    (1, 70, 12, 2, None),
    (3, 150, 64, 16, [150, 3, 0]),  # several chunks
    (1, 3, 4, 4, None),  # no overlap; the window begins with a zero
    (2, 130, 1280, 320, [130, 65]),
]

# clips B, frames T, channels C, taps k, lengths
CONV_CASES = [
    (1, 1, 2, 1, None),
    (2, 0, 4, 7, None),
    (2, 2, 5, 7, [2, 1]),  # shorter than the taps
    (2, 9, 6, 3, [0, 0]),
    (3, 150, 70, 7, [150, 3, 0]),  # several chunks, and channels that do not fill vectors
    (2, 40, 130, 5, [40, 20]),
    (1, 300, 64, 11, None),
    (2, 67, 1280, 7, [67, 33]),
]


def istft_inputs(clips, time, n_fft, hop, lengths, seed=0):
    """head, window, lengths of ``polar_istft``; magnitudes up to the cap and beyond, phases of several turns."""
    generator = torch.Generator().manual_seed(seed)
    head = 3 * torch.randn(clips, time, n_fft + 2, dtype=torch.float64, generator=generator)
    lengths = None if lengths is None else torch.tensor(lengths)
    return [head, torch.hann_window(n_fft, dtype=torch.float64), lengths]


def conv_inputs(clips, time, channels, taps, lengths, seed=0, vectors=(True, True, True)):
    """x, conv_weight, conv_bias, norm_weight, norm_bias, lengths of ``depthwise_conv_norm``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes):
        return torch.randn(*sizes, dtype=torch.float64, generator=generator)

    parameters = [normal(channels) if given else None for given in vectors]
    lengths = None if lengths is None else torch.tensor(lengths)
    return [normal(clips, time, channels), normal(channels, 1, taps) / taps**0.5, *parameters, lengths]


def istft(hop):
    """``polar_istft`` with the hop bound, of (head, window, lengths)."""

    def run(head, window, lengths):
        return ops.polar_istft(head, window, hop, lengths)

    return run


def conv_norm(x, conv_weight, conv_bias, norm_weight, norm_bias, lengths):
    return ops.depthwise_conv_norm(x, conv_weight, conv_bias, norm_weight, norm_bias, 1e-5, lengths)


def check_istft(case, dtype, backend, device="cpu"):
    """``polar_istft`` on one of ISTFT_CASES, gradient included."""
    return check(istft(case[3]), istft_inputs(*case), [0], dtype, backend, device)


def check_conv_norm(case, dtype, backend, device="cpu", need=range(5), **options):
    """``depthwise_conv_norm`` on one of CONV_CASES, gradients included."""
    return check(conv_norm, conv_inputs(*case, **options), need, dtype, backend, device)


def check_past_two_billion_elements(raw, gradients):
    """On a GPU: by the ops of ``raw``, the last clip of a batch that 32-bit numbers cannot count is as it is alone."""

    def draw(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    clips, time, channels, n_fft, hop = 4, 420_000, 1280, 1280, 320
    x, weight, vector = draw(clips, time, channels), draw(channels, 1, 7), draw(channels)
    assert x.numel() > 2**31
    if gradients:
        run = raw.depthwise_conv_norm_backward
        last = run(x[3:], x[3:], weight, vector, vector, 1e-6, None, True, False)[0]
        assert run(x, x, weight, vector, vector, 1e-6, None, True, True)[0][3:].equal(last)
        return
    last = raw.depthwise_conv_norm_forward(x[3:], weight, vector, vector, vector, 1e-6, None)
    assert raw.depthwise_conv_norm_forward(x, weight, vector, vector, vector, 1e-6, None)[3:].equal(last)
    head, window = draw(clips, time, n_fft + 2), torch.hann_window(n_fft, device="cuda")
    audio = raw.polar_istft_forward(head, window, hop, None)
    torch.testing.assert_close(audio[3:], raw.polar_istft_forward(head[3:], window, hop, None))
    last = raw.polar_istft_backward(audio[3:].contiguous(), head[3:], window, hop, None)
    torch.testing.assert_close(raw.polar_istft_backward(audio, head, window, hop, None)[3:], last)
