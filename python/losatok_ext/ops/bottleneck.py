"""The bottleneck ops: projecting features to a low-dimensional latent, and the cosine loss of restoring them.

.. measured: bottleneck_project float32

The peer's time over ours, bottleneck_project float32 (2 cores of Intel(R) Xeon(R) Processor, torch 2.13.0+cpu,
2026-11-25): N=1: 1.27x eager, 2.08x compile; N=25: 0.98x eager, 1.20x compile; N=250: 0.95x eager, 1.02x compile;
N=2500: 0.99x eager, 1.01x compile; N=25000: 1.26x eager, 1.15x compile.

.. end

.. measured: bottleneck_project bfloat16

The peer's time over ours, bottleneck_project bfloat16 (2 cores of Intel(R) Xeon(R) Processor, torch 2.13.0+cpu,
2026-11-25): N=1: 3.66x eager, 5.10x compile; N=25: 0.96x eager, 1.25x compile; N=250: 0.99x eager, 1.25x compile;
N=2500: 0.92x eager, 1.06x compile; N=25000: 1.45x eager, 1.29x compile.

.. end

.. measured: normalized_reconstruction_loss

The peer's time over ours, normalized_reconstruction_loss (2 cores of Intel(R) Xeon(R) Processor, torch 2.13.0+cpu,
2026-11-25): + backward float32 N=2500: 1.70x eager, 1.17x compile; + backward float32 N=25000: 2.75x eager, 1.46x
compile; + backward bfloat16 N=2500: 2.25x eager, 1.22x compile; + backward bfloat16 N=25000: 5.24x eager, 1.85x
compile.

.. end
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch
from losatok_ext.ops.fakes import fake
from losatok_ext.ops.reference import bottleneck as reference

# --- what the raw ops return, for tracing ---------------------------------------------------------------------------


@fake("bottleneck_project_forward")
def _project_forward_fake(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    activation: str,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    rows = x.shape[0]
    hidden = x.new_empty((rows if keep_hidden else 0, weight_in.shape[0]))
    return x.new_empty((rows, weight_out.shape[0])), hidden


@fake("bottleneck_project_backward")
def _project_backward_fake(
    grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    activation: str,
    need_x: bool,
    need_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    parameters = (weight_in.shape, weight_in.shape[:1], weight_out.shape, weight_out.shape[:1])
    grads = [x.new_empty(shape if need_parameters else (0,)) for shape in parameters]
    return x.new_empty(x.shape if need_x else (0,)), grads[0], grads[1], grads[2], grads[3]


@fake("normalized_reconstruction_loss_forward")
def _loss_forward_fake(
    z: Tensor,
    target: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    lengths: Tensor | None,
    activation: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    inputs = (z.shape, weight_in.shape, weight_in.shape[:1], weight_out.shape, weight_out.shape[:1])
    grads = [z.new_empty(shape if need_grad else (0,), dtype=dtype) for shape in inputs]
    return z.new_empty((), dtype=dtype), grads[0], grads[1], grads[2], grads[3], grads[4]


# --- autograd -------------------------------------------------------------------------------------------------------


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_in: Tensor,
        bias_in: Tensor | None,
        weight_out: Tensor,
        bias_out: Tensor | None,
        activation: str,
        backend: str,
    ) -> Tensor:
        z, hidden = dispatch.kernels(backend).bottleneck_project_forward(
            x, weight_in, bias_in, weight_out, bias_out, activation, True
        )
        ctx.save_for_backward(x, hidden, weight_in, weight_out)
        ctx.activation, ctx.backend = activation, backend
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad
        grads = dispatch.kernels(ctx.backend).bottleneck_project_backward(
            grad, *ctx.saved_tensors, ctx.activation, need[0], any(need[1:5])
        )
        return *(g if n else None for g, n in zip(grads, need[:5], strict=True)), None, None


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight_in: Tensor,
        bias_in: Tensor | None,
        weight_out: Tensor,
        bias_out: Tensor | None,
        target: Tensor,
        lengths: Tensor | None,
        activation: str,
        backend: str,
    ) -> Tensor:
        loss, *grads = dispatch.kernels(backend).normalized_reconstruction_loss_forward(
            z, target, weight_in, bias_in, weight_out, bias_out, lengths, activation, True
        )
        need = ctx.needs_input_grad[:5]
        ctx.save_for_backward(*(g for g, n in zip(grads, need, strict=True) if n))
        ctx.dtype = z.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        need = ctx.needs_input_grad
        grads = [(next(saved) * grad).to(ctx.dtype) if n else None for n in need[:5]]
        return *grads, None, None, None, None


# --- the public functions -------------------------------------------------------------------------------------------


_Parameters = tuple[Tensor, "Tensor | None", Tensor, "Tensor | None"]


def _fits(x: Tensor, parameters: _Parameters, activation: str) -> bool:
    """Whether all is as it should be. One expression, since a call on one frame takes no longer than many checks."""
    weight_in, bias_in, weight_out, bias_out = parameters
    if not (isinstance(x, Tensor) and isinstance(weight_in, Tensor) and isinstance(weight_out, Tensor)):
        return False
    dtype, device = x.dtype, x.device

    def bias_fits(bias: Tensor | None, weight: Tensor) -> bool:
        return bias is None or (
            isinstance(bias, Tensor)
            and bias.dtype == dtype
            and bias.device == device
            and bias.shape == weight.shape[:1]
        )

    return (
        activation in reference.ACTIVATIONS
        and dtype in checks.FLOATING
        and dtype == weight_in.dtype == weight_out.dtype
        and device == weight_in.device == weight_out.device
        and weight_in.dim() == weight_out.dim() == 2
        and x.dim() > 0
        and x.shape[-1] == weight_in.shape[1] > 0
        and weight_out.shape[1] == weight_in.shape[0] > 0
        and weight_out.shape[0] > 0
        and bias_fits(bias_in, weight_in)
        and bias_fits(bias_out, weight_out)
    )


def _explain(input_name: str, x: Tensor, parameters: _Parameters, activation: str) -> None:
    """Raise what :func:`_fits` found wrong."""
    weight_in, bias_in, weight_out, bias_out = parameters
    if activation not in reference.ACTIVATIONS:
        known = ", ".join(map(repr, reference.ACTIVATIONS))
        raise ValueError(f"activation should be one of {known}, got {activation!r}")
    checks.floating(input_name, x)
    if x.dim() == 0:
        raise ValueError(f"{input_name} should have shape [..., features], got a scalar")
    checks.floating("weight_in", weight_in)
    checks.floating("weight_out", weight_out)
    checks.shape("weight_in", weight_in, (None, x.shape[-1]), f"[hidden, features of {input_name}]")
    checks.shape("weight_out", weight_out, (None, weight_in.shape[0]), "[out, hidden (rows of weight_in)]")
    if weight_in.numel() == 0 or weight_out.numel() == 0:
        sizes = f"{list(weight_in.shape)} and {list(weight_out.shape)}"
        raise ValueError(f"weight_in and weight_out should not be empty, got {sizes}")
    if bias_in is not None:
        checks.floating("bias_in", bias_in)
        checks.shape("bias_in", bias_in, (weight_in.shape[0],), "[hidden (rows of weight_in)]")
    if bias_out is not None:
        checks.floating("bias_out", bias_out)
        checks.shape("bias_out", bias_out, (weight_out.shape[0],), "[out (rows of weight_out)]")
    names = ("weight_in", "bias_in", "weight_out", "bias_out")
    for name, tensor in zip(names, parameters, strict=True):
        if tensor is not None:
            checks.same_dtype_and_device(name, tensor, input_name, x)


def _prepare(input_name: str, x: Tensor, parameters: _Parameters, activation: str) -> tuple[Tensor, _Parameters]:
    """Input and parameters, under autocast in its dtype as ``F.linear`` takes them (float64 stays), and checked."""
    if isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)

        def cast(tensor: Any) -> Any:
            casts = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
            return tensor.to(dtype) if casts else tensor

        x, parameters = cast(x), (cast(parameters[0]), cast(parameters[1]), cast(parameters[2]), cast(parameters[3]))
    if not _fits(x, parameters, activation):
        _explain(input_name, x, parameters, activation)
    return x, parameters


def _as_batch(x: Tensor) -> Tensor:
    """[..., C] as [B, T, C]: three dimensions stay, others become one item."""
    if x.dim() == 3:
        return x
    return (x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)).unsqueeze(0)


def _need_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def bottleneck_project(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    activation: str = "gelu",
) -> Tensor:
    """Two linear maps with an activation between them: z = act(x W_in^T + b_in) W_out^T + b_out.

    Args:
        x: features [..., D], any leading dimensions and strides; float32, bfloat16, float16, or float64 (CPU).
        weight_in: [H, D], of x's dtype and device, as all parameters.
        bias_in: [H] or None.
        weight_out: [d, H].
        bias_out: [d] or None.
        activation: ``"gelu"`` (by the error function), ``"gelu_tanh"``, ``"silu"``, ``"relu"`` or ``"none"``.

    Returns:
        z [..., d] in x's dtype. Under autocast all tensors are cast to its dtype, as ``F.linear`` casts them.

    Without gradients, the hidden activations [N, H] exist only one block of rows at a time. For training, the values
    before the activation are kept ([N, H] in x's dtype, H/D of the size of x): computing them anew would cost the
    larger of the two products again.

    On the CPU rows are shared out in as many parts as there are threads: the same bits again on the same number of
    threads, and the same values to rounding on another number.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
        ValueError: shapes or devices that do not fit, or an unknown activation.
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    x, parameters = _prepare("x", x, (weight_in, bias_in, weight_out, bias_out), activation)
    backend = dispatch.choose("bottleneck_project", x.device)
    if backend == "reference":
        return reference.bottleneck_project(x, *parameters, activation)
    rows = x if x.dim() == 2 else x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)
    if _need_grad(x, *parameters):
        z = _Project.apply(rows, *parameters, activation, backend)
    else:
        z, _ = dispatch.kernels(backend).bottleneck_project_forward(rows, *parameters, activation, False)
    return z if x.dim() == 2 else z.view((*x.shape[:-1], weight_out.shape[0]))


