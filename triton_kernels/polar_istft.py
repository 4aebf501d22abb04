"""The inverse STFT from log magnitudes and phases on a GPU: Triton kernels around the transforms of cuFFT.

A frame of n samples moves 4 n bytes of float32 for each of: reading the head, writing the spectrum, cuFFT's own copy of
it (read and written), its transform (read and written), and reading the frames once for the overlap-add; then n bytes
of audio if hop is n / 4. The transform as a matrix product would save at most four of these seven and cost 2 n (n + 2)
operations for each frame: at n = 1280 in float32, by the data sheet of an H200, five times as long as moving all 37 KB,
and on the matrix units it would lose precision. So cuFFT does the transform, and everything else is fused around it:
windowing, overlap-add, envelope, trimming and the division by n need no further memory traffic.

Frames are computed in chunks of one workspace of spectra. Each output sample adds up the frames that overlap there, in
a fixed order and without atomics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.rows import clip_length, row_blocks, rows_of_clips

WORKSPACE = 64 << 20
"""Bytes of spectra that lie in memory at a time."""

LOG_MAX_MAGNITUDE = tl.constexpr(math.log(100.0))
LEAST_ENVELOPE = tl.constexpr(1e-11)


@triton.jit
def polar(head, phase, mask):
    """Magnitudes min(exp(m), 100), cosines and sines of what lies at ``head`` and ``phase``, and m itself."""
    m = tl.load(head, mask=mask, other=0.0).to(tl.float32)
    p = tl.load(phase, mask=mask, other=0.0).to(tl.float32)
    size = tl.exp(tl.where(m > LOG_MAX_MAGNITUDE, LOG_MAX_MAGNITUDE, m))  # NaN stays NaN
    return size, tl.cos(p), tl.sin(p), m


@triton.jit
def polar_spectrum_kernel(
    head, lengths, spectrum, first, rows, time, bins, clip_stride, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """spectrum [rows, bins, 2] of frames first .. first + rows of all; zeros past a length. head [B, time, 2 bins] by
    strides. Grid (blocks of ``rows``).
    """
    row, clip, frame, width = rows_of_clips(lengths, first, rows, time, bins, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    both = tl.arange(0, 2 * BLOCK)[None, :]
    source = head + (clip * clip_stride + frame * stride) + columns
    target = spectrum + row * (2 * bins) + both
    for k in range(0, bins, BLOCK):
        mask = k + columns < width
        size, cosine, sine, _ = polar(source + k, source + bins + k, mask)
        inner = mask & (k + columns > 0) & (k + columns < bins - 1)  # the ends are real: no library reads more there
        value = tl.interleave(tl.where(mask, size * cosine, 0.0), tl.where(inner, size * sine, 0.0))
        tl.store(target + 2 * k, value, mask=(2 * k + both < 2 * bins) & (row < rows))


@triton.jit
def polar_gradient_kernel(
    head, lengths, transformed, grad, first, rows, time, bins, clip_stride, stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad [B time, 2 bins] of frames first .. first + rows, from the real transform [rows, bins, 2] of their waves;
    zeros past a length. Grid (blocks of ``rows``).

    The frames are (Re S_0 + (-1)^j Re S_last + 2 sum of (Re S_k cos - Im S_k sin)(2 pi j k / n)) / n: the gradient by
    S_k is 2 / n times the transform of theirs, real to real, imaginary to imaginary; 1 / n times its real part at both
    ends.
    """
    row, clip, frame, width = rows_of_clips(lengths, first, rows, time, bins, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    both = tl.arange(0, 2 * BLOCK)[None, :]
    source = head + (clip * clip_stride + frame * stride) + columns
    by = transformed + row * (2 * bins) + both
    target = grad + (first + row) * (2 * bins) + columns
    for k in range(0, bins, BLOCK):
        mask = k + columns < width
        size, cosine, sine, m = polar(source + k, source + bins + k, mask)
        pairs = tl.load(by + 2 * k, mask=2 * k + both < 2 * width, other=0.0)
        real, imaginary = tl.split(tl.reshape(pairs, (ROWS, BLOCK, 2)))
        end = (k + columns == 0) | (k + columns == bins - 1)
        size *= tl.where(end, 0.5, 1.0) / (bins - 1)
        imaginary = tl.where(end, 0.0, imaginary)
        by_magnitude = tl.where(m > LOG_MAX_MAGNITUDE, 0.0, size * (cosine * real + sine * imaginary))
        by_phase = size * (cosine * imaginary - sine * real)
        inside = (k + columns < bins) & (row < rows)
        tl.store(target + k, tl.where(mask, by_magnitude, 0.0).to(grad.dtype.element_ty), mask=inside)
        tl.store(target + bins + k, tl.where(mask, by_phase, 0.0).to(grad.dtype.element_ty), mask=inside)


@triton.jit
def overlap_kernel(
    waves, window, lengths, audio, first_wave, first, rows, time, hop, size,
    OVERLAP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """audio [B time, hop] of frames first .. first + rows: the sum of the frames that meet at a sample, times the
    window, over the sum of its squares there and over ``size``; zeros past a length. waves [*, size] begins with frame
    ``first_wave`` and has every frame within the clip that meets the range. Grid (blocks of ``rows``).
    """
    row, clip, frame, width = rows_of_clips(lengths, first, rows, time, hop, ROWS)
    last = clip_length(lengths, clip, time)
    columns = tl.arange(0, BLOCK)[None, :]
    source = waves + (clip * time - first_wave) * size
    target = audio + (first + row) * hop + columns
    for k in range(0, hop, BLOCK):
        from_trim = (size - hop) // 2 + k + columns
        mask = k + columns < width
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        envelope = tl.zeros([ROWS, BLOCK], tl.float32)
        for q in tl.static_range(OVERLAP):
            f = frame + from_trim // hop - q
            position = from_trim % hop + q * hop
            meets = mask & (f >= 0) & (f < last)
            w = tl.where(meets, tl.load(window + position, mask=k + columns < hop, other=0.0), 0.0)
            total += tl.load(source + f * size + position, mask=meets, other=0.0) * w
            envelope += w * w
        heard = envelope > LEAST_ENVELOPE
        value = tl.where(heard, total / (tl.where(heard, envelope, 1.0) * size), 0.0)
        tl.store(target + k, value.to(audio.dtype.element_ty), mask=(k + columns < hop) & (row < rows))


@triton.jit
def cut_kernel(
    grad, window, lengths, waves, first, rows, time, hop, size,
    OVERLAP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The transpose of :func:`overlap_kernel`, but for the division by ``size``: waves [rows, size] of frames
    first .. first + rows from grad [B, hop time]. Grid (blocks of ``rows``).
    """
    row, clip, frame, width = rows_of_clips(lengths, first, rows, time, size, ROWS)
    last = clip_length(lengths, clip, time)
    columns = tl.arange(0, BLOCK)[None, :]
    source = grad + clip * time * hop
    target = waves + row * size + columns
    for k in range(0, size, BLOCK):
        sample = frame * hop + (k + columns - (size - hop) // 2)
        mask = (k + columns < width) & (sample >= 0) & (sample < last * hop)
        envelope = tl.zeros([ROWS, BLOCK], tl.float32)
        for q in tl.static_range(OVERLAP):
            f = frame + (k + columns) // hop - q
            position = (k + columns) % hop + q * hop
            w = tl.load(window + position, mask=k + columns < size, other=0.0)
            envelope += tl.where((f >= 0) & (f < last), w * w, 0.0)
        heard = mask & (envelope > LEAST_ENVELOPE)
        w = tl.load(window + (k + columns), mask=k + columns < size, other=0.0)
        g = tl.load(source + sample, mask=heard, other=0.0).to(tl.float32)
        value = tl.where(heard, g * w / tl.where(heard, envelope, 1.0), 0.0)
        tl.store(target + k, value, mask=(k + columns < size) & (row < rows))


def _blocks(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """:func:`row_blocks` for twice the warps: sines, and sums over many frames, take registers."""
    grid, blocks = row_blocks(rows, width)
    return grid, blocks | {"num_warps": 8}


def _chunks(rows: int, bins: int) -> Iterator[tuple[int, int]]:
    """First frame and count of each workspace of spectra."""
    step = max(64, WORKSPACE // (8 * bins))
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def _check(head: Tensor, window: Tensor) -> Tensor:
    """The window as the kernels take it."""
    L.check_dtype("head", head)
    L.check_dtype("window", window)
    return window.float().contiguous()


def polar_istft_forward(head: Tensor, window: Tensor, hop: int, lengths: Tensor | None) -> Tensor:
    """head [B, T, n + 2], window [n] -> waveform [B, hop T] in what their dtypes promote to."""
    dtype = torch.promote_types(head.dtype, window.dtype)
    window, head, (lengths,) = _check(head, window), L.rows_contiguous(head), L.contiguous(lengths)
    (clips, time, features), size = head.shape, window.shape[0]
    bins, rows, trim = features // 2, clips * time, (size - hop) // 2
    audio = head.new_empty((clips, time * hop), dtype=dtype)
    # The samples of frame t meet frames t - before .. t + after.
    before, after = size // hop - 1 - trim // hop, (hop - 1 + trim) // hop
    with L.on_device(head):
        for first, count in _chunks(rows, bins):
            start, end = max(0, first - before), min(rows, first + count + after)
            spectrum = head.new_empty((end - start, bins, 2), dtype=torch.float32)
            grid, blocks = _blocks(end - start, bins)
            sizes = (start, end - start, time, bins, head.stride(0), head.stride(1))
            L.launch(polar_spectrum_kernel, grid, head, lengths, spectrum, *sizes, **blocks)
            # norm="forward": the inverse divides by nothing
            waves = torch.fft.irfft(torch.view_as_complex(spectrum), size, norm="forward").contiguous()
            grid, blocks = _blocks(count, hop)
            L.launch(
                overlap_kernel, grid, waves, window, lengths, audio, start, first, count, time, hop, size,
                OVERLAP=size // hop, **blocks,
            )  # fmt: skip
    return audio


def polar_istft_backward(grad: Tensor, head: Tensor, window: Tensor, hop: int, lengths: Tensor | None) -> Tensor:
    """The gradient of head [B, T, n + 2], in its dtype, from grad [B, hop T]."""
    L.check_dtype("grad", grad)
    window, head, (lengths,) = _check(head, window), L.rows_contiguous(head), L.contiguous(lengths)
    grad = grad.contiguous()
    (clips, time, features), size = head.shape, window.shape[0]
    bins = features // 2
    grad_head = head.new_empty((clips, time, features))
    with L.on_device(head):
        for first, count in _chunks(clips * time, bins):
            waves = head.new_empty((count, size), dtype=torch.float32)
            grid, blocks = _blocks(count, size)
            L.launch(
                cut_kernel, grid, grad, window, lengths, waves, first, count, time, hop, size,
                OVERLAP=size // hop, **blocks,
            )  # fmt: skip
            transformed = torch.view_as_real(torch.fft.rfft(waves)).contiguous()
            grid, blocks = _blocks(count, bins)
            sizes = (first, count, time, bins, head.stride(0), head.stride(1))
            L.launch(polar_gradient_kernel, grid, head, lengths, transformed, grad_head, *sizes, **blocks)
    return grad_head
