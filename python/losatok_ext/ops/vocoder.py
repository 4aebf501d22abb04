"""The vocoder ops: what a ConvNeXt decoder with an inverse STFT head does beside its matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch
from losatok_ext.ops.fakes import fake
from losatok_ext.ops.reference import vocoder as reference

# --- what the raw ops return, for tracing ---------------------------------------------------------------------------


@fake("polar_istft_forward")
def _istft_forward_fake(head: Tensor, window: Tensor, hop: int, lengths: Tensor | None) -> Tensor:
    dtype = torch.promote_types(head.dtype, window.dtype)
    return head.new_empty((head.shape[0], head.shape[1] * hop), dtype=dtype)


@fake("polar_istft_backward")
def _istft_backward_fake(grad: Tensor, head: Tensor, window: Tensor, hop: int, lengths: Tensor | None) -> Tensor:
    return head.new_empty(head.shape)


@fake("depthwise_conv_norm_forward")
def _conv_norm_forward_fake(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    lengths: Tensor | None,
) -> Tensor:
    return x.new_empty(x.shape)


@fake("depthwise_conv_norm_backward")
def _conv_norm_backward_fake(
    grad: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    eps: float,
    lengths: Tensor | None,
    need_x: bool,
    need_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels = conv_weight.shape[:1]
    parameters = (conv_weight.shape, channels, channels, channels)
    grads = [x.new_empty(shape if need_parameters else (0,)) for shape in parameters]
    return x.new_empty(x.shape if need_x else (0,)), grads[0], grads[1], grads[2], grads[3]


# --- autograd -------------------------------------------------------------------------------------------------------


class _PolarISTFT(torch.autograd.Function):
    """Magnitudes and phases are computed anew for the gradient: keeping the spectrum would double what is kept."""

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
    """Only the input is kept: the convolution costs less computed anew than read back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        lengths: Tensor | None,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(x, conv_weight, conv_bias, norm_weight, lengths)
        ctx.eps, ctx.backend = eps, backend
        return dispatch.kernels(backend).depthwise_conv_norm_forward(
            x, conv_weight, conv_bias, norm_weight, norm_bias, eps, lengths
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, conv_weight, conv_bias, norm_weight, lengths = ctx.saved_tensors
        need = ctx.needs_input_grad
        grads = dispatch.kernels(ctx.backend).depthwise_conv_norm_backward(
            grad, x, conv_weight, conv_bias, norm_weight, ctx.eps, lengths, need[0], any(need[1:5])
        )
        return *(g if n else None for g, n in zip(grads, need[:5], strict=True)), None, None, None


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


def _under_autocast(x: Tensor, *parameters: Tensor | None) -> Any:
    """All of them, under autocast in its dtype as ``F.linear`` takes them (float64 stays)."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return x, *parameters
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), *(None if tensor is None else tensor.to(dtype) for tensor in parameters)


def polar_istft(head: Tensor, window: Tensor, hop: int, lengths: Tensor | None = None) -> Tensor:
    """Log magnitudes and phases to a waveform: an inverse STFT with "same" padding, as Vocos has it (arXiv 2306.00814).

    The spectrum min(exp(m), 100) (cos p + i sin p) goes through an inverse real FFT; frames are multiplied by the
    window, overlapped ``hop`` samples apart and divided by the overlapped squared windows of the clip's own frames;
    (n_fft - hop) / 2 samples are trimmed on either side, so that T frames give hop T samples. Where no window reaches
    (their squares add up to less than 1e-11), the waveform is zero.

    Args:
        head: [B, T, n_fft + 2], log magnitudes of the n_fft / 2 + 1 bins, then their phases in radians; float32,
            bfloat16, float16, or float64 (CPU). Any strides.
        window: [n_fft], of any of these dtypes, on head's device. It takes no gradient.
        hop: samples between frames; it divides n_fft, which is even, as is n_fft - hop.
        lengths: frames of each clip, [B], int64, each within 0..T; None: all. A clip ends where its frames end, as if
            what lies past them, NaN included, were not there; its samples past them are zero, and so is the gradient.

    Returns:
        [B, hop T], in what the dtypes of ``head`` and ``window`` promote to: a float32 window gives a float32 waveform
        from a bfloat16 head. Computed in float32 (float64), also under autocast, which changes nothing here.

    On the CPU each frame is transformed alone, by passes of the prime factors of n_fft / 2: the same bits on any number
    of threads. A factor above 5 takes time in proportion to itself; n_fft made of 2, 3 and 5 is fast.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
        ValueError: shapes or devices that do not fit, or lengths outside 0..T (looked at on the CPU only: on a GPU that
            would wait for the device).
        BackendUnavailableError: the implementation asked for cannot run on head's device.
    """
    checks.floating("head", head)
    _check_frames(window, hop)
    checks.shape("head", head, (None, None, window.shape[0] + 2), "[B, T, n_fft + 2 (samples of window, and 2)]")
    if window.device != head.device:
        raise ValueError(f"window should be on head's device {head.device}, got {window.device}")
    lengths = checks.lengths(lengths, head.shape[0], head.shape[1], head.device)
    window = window.detach()
    backend = dispatch.choose("polar_istft", head.device)
    if backend == "reference":
        with torch.autocast(head.device.type, enabled=False):
            return reference.polar_istft(head, window, hop, lengths)
    if head.requires_grad and torch.is_grad_enabled():
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
    """A convolution over time of each channel alone, then LayerNorm over the channels, in one pass over the frames.

    What a ConvNeXt block (arXiv 2201.03545) does before its linear layers, on [B, T, C] as they take it: no transposes,
    and the convolved frames never reach main memory.

    Args:
        x: [B, T, C]; float32, bfloat16, float16, or float64 (CPU). Any strides.
        conv_weight: [C, 1, k] as ``nn.Conv1d(C, C, k, groups=C)`` has it, or [C, k]; k odd. Of x's dtype and device, as
            all parameters. The convolution finds zeros beyond both ends, and is as long as its input.
        conv_bias: [C] or None.
        norm_weight: [C] or None (ones).
        norm_bias: [C] or None.
        eps: added to the variance.
        lengths: frames of each clip, [B], int64, each within 0..T; None: all. The convolution finds zeros past a length
            whatever is there, NaN included; what comes out there is zero, and so is x's gradient.

    Returns:
        [B, T, C] in x's dtype; sums and statistics in float32 (float64). Under autocast all tensors are cast to its
        dtype, as ``F.linear`` casts them. On the CPU the same bits on any number of threads.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
        ValueError: shapes or devices that do not fit, an even k, a negative eps, lengths outside 0..T (looked at on
            the CPU only: on a GPU that would wait for the device), or more than 4096 channels in CUDA C++ (Triton,
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
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise TypeError(f"eps should be a float, got {type(eps).__name__}")
    if eps < 0:
        raise ValueError(f"eps should be at least 0, got {eps}")
    vectors = {"conv_bias": conv_bias, "norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, tensor in vectors.items():
        if tensor is not None:
            checks.floating(name, tensor)
            checks.shape(name, tensor, (channels,), "[C (channels of x)]")
    x, weight, conv_bias, norm_weight, norm_bias = _under_autocast(x, weight, *vectors.values())
    vectors = {"conv_weight": weight, "conv_bias": conv_bias, "norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, tensor in vectors.items():
        if tensor is not None:
            checks.same_dtype_and_device(name, tensor, "x", x)
    lengths = checks.lengths(lengths, x.shape[0], x.shape[1], x.device)
    eps = float(eps)
    backend = dispatch.choose("depthwise_conv_norm", x.device)
    if backend == "reference":
        return reference.depthwise_conv_norm(x, weight, conv_bias, norm_weight, norm_bias, eps, lengths)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *vectors.values())):
        return _DepthwiseConvNorm.apply(x, weight, conv_bias, norm_weight, norm_bias, eps, lengths, backend)
    return dispatch.kernels(backend).depthwise_conv_norm_forward(
        x, weight, conv_bias, norm_weight, norm_bias, eps, lengths
    )
