"""The vocoder ops in plain PyTorch: the definitions, and the oracle of every test of the family."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.masks import valid_frames
from losatok_ext.ops.checks import wide

MAX_MAGNITUDE = 100.0
LEAST_ENVELOPE = 1e-11
"""Where the overlapped squared windows add up to no more than this, the waveform is zero."""


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Sum frames [B, T, n] laid ``hop`` samples apart (n a multiple of hop): [B, (T - 1) hop + n]."""
    batch, count, size = frames.shape
    overlap = size // hop
    parts = frames.view(batch, count, overlap, hop)
    total = frames.new_zeros(batch, count + overlap - 1, hop)
    for shift in range(overlap):
        total = total + F.pad(parts[:, :, shift], (0, 0, shift, overlap - 1 - shift))
    return total.flatten(1)


def polar_istft(head: Tensor, window: Tensor, hop: int, lengths: Tensor | None = None) -> Tensor:
    """Log magnitudes and phases ``head`` [B, T, n + 2] to a waveform [B, hop T], n = len(window).

    min(exp(m), 100) (cos p + i sin p) -> inverse real FFT -> times the window -> overlap-add -> over the overlapped
    squared windows of the clip's own frames -> (n - hop) / 2 samples trimmed on either side. Computed in float32, or
    in float64 where one of the two is. Zeros past a clip's frames.
    """
    dtype = torch.promote_types(head.dtype, window.dtype)
    computed = wide(head, window)
    n = window.shape[0]
    batch, count = head.shape[:2]
    valid = valid_frames(head, lengths).unsqueeze(-1)
    window = window.detach().to(computed)
    if batch * count == 0:  # no FFT takes zero frames; the sum gives head a gradient
        return (head.new_zeros(batch, count * hop) + head.sum()).to(dtype)
    # Replaced, not multiplied: NaN * 0 is NaN.
    magnitude, phase = torch.where(valid, head.to(computed), 0).chunk(2, dim=-1)
    spectrum = torch.polar(magnitude.clamp(max=math.log(MAX_MAGNITUDE)).exp(), phase)
    frames = torch.where(valid, torch.fft.irfft(spectrum, n, dim=-1) * window, 0)
    squares = torch.where(valid, window.square(), 0)
    trim = (n - hop) // 2
    inside = slice(trim, trim + count * hop)
    audio, envelope = overlap_add(frames, hop)[:, inside], overlap_add(squares, hop)[:, inside]
    kept = valid.expand(batch, count, hop).flatten(1) & (envelope > LEAST_ENVELOPE)
    return torch.where(kept, audio / torch.where(kept, envelope, 1), 0).to(dtype)


def depthwise_conv_norm(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """LayerNorm over the channels of (a convolution over time of each channel alone), as long as its input.

    x [B, T, C], conv_weight [C, 1, k] with k odd, all others [C] -> [B, T, C]. The convolution finds zeros beyond both
    ends and past ``lengths`` [B]; what comes out there is zero.
    """
    valid = valid_frames(x, lengths).unsqueeze(-1)
    x = torch.where(valid, x, 0)
    half, time = conv_weight.shape[2] // 2, x.shape[1]
    # One frame more than "same" needs, removed again: conv1d takes no input shorter than the kernel.
    padded = F.pad(x, (0, 0, half, half + 1)).transpose(1, 2)
    convolved = F.conv1d(padded, conv_weight, conv_bias, groups=x.shape[2]).transpose(1, 2)[:, :time]
    return torch.where(valid, F.layer_norm(convolved, x.shape[2:], norm_weight, norm_bias, eps), 0)
