"""The vocoder ops: the parts of a ConvNeXt decoder with an inverse STFT head that are not matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch, registry
from losatok_ext.ops.reference import vocoder as reference

_ISTFT = registry.declare("polar_istft", triton="polar_istft")
_CONV_NORM = registry.declare("depthwise_conv_norm", triton="depthwise_conv_norm")

# --- the raw ops: schemas, and what they return, for tracing ---------------------------------------------------------


@_ISTFT.raw("polar_istft_forward(Tensor head, Tensor window, int hop, Tensor? lengths) -> Tensor waveform")
def _istft_forward_fake(head: Tensor, window: Tensor, hop: int, lengths: Tensor | None) -> Tensor:
    """head [B, T, n + 2], window [n] -> waveform [B, hop T], in the dtype that theirs promote to."""
    dtype = torch.promote_types(head.dtype, window.dtype)
    return head.new_empty((head.shape[0], head.shape[1] * hop), dtype=dtype)


@_ISTFT.raw(
    "polar_istft_backward(Tensor grad, Tensor head, Tensor window, int hop, Tensor? lengths) -> Tensor grad_head"
)
def _istft_backward_fake(grad: Tensor, head: Tensor, *_: Any) -> Tensor:
    """grad_head is zero past a length."""
    return head.new_empty(head.shape)


@_CONV_NORM.raw(
    "depthwise_conv_norm_forward(Tensor x, Tensor conv_weight, Tensor? conv_bias, Tensor? norm_weight, "
    "Tensor? norm_bias, float eps, Tensor? lengths) -> Tensor y"
)
def _conv_norm_forward_fake(x: Tensor, *_: Any) -> Tensor:
    """x [B, T, C], conv_weight [C, 1, k], the other parameters [C] -> y [B, T, C]."""
    return x.new_empty(x.shape)


@_CONV_NORM.raw(
    "depthwise_conv_norm_backward(Tensor grad, Tensor x, Tensor conv_weight, Tensor? conv_bias, Tensor? norm_weight, "
    "float eps, Tensor? lengths, bool need_x, bool need_parameters) -> "
    "(Tensor grad_x, Tensor grad_conv_weight, Tensor grad_conv_bias, Tensor grad_norm_weight, Tensor grad_norm_bias)"
)
def _conv_norm_backward_fake(grad: Tensor, x: Tensor, conv_weight: Tensor, *options: Any) -> tuple[Tensor, ...]:
    """Gradients in the shapes of what they belong to, [0] where not needed."""
    need_x, need_parameters = options[-2:]
    shapes = (conv_weight.shape, *[conv_weight.shape[:1]] * 3)
    parameters = (x.new_empty(shape if need_parameters else (0,)) for shape in shapes)
    return x.new_empty(x.shape if need_x else (0,)), *parameters


# --- autograd -------------------------------------------------------------------------------------------------------


class _PolarISTFT(torch.autograd.Function):
    """The backward computes magnitudes and phases again: keeping the spectrum would double the memory for it."""

    @staticmethod
    def forward(ctx: Any, head: Tensor, window: Tensor, hop: int, lengths: Tensor | None, backend: str) -> Tensor:
        ctx.save_for_backward(head, window, lengths)
        ctx.hop, ctx.backend = hop, backend
        return dispatch.kernels(backend).polar_istft_forward(head, window, hop, lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        head, window, lengths = ctx.saved_tensors
        grad_head = dispatch.kernels(ctx.backend).polar_istft_backward(grad, head, window, ctx.hop, lengths)
        return grad_head, None, None, None, None


class _DepthwiseConvNorm(torch.autograd.Function):
    """Only the input is kept: computing the convolution again costs less than reading it back."""

    @staticmethod
    def forward(
        ctx: Any, eps: float, lengths: Tensor | None, backend: str, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, *parameters[:3], lengths)
        ctx.eps, ctx.backend = eps, backend
        return dispatch.kernels(backend).depthwise_conv_norm_forward(x, *parameters, eps, lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, lengths = ctx.saved_tensors
        need = ctx.needs_input_grad[3:]
        grads = dispatch.kernels(ctx.backend).depthwise_conv_norm_backward(
            grad, *tensors, ctx.eps, lengths, need[0], any(need[1:])
        )
        return None, None, None, *checks.wanted(grads, need)


# --- the public functions -------------------------------------------------------------------------------------------


def _check_frames(window: Tensor, hop: int) -> None:
    if isinstance(hop, bool) or not isinstance(hop, (int, torch.SymInt)):
        raise TypeError(f"hop should be an int (samples between frames), got {type(hop).__name__}")
    checks.floating("window", window)
    checks.shape("window", window, (None,), "[n_fft]")
    size = window.shape[0]
    if size == 0 or size % 2 or hop < 1 or size % hop or (size - hop) % 2:
        raise ValueError(
            f"window should have an even number of samples that hop divides, an even number above hop, "
            f"got {size} samples and hop={hop}"
        )


def polar_istft(head: Tensor, window: Tensor, hop: int, lengths: Tensor | None = None) -> Tensor:
    """Log magnitudes and phases to a waveform: an inverse STFT with "same" padding, as in Vocos (arXiv 2306.00814).

    The spectrum min(exp(m), 100) (cos p + i sin p) goes through an inverse real FFT; frames are multiplied by the
    window, overlapped ``hop`` samples apart and divided by the overlapped squared windows of the clip's own frames;
    (n_fft - hop) / 2 samples are removed at both ends, so that T frames give hop T samples. Where the squared windows
    add up to less than 1e-11, the waveform is zero.

    Args:
        head: [B, T, n_fft + 2], log magnitudes of the n_fft / 2 + 1 bins, then their phases in radians; float32,
            bfloat16, float16, or float64 (CPU). Any strides.
        window: [n_fft], of any of these dtypes, on head's device. It gets no gradient.
        hop: samples between frames; it divides n_fft, which is even, as is n_fft - hop.
        lengths: frames of each clip, [B], int64, each within 0..T; None: all. Frames past a length, NaN included, have
            no effect; the samples there are zero, and so is the gradient.

    Returns:
        [B, hop T], in what the dtypes of ``head`` and ``window`` promote to: a float32 window gives a float32 waveform
        from a bfloat16 head. Computed in float32 (float64), also under autocast, which changes nothing here.

    On the CPU each frame is transformed alone, by passes of the prime factors of n_fft / 2: the same bits on any number
    of threads. A factor above 5 takes time in proportion to itself; n_fft made of 2, 3 and 5 is fast.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, or lengths outside 0..T (checked on the CPU only: on a GPU it
            would wait for the device).
        BackendUnavailableError: the implementation asked for cannot run on head's device.
    """
    checks.floating("head", head)
    _check_frames(window, hop)
    checks.shape("head", head, (None, None, window.shape[0] + 2), "[B, T, n_fft + 2 (samples of window, and 2)]")
    checks.same_device("window", window, "head", head)
    lengths = checks.lengths(lengths, head.shape[0], head.shape[1], head.device)
    window = window.detach()
    backend = dispatch.choose("polar_istft", head.device)
    if backend == "reference":
        with checks.without_autocast(head.device):
            return reference.polar_istft(head, window, hop, lengths)
    if checks.need_grad(head):
        return _PolarISTFT.apply(head, window, hop, lengths, backend)
    return dispatch.kernels(backend).polar_istft_forward(head, window, hop, lengths)


def depthwise_conv_norm(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float = 1e-6,
    lengths: Tensor | None = None,
) -> Tensor:
    """A depthwise convolution over time (each channel by itself), then LayerNorm over the channels, in one pass.

    These are the steps of a ConvNeXt block (arXiv 2201.03545) before its linear layers, on [B, T, C] as those need it:
    without transposes, and without writing the convolved frames to main memory.

    Args:
        x: [B, T, C]; float32, bfloat16, float16, or float64 (CPU). Any strides.
        conv_weight: [C, 1, k] as ``nn.Conv1d(C, C, k, groups=C)`` has it, or [C, k]; k odd. Of x's dtype and device, as
            all parameters. The input is padded with zeros at both ends, and the output has its length.
        conv_bias: [C] or None.
        norm_weight: [C] or None (ones).
        norm_bias: [C] or None.
        eps: added to the variance.
        lengths: frames of each clip, [B], int64, each within 0..T; None: all. Frames past a length are read as zeros,
            whatever they hold, NaN included; the output there is zero, and so is x's gradient.

    Returns:
        [B, T, C] in x's dtype; sums and statistics in float32 (float64). Under autocast all tensors are cast to its
        dtype, as ``F.linear`` casts them. On the CPU the same bits on any number of threads.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, an even k, a negative eps, lengths outside 0..T (checked on
            the CPU only: on a GPU it would wait for the device), or more than 4096 channels in CUDA C++ (Triton,
            which is the default there, takes more).
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    checks.floating("x", x)
    checks.shape("x", x, (None, None, None), "[B, T, C]")
    channels = x.shape[2]
    if channels == 0:
        raise ValueError("x should have at least one channel (its last size), got 0")
    checks.floating("conv_weight", conv_weight)
    weight = conv_weight.unsqueeze(1) if conv_weight.dim() == 2 else conv_weight
    checks.shape("conv_weight", weight, (channels, 1, None), "[C (channels of x), 1, k]")
    if weight.shape[2] % 2 == 0:
        raise ValueError(f"conv_weight should have an odd number of taps (its last size), got {weight.shape[2]}")
    checks.eps(eps)
    vectors = {"conv_bias": conv_bias, "norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, tensor in vectors.items():
        if tensor is not None:
            checks.floating(name, tensor)
            checks.shape(name, tensor, (channels,), "[C (channels of x)]")
    x, *cast = checks.under_autocast(x, weight, *vectors.values())
    parameters: tuple[Any, Any, Any, Any] = (cast[0], cast[1], cast[2], cast[3])
    for name, tensor in zip(("conv_weight", *vectors), parameters, strict=True):
        if tensor is not None:
            checks.same_dtype_and_device(name, tensor, "x", x)
    lengths = checks.lengths(lengths, x.shape[0], x.shape[1], x.device)
    eps = float(eps)
    backend = dispatch.choose("depthwise_conv_norm", x.device)
    if backend == "reference":
        return reference.depthwise_conv_norm(x, *parameters, eps, lengths)
    if checks.need_grad(x, *parameters):
        return _DepthwiseConvNorm.apply(eps, lengths, backend, x, *parameters)
    return dispatch.kernels(backend).depthwise_conv_norm_forward(x, *parameters, eps, lengths)