def normalized_reconstruction_loss(
    z: Tensor,
    target: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    lengths: Tensor | None = None,
    activation: str = "gelu",
) -> Tensor:
    """How far the direction of restored features is from the target's: mean (norm(restored) - sg(norm(target)))^2.

    restored = ``bottleneck_project(z, ...)``; norm(v) = v / max(|v|, 1e-12) for each frame. Both are unit vectors, so
    that a frame adds 2 (1 - cos) / D: the reconstruction loss of SemBo, LoSATok's semantic bottleneck (arXiv
    2605.27840). The mean runs over valid frames and all D features.

    Args:
        z: latents [..., d]; with ``lengths``, [B, T, d]. float32, bfloat16, float16, or float64 (CPU). Any strides.
        target: teacher features [..., D] with z's leading dimensions, of any of these dtypes; takes no gradient.
        weight_in: [H, d], of z's dtype and device, as all parameters.
        bias_in: [H] or None.
        weight_out: [D, H].
        bias_out: [D] or None.
        lengths: valid frames of each item, [B], int64, each within 0..T; None: all. What lies past a length, NaN
            included, changes nothing, and z's gradient is zero there.
        activation: as in :func:`bottleneck_project`.

    Returns:
        The loss, a scalar in z's dtype (under autocast in float32). Without a valid frame 0, as are all gradients.

    Value and gradients come from one pass over blocks of frames; neither the restored features [N, D] nor the hidden
    activations [N, H] are stored. Gradients are kept in float32 (float64 for float64) until they meet the loss's own.
    Bits and threads as in :func:`bottleneck_project`: on the CPU the same bits again on the same number of threads.

    Raises:
        TypeError: a dtype or kind of argument that is not taken; the message names the argument.
        ValueError: shapes or devices that do not fit, an unknown activation, or lengths outside 0..T (looked at on the
            CPU only: on a GPU that would wait for the device).
        BackendUnavailableError: the implementation asked for cannot run on z's device.
    """
    z, parameters = _prepare("z", z, (weight_in, bias_in, weight_out, bias_out), activation)
    autocast = torch.is_autocast_enabled(z.device.type)
    checks.floating("target", target)
    if target.shape != (*z.shape[:-1], weight_out.shape[0]):
        sizes = [*z.shape[:-1], weight_out.shape[0]]
        raise ValueError(
            f"target should have z's leading sizes and weight_out's rows, {sizes}, got {list(target.shape)}"
        )
    if target.device != z.device:
        raise ValueError(f"target should be on z's device {z.device}, got {target.device}")
    if lengths is not None:
        checks.shape("z", z, (None, None, None), "[B, T, d] with lengths")
        lengths = checks.lengths(lengths, z.shape[0], z.shape[1], z.device)
    dtype = torch.float32 if autocast and z.dtype != torch.float64 else z.dtype
    backend = dispatch.choose("normalized_reconstruction_loss", z.device)
    if backend == "reference":
        return reference.normalized_reconstruction_loss(z, target, *parameters, lengths, activation).to(dtype)
    z, target = _as_batch(z), _as_batch(target.detach())
    if _need_grad(z, *parameters):
        loss = _Loss.apply(z, *parameters, target, lengths, activation, backend)
    else:
        loss, *_ = dispatch.kernels(backend).normalized_reconstruction_loss_forward(
            z, target, *parameters, lengths, activation, False
        )
    return loss.to(dtype)
