"""What the tests of the Triton kernels share: an op by Triton and by the reference, compared with the budget."""

import os

import numpy
import pytest
import torch

from budget import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_within_budget
from losatok_ext import use_backend

triton = pytest.importorskip("triton")  # skips the test file that imports this one


def _version(module):
    return tuple(int(part) for part in module.__version__.split(".")[:2])


INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
needs_working_triton = pytest.mark.skipif(
    INTERPRETED and _version(triton) < (3, 7) and _version(numpy) >= (2, 4),
    reason="the interpreter of Triton before 3.7 takes no loop bound known only at run time with NumPy from 2.4 on",
)

DTYPES = [
    torch.float32,
    torch.float16,
    # bfloat16 products are wrong in Triton's interpreter
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]


def evaluate(op, backend, tensors, need, dtype, device, **options):
    """The output of ``op`` and the gradients of those ``tensors`` that ``need`` one."""
    inputs = [
        None if t is None else t.clone().to(device, dtype if t.is_floating_point() else t.dtype).requires_grad_(n)
        for t, n in zip(tensors, need, strict=True)
    ]
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    with use_backend(backend):
        output = op(*inputs, **options)
    wanted = [t for t, n in zip(inputs, need, strict=True) if n]
    if not wanted:
        return [output]
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=dtype, device=device).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, wanted, weights)]


def check_op(op, tensors, need, dtype, device, **options):
    """``op`` by Triton against the reference in fp64, within the budget that the reference in ``dtype`` sets."""
    rounded = [t if t is None or not t.is_floating_point() else t.to(dtype) for t in tensors]
    need = [n and t is not None for n, t in zip(need, tensors, strict=True)]
    result = evaluate(op, "triton", rounded, need, dtype, device, **options)
    theirs = evaluate(op, "reference", rounded, need, dtype, device, **options)
    exact = evaluate(op, "reference", rounded, need, torch.float64, device, **options)
    for index, values in enumerate(zip(result, theirs, exact, strict=True)):
        factor = GRADIENT_FACTOR if index else OUTPUT_FACTOR
        assert_within_budget(*values, factor=factor, name=f"gradient {index - 1}" if index else "output")
    return result


def fill_with_nan(monkeypatch):
    """Let what is allocated uninitialised hold NaN, so that a value nobody wrote shows."""

    def filling(allocate):
        def filled(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() and tensor.device.type != "meta" else tensor

        return filled

    monkeypatch.setattr(torch, "empty", filling(torch.empty))
    monkeypatch.setattr(torch, "empty_like", filling(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", filling(torch.Tensor.new_empty))
