"""bottleneck_project and normalized_reconstruction_loss at 1280 -> 512 -> 128, beside eager and torch.compile."""

import pytest
import torch
import torch.nn.functional as F

from losatok_ext import ops
from losatok_ext.ops import dispatch

D, H, LOW = 1280, 512, 128
DTYPES = [torch.float32, torch.bfloat16]
ROWS = [1, 25, 250, 2500, 25_000]
PRODUCTS = 2 * (D * H + H * LOW)  # FLOP for each row, one way


def name(dtype):
    return str(dtype).removeprefix("torch.")


def weights(features, hidden, out, dtype, device, requires_grad=False):
    tensors = [
        torch.randn(hidden, features) / features**0.5,
        torch.randn(hidden) / 10,
        torch.randn(out, hidden) / hidden**0.5,
        torch.randn(out) / 10,
    ]
    return [t.to(device, dtype).requires_grad_(requires_grad) for t in tensors]


def eager_project(x, weight_in, bias_in, weight_out, bias_out):
    return F.linear(F.gelu(F.linear(x, weight_in, bias_in)), weight_out, bias_out)


def eager_loss(z, target, *parameters):
    restored = eager_project(z, *parameters)
    return F.mse_loss(F.normalize(restored, dim=-1), F.normalize(target, dim=-1))


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, mode="max-autotune", dynamic=False)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_project(compare, device, dtype, rows):
    x, parameters = torch.randn(rows, D).to(device, dtype), weights(D, H, LOW, dtype, device)
    best = compiled(eager_project)
    with torch.no_grad():
        compare(
            f"bottleneck_project {name(dtype)} N={rows}",
            lambda: ops.bottleneck_project(x, *parameters),
            {"eager": lambda: eager_project(x, *parameters), "compile": lambda: best(x, *parameters)},
            rows * PRODUCTS,
            dtype,
        )


@pytest.mark.parametrize("rows", [250, 25_000])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=name)
def test_project_training(compare, device, dtype, rows):
    """Forward and backward to the parameters: teacher features take no gradient."""
    x, parameters = torch.randn(rows, D).to(device, dtype), weights(D, H, LOW, dtype, device, True)
    grad = torch.randn(rows, LOW).to(device, dtype)
    if dtype == torch.float16 and device == "cpu" and rows > 250:
        pytest.skip("eager float16 takes seconds on a CPU")

    def step(function):
        return lambda: torch.autograd.grad(function(x, *parameters), parameters, grad)

    compare(
        f"bottleneck_project + backward {name(dtype)} N={rows}",
        step(ops.bottleneck_project),
        {"eager": step(eager_project), "compile": step(compiled(eager_project))},
        rows * (2 * PRODUCTS + 2 * H * LOW),
        dtype,
    )


@pytest.mark.parametrize("rows", [250, 2500, 25_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_loss(compare, device, dtype, rows):
    """Value and all gradients, with peak memory."""
    z = torch.randn(1, rows, LOW).to(device, dtype).requires_grad_()
    target, parameters = torch.randn(1, rows, D).to(device, dtype), weights(LOW, H, D, dtype, device, True)

    def step(function):
        return lambda: torch.autograd.grad(function(z, target, *parameters), [z, *parameters])

    compare(
        f"normalized_reconstruction_loss + backward {name(dtype)} N={rows}",
        step(ops.normalized_reconstruction_loss),
        {"eager": step(eager_loss), "compile": step(compiled(eager_loss))},
        rows * 3 * PRODUCTS,
        dtype,
        memory=True,
    )


def test_hidden_kept_or_recomputed(compare, device):
    """Why training keeps the hidden values: the backward with them, and with them computed anew."""
    rows, dtype = 25_000, torch.float32
    x, parameters = torch.randn(rows, D).to(device, dtype), weights(D, H, LOW, dtype, device)
    grad = torch.randn(rows, LOW).to(device, dtype)
    raw = dispatch.kernels(dispatch.choose("bottleneck_project", x.device))
    _, hidden = raw.bottleneck_project_forward(x, *parameters, "gelu", True)

    def backward(hidden):
        return raw.bottleneck_project_backward(grad, x, hidden, parameters[0], parameters[2], "gelu", False, True)

    def again():
        return backward(raw.bottleneck_project_forward(x, *parameters, "gelu", True)[1])

    compare(f"backward with hidden values kept N={rows}", lambda: backward(hidden), {"recomputed": again})
