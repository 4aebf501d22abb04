"""Short-time Fourier magnitudes of batches of clips of different lengths; each clip gives the same as alone.

Frame ``t`` is centred on sample ``t * hop``; at both ends the signal is reflected, and the reflection at the end starts
at the clip's own last sample, not at the end of the padded row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.masks import keep_valid

BLOCK_FRAMES = {"cpu": 256, "cuda": 16384}
"""Number of frames, over all clips, that are transformed at once. On a CPU their spectra stay in the cache (2 MB at
1024 samples); on a GPU (164 s at a hop of 160) this bounds the memory for an hour of audio."""


def frame_count(samples: Tensor | int, hop: int) -> Tensor | int:
    """Number of centred frames of a clip of ``samples`` samples: ``samples // hop + 1``, and 0 for an empty clip."""
    if isinstance(samples, Tensor):
        return torch.where(samples > 0, samples.div(hop, rounding_mode="floor") + 1, 0)
    return samples // hop + 1 if samples > 0 else 0


def reflect_pad(audio: Tensor, lengths: Tensor, pad: int) -> Tensor:
    """Reflect each clip by ``pad`` samples at both of its ends.

    A clip that is shorter than the pad is reflected repeatedly until the pad is filled, so that no clip is too short.

    Args:
        audio: [B, N], N >= 1.
        lengths: [B] int64, samples of each clip, within 0..N.
        pad: samples to add on either side.

    Returns:
        [B, N + 2 pad]; row b holds its padded clip in the first ``lengths[b] + 2 pad`` samples and zeros behind.
    """
    clean = keep_valid(audio, lengths)
    last = (lengths - 1).clamp(min=0)[:, None]
    period = (2 * last).clamp(min=1)

    def folded(position: Tensor) -> Tensor:
        within = position % period
        return torch.where(within > last, period - within, within)

    steps = torch.arange(1, pad + 1, device=audio.device)
    left = clean.gather(1, folded(steps.flip(0).expand(len(audio), pad)))
    right = clean.gather(1, folded(last + steps))
    inner = torch.cat([left, clean, clean.new_zeros(len(audio), pad)], dim=1)
    return inner.scatter(1, lengths[:, None] + (pad + steps - 1), right)


def stft_magnitude(
    audio: Tensor,
    lengths: Tensor,
    window: Tensor,
    hop: int,
    power: float,
    transform: Callable[[Tensor], Tensor] = lambda frames: frames,
) -> tuple[Tensor, Tensor]:
    """``|STFT|^power`` of each clip alone, centred, with reflected ends, window and FFT of ``len(window)`` samples.

    Args:
        audio: [B, N] float32; what lies past a length is not read, even NaN.
        lengths: [B] int64 samples.
        window: [n_fft] float32.
        hop: samples between frames.
        power: 1 for magnitudes, 2 for power.
        transform: applied to each block of frames [B, F', n_fft // 2 + 1] before the next is computed (a mel filter
            bank, say).

    Returns:
        (frames [B, N // hop + 1, ...], frame lengths [B] int64). Frames past a clip's own are zero.
    """
    frame_lengths = frame_count(lengths, hop)
    assert isinstance(frame_lengths, Tensor)
    n_fft = window.numel()
    if audio.shape[1] == 0 or audio.shape[0] == 0:
        return transform(audio.new_zeros(audio.shape[0], 0, n_fft // 2 + 1)), frame_lengths
    # With nothing to mask, padding is one copy; a GPU is not asked whether that is so, which would wait for it.
    on_host = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    whole = on_host and audio.shape[1] > n_fft // 2 and bool((lengths == audio.shape[1]).all())
    pad = n_fft // 2
    padded = F.pad(audio, (pad, pad), mode="reflect") if whole else reflect_pad(audio, lengths, pad)
    frames = padded.unfold(1, n_fft, hop)[:, : audio.shape[1] // hop + 1]
    blocks = []
    step = max(BLOCK_FRAMES["cpu" if audio.device.type == "cpu" else "cuda"] // len(audio), 1)
    for start in range(0, frames.shape[1], step):
        blocks.append(transform(_power(torch.fft.rfft(frames[:, start : start + step] * window), power)))
    result = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return (result if whole else keep_valid(result, frame_lengths)), frame_lengths


def _power(spectrum: Tensor, power: float) -> Tensor:
    """``|spectrum|^power``. Without gradients by the squares of its parts: half the time of ``abs``, which guards
    against overflow that audio is far from, and of a sum over two. With gradients, which those lack at 0, by ``abs``.
    """
    if spectrum.requires_grad and torch.is_grad_enabled():
        return spectrum.abs() ** power
    real, imaginary = torch.view_as_real(spectrum).unbind(-1)
    squares = torch.addcmul(real * real, imaginary, imaginary)
    return squares if power == 2 else squares.sqrt_() if power == 1 else squares ** (power / 2)


class _Magnitude(torch.autograd.Function):
    """``|rfft(frames * window)|`` of frames ``hop`` samples apart.

    Its gradient is one inverse FFT of half a spectrum and an overlap-add: a third of the time of PyTorch's own, which
    goes through a full complex FFT. Where the magnitude is 0 the gradient is 0.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, window: Tensor, hop: int) -> Tensor:
        spectrum = torch.fft.rfft(padded.unfold(1, window.numel(), hop) * window)
        magnitude = spectrum.abs()
        ctx.save_for_backward(spectrum, magnitude, window)
        ctx.hop, ctx.samples = hop, padded.shape[1]
        return magnitude

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        spectrum, magnitude, window = ctx.saved_tensors
        n_fft, hop = window.numel(), ctx.hop
        scale = torch.where(magnitude > 0, gradient / magnitude, 0.0)
        scale[..., 1 : (n_fft + 1) // 2] *= 0.5  # the inverse counts these bins twice, the forward once
        frames = torch.fft.irfft(spectrum * scale, n_fft, norm="forward") * window
        batch, count, overlap = frames.shape[0], frames.shape[1], n_fft // hop
        parts = frames.view(batch, count, overlap, hop)
        total = frames.new_zeros(batch, count + overlap - 1, hop)
        for shift in range(overlap):
            total[:, shift : shift + count] += parts[:, :, shift]
        total = total.flatten(1)
        return F.pad(total, (0, ctx.samples - total.shape[1])), None, None


def centred_magnitude(audio: Tensor, window: Tensor, hop: int) -> Tensor:
    """``|STFT|`` [B, N // hop + 1, n_fft // 2 + 1] with zeros beyond both ends: differentiable (once), for losses.

    Zeros (and not reflections) make a clip's frames the same whatever zeros follow it in a batch. ``hop`` divides the
    window's length, which is even.
    """
    n_fft = window.numel()
    padded = F.pad(audio, (n_fft // 2, n_fft // 2))[:, : audio.shape[1] // hop * hop + n_fft]
    if torch.is_grad_enabled() and padded.requires_grad:
        return _Magnitude.apply(padded, window, hop)
    return torch.fft.rfft(padded.unfold(1, n_fft, hop) * window).abs()
