"""The bottleneck ops: projecting features to a low-dimensional latent, and the loss of restoring them from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losatok_ext.ops import checks, dispatch, registry
from losatok_ext.ops.reference import bottleneck as reference

_PROJECT = registry.declare("bottleneck_project", triton="bottleneck")
_LOSS = registry.declare("normalized_reconstruction_loss", triton="normalized_reconstruction_loss")

_Parameters = tuple[Tensor, "Tensor | None", Tensor, "Tensor | None"]
"""weight_in, bias_in, weight_out, bias_out."""

# --- the raw ops: schemas, and what they return, for tracing ---------------------------------------------------------


@_PROJECT.raw(
    "bottleneck_project_forward(Tensor x, Tensor weight_in, Tensor? bias_in, Tensor weight_out, Tensor? bias_out, "
    "str activation, bool keep_hidden) -> (Tensor z, Tensor hidden)"
)
def _project_forward_fake(
    x: Tensor, weight_in: Tensor, bias_in: Any, weight_out: Tensor, bias_out: Any, activation: str, keep_hidden: bool
) -> tuple[Tensor, Tensor]:
    """x [N, D] -> z [N, d]; hidden [N, H] holds the values before the activation, [0, H] if not kept."""
    hidden = x.new_empty((x.shape[0] if keep_hidden else 0, weight_in.shape[0]))
    return x.new_empty((x.shape[0], weight_out.shape[0])), hidden


@_PROJECT.raw(
    "bottleneck_project_backward(Tensor grad, Tensor x, Tensor hidden, Tensor weight_in, Tensor weight_out, "
    "str activation, bool need_x, bool need_parameters) -> "
    "(Tensor grad_x, Tensor grad_weight_in, Tensor grad_bias_in, Tensor grad_weight_out, Tensor grad_bias_out)"
)
def _project_backward_fake(
    grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    activation: str,
    need_x: bool,
    need_parameters: bool,
) -> tuple[Tensor, ...]:
    """Gradients in the shapes of what they belong to, [0] where not needed."""
    grad_x = x.new_empty(x.shape if need_x else (0,))
    return grad_x, *_parameter_grads(x, weight_in, weight_out, x.dtype, need_parameters)


@_LOSS.raw(
    "normalized_reconstruction_loss_forward(Tensor z, Tensor target, Tensor weight_in, Tensor? bias_in, "
    "Tensor weight_out, Tensor? bias_out, Tensor? lengths, str activation, bool need_grad) -> "
    "(Tensor loss, Tensor grad_z, Tensor grad_weight_in, Tensor grad_bias_in, Tensor grad_weight_out, "
    "Tensor grad_bias_out)"
)
def _loss_forward_fake(
    z: Tensor,
    target: Tensor,
    weight_in: Tensor,
    bias_in: Any,
    weight_out: Tensor,
    bias_out: Any,
    lengths: Any,
    activation: str,
    need_grad: bool,
) -> tuple[Tensor, ...]:
    """z [B, T, d], target [B, T, D] of any floating dtype -> loss [] and its gradients for an output gradient of 1, in
    float32 (float64); [0] where not needed.
    """
    dtype = checks.wide(z)
    grad_z = z.new_empty(z.shape if need_grad else (0,), dtype=dtype)
    return z.new_empty((), dtype=dtype), grad_z, *_parameter_grads(z, weight_in, weight_out, dtype, need_grad)


def _parameter_grads(
    like: Tensor, weight_in: Tensor, weight_out: Tensor, dtype: torch.dtype, needed: bool
) -> list[Tensor]:
    shapes = (weight_in.shape, weight_in.shape[:1], weight_out.shape, weight_out.shape[:1])
    return [like.new_empty(shape if needed else (0,), dtype=dtype) for shape in shapes]


# --- autograd -------------------------------------------------------------------------------------------------------


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: str, backend: str, x: Tensor, *parameters: Tensor | None) -> Tensor:
        z, hidden = dispatch.kernels(backend).bottleneck_project_forward(x, *parameters, activation, True)
        ctx.save_for_backward(x, hidden, parameters[0], parameters[2])
        ctx.activation, ctx.backend = activation, backend
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad[2:]
        grads = dispatch.kernels(ctx.backend).bottleneck_project_backward(
            grad, *ctx.saved_tensors, ctx.activation, need[0], any(need[1:])
        )
        return None, None, *checks.wanted(grads, need)


class _Loss(torch.autograd.Function):
    """The raw op returns the loss together with its gradients; the backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        lengths: Tensor | None,
        activation: str,
        backend: str,
        z: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        loss, *grads = dispatch.kernels(backend).normalized_reconstruction_loss_forward(
            z, target, *parameters, lengths, activation, True
        )
        need = ctx.needs_input_grad[4:]
        ctx.save_for_backward(*(g for g, n in zip(grads, need, strict=True) if n))
        ctx.dtype = z.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [(next(saved) * grad).to(ctx.dtype) if n else None for n in ctx.needs_input_grad[4:]]
        return None, None, None, None, *grads


