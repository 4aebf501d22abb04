"""What every implementation of the bottleneck ops is tested on: inputs, and an op against the reference in fp64.

Tensors are made in float64 from a seed, and rounded to the dtype under test before any implementation sees them.
"""

import torch

from budget import assert_op_within_budget
from losatok_ext import ops, use_backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# leading sizes, features D, hidden H, out d
PROJECT_CASES = [
    ((1,), 1, 1, 1),
    ((0,), 5, 4, 3),
    ((2, 0, 3), 5, 4, 3),
    ((), 6, 5, 4),
    ((7,), 33, 17, 5),
    ((2, 3, 5), 8, 16, 32),
    ((3, 67), 31, 65, 129),
    ((300,), 1280, 512, 128),
]

# clips B, frames T, latent d, hidden H, features D, lengths
LOSS_CASES = [
    (1, 1, 1, 1, 2, None),
    (2, 7, 3, 5, 4, None),
    (2, 7, 3, 5, 4, [7, 3]),
    (3, 1, 4, 8, 16, [1, 0, 1]),
    (2, 0, 4, 8, 16, None),
    (2, 5, 4, 8, 16, [0, 0]),
    (5, 67, 31, 65, 129, [0, 67, 1, 66, 13]),
    (3, 250, 128, 512, 1280, [250, 17, 121]),
]


def parameters(features, hidden, out, bias=True, generator=None):
    """weight_in, bias_in, weight_out, bias_out in float64, scaled so that values stay around 1."""

    def normal(*sizes):
        return torch.randn(*sizes, dtype=torch.float64, generator=generator)

    return [
        normal(hidden, features) / features**0.5,
        normal(hidden) / 2 if bias else None,
        normal(out, hidden) / hidden**0.5,
        normal(out) / 2 if bias else None,
    ]


def projection(lead, features, hidden, out, bias=True, seed=0):
    """x and the parameters of ``bottleneck_project``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*lead, features, dtype=torch.float64, generator=generator)
    return [x, *parameters(features, hidden, out, bias, generator)]


def loss_inputs(clips, time, latent, hidden, features, lengths, bias=True, seed=0):
    """z, target, the parameters and lengths of ``normalized_reconstruction_loss``."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(clips, time, latent, dtype=torch.float64, generator=generator)
    target = torch.randn(clips, time, features, dtype=torch.float64, generator=generator)
    lengths = None if lengths is None else torch.tensor(lengths)
    return [z, target, *parameters(latent, hidden, features, bias, generator), lengths]


def cast(tensors, dtype, device="cpu"):
    """Floating tensors in ``dtype``, others as they are, all on ``device``."""
    return [t if t is None else t.to(device, dtype if t.is_floating_point() else t.dtype) for t in tensors]


def evaluate(op, inputs, need, backend, **options):
    """The output of ``op`` and the gradients of the inputs numbered in ``need``, for an uneven output gradient."""
    inputs = [t if t is None else t.detach().requires_grad_(i in need) for i, t in enumerate(inputs)]
    with use_backend(backend):
        output = op(*inputs, **options)
        if not need:
            return [output]
        weights = torch.linspace(0.5, 1.5, output.numel(), device=output.device).to(output.dtype).view(output.shape)
        return [output.detach(), *torch.autograd.grad(output, [inputs[i] for i in need], weights)]


def check(op, inputs, need, dtype, backend, device="cpu", **options):
    """``op`` by ``backend`` against the reference in fp64, within the budget (float64: 1e-11)."""
    need = [i for i in need if inputs[i] is not None]
    rounded = cast(inputs, dtype, device)
    result = evaluate(op, rounded, need, backend, **options)
    theirs = evaluate(op, rounded, need, "reference", **options)
    exact = evaluate(op, cast(rounded, torch.float64, device), need, "reference", **options)
    assert_op_within_budget(result, theirs, exact, need, dtype, 1e-11)
    return result


def check_projection(case, dtype, backend, device="cpu", activation="gelu", bias=True, need=range(5)):
    """``bottleneck_project`` on one of PROJECT_CASES, gradients included."""
    inputs = projection(*case, bias=bias)
    return check(ops.bottleneck_project, inputs, need, dtype, backend, device, activation=activation)


def check_loss(case, dtype, backend, device="cpu", activation="gelu", bias=True, need=(0, 2, 3, 4, 5)):
    """``normalized_reconstruction_loss`` on one of LOSS_CASES, gradients included."""
    inputs = loss_inputs(*case, bias=bias)
    return check(ops.normalized_reconstruction_loss, inputs, need, dtype, backend, device, activation=activation)