# --- checks ---------------------------------------------------------------------------------------------------------


def _fits(x: Tensor, parameters: _Parameters, activation: str) -> bool:
    """Whether all arguments are valid. One expression, because separate checks take as long as a call on one frame."""
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
    """Raise the TypeError or ValueError that says what :func:`_fits` found wrong."""
    weight_in, bias_in, weight_out, bias_out = parameters
    checks.one_of("activation", activation, reference.ACTIVATIONS)
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
    """Input and parameters, cast as autocast casts them and checked."""
    x, *cast = checks.under_autocast(x, *parameters)
    parameters = (cast[0], cast[1], cast[2], cast[3])
    if not _fits(x, parameters, activation):
        _explain(input_name, x, parameters, activation)
    return x, parameters


# --- the public functions -------------------------------------------------------------------------------------------


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

    Without gradients, only one block of rows of the hidden activations [N, H] exists at a time. For training, the
    values before the activation are kept ([N, H] in x's dtype, H/D of the size of x), because computing them again
    would cost the larger of the two products once more.

    On the CPU the rows are divided into as many parts as there are threads: repeated runs on the same number of threads
    give the same bits, another number gives the same values up to rounding.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, or an unknown activation.
        BackendUnavailableError: the implementation asked for cannot run on x's device.
    """
    x, parameters = _prepare("x", x, (weight_in, bias_in, weight_out, bias_out), activation)
    backend = dispatch.choose("bottleneck_project", x.device)
    if backend == "reference":
        return reference.bottleneck_project(x, *parameters, activation)
    rows = checks.as_rows(x)
    if checks.need_grad(x, *parameters):
        z = _Project.apply(activation, backend, rows, *parameters)
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
    """Difference in direction of the restored features and the target: mean (norm(restored) - sg(norm(target)))^2.

    restored = ``bottleneck_project(z, ...)``; norm(v) = v / max(|v|, 1e-12) for each frame. Both are unit vectors, so
    that a frame adds 2 (1 - cos) / D: the reconstruction loss of SemBo, LoSATok's semantic bottleneck (arXiv
    2605.27840). The mean runs over valid frames and all D features.

    Args:
        z: latents [..., d]; with ``lengths``, [B, T, d]. float32, bfloat16, float16, or float64 (CPU). Any strides.
        target: teacher features [..., D] with z's leading dimensions, of any of these dtypes; it gets no gradient.
        weight_in: [H, d], of z's dtype and device, as all parameters.
        bias_in: [H] or None.
        weight_out: [D, H].
        bias_out: [D] or None.
        lengths: valid frames of each item, [B], int64, each within 0..T; None: all. Frames past a length, NaN
            included, have no effect, and z's gradient is zero there.
        activation: as in :func:`bottleneck_project`.

    Returns:
        The loss, a scalar in z's dtype (under autocast in float32). Without a valid frame it is 0, and so are all
        gradients.

    Value and gradients are computed in one pass over blocks of frames; neither the restored features [N, D] nor the
    hidden activations [N, H] are stored. Gradients are float32 (float64 for float64) until they are multiplied by the
    gradient of the loss.
    On the CPU, repeated runs on the same number of threads give the same bits, as for :func:`bottleneck_project`.

    Raises:
        TypeError: an argument of the wrong type or dtype; the message names it.
        ValueError: shapes or devices that do not fit, an unknown activation, or lengths outside 0..T (checked on the
            CPU only: on a GPU it would wait for the device).
        BackendUnavailableError: the implementation asked for cannot run on z's device.
    """
    z, parameters = _prepare("z", z, (weight_in, bias_in, weight_out, bias_out), activation)
    checks.floating("target", target)
    if target.shape != (*z.shape[:-1], weight_out.shape[0]):
        sizes = [*z.shape[:-1], weight_out.shape[0]]
        raise ValueError(
            f"target should have z's leading sizes and weight_out's rows, {sizes}, got {list(target.shape)}"
        )
    checks.same_device("target", target, "z", z)
    if lengths is not None:
        checks.shape("z", z, (None, None, None), "[B, T, d] with lengths")
        lengths = checks.lengths(lengths, z.shape[0], z.shape[1], z.device)
    dtype = torch.float32 if checks.autocast_dtype(z) else z.dtype
    backend = dispatch.choose("normalized_reconstruction_loss", z.device)
    if backend == "reference":
        return reference.normalized_reconstruction_loss(z, target, *parameters, lengths, activation).to(dtype)
    z, target = checks.as_batch(z), checks.as_batch(target.detach())
    if checks.need_grad(z, *parameters):
        loss = _Loss.apply(target, lengths, activation, backend, z, *parameters)
    else:
        loss, *_ = dispatch.kernels(backend).normalized_reconstruction_loss_forward(
            z, target, *parameters, lengths, activation, False
        )
    return loss.to(dtype)
