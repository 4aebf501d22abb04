"""Quantization without a codebook: its CUDA kernels and bindings, executed on the CPU by the host shim."""

import math

import pytest
import torch

from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext.ops.reference import quantize as reference
from ops.quantize_cases import AFFINE_EXTREMES, LEVELS, three_bad_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_levels_in_every_order_of_threads_with_nan_past_lengths(ops, in_every_order, levels, dtype):
    x = (torch.randn(3, 150, len(levels)) * 2).to(dtype)
    lengths = torch.tensor([150, 31, 0])
    for b, length in enumerate(lengths):
        x[b, length:] = float("nan")
    quantized, indices = in_every_order(lambda: ops("fsq_quantize_forward", x, levels, lengths))
    theirs, numbers = reference.fsq_quantize(x, levels, lengths)
    half = torch.tensor([n // 2 for n in levels])
    steps = ((quantized.double() - theirs.double()) * half).abs()  # a boundary between two ways to round tanh
    assert steps.max() <= 1 + 65536 * torch.finfo(dtype).eps
    if max(levels) <= 8:
        assert (indices != numbers).double().mean() <= 1e-3
    assert quantized.dtype == dtype
    assert (indices[1, 31:] == -1).all()
    assert (quantized[1, 31:] == 0).all()
    (back,) = in_every_order(lambda: [ops("fsq_dequantize_forward", indices.flatten(), levels, dtype)])
    assert back.view(x.shape).equal(quantized)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_that_of_the_bound(ops, in_every_order, dtype):
    levels, lengths = (8, 5, 2, 3), torch.tensor([50, 20])
    x, weights = torch.randn(2, 50, 4).to(dtype), torch.randn(2, 50, 4)
    x[1, 20:] = float("nan")
    (grad,) = in_every_order(lambda: [ops("fsq_quantize_backward", weights, x, levels, lengths)])

    def define(kind):
        leaf = x.to(kind).requires_grad_()
        quantized, _ = reference.fsq_quantize(leaf, levels, lengths)
        return torch.autograd.grad(quantized, leaf, weights.to(kind))[0]

    assert grad.dtype == dtype
    assert (grad[1, 20:] == 0).all()
    assert_within_budget(grad, define(dtype), define(torch.float64), factor=GRADIENT_FACTOR)
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert ops("fsq_quantize_backward", weights, strided, levels, lengths).equal(grad)


def test_levels_reach_every_code_and_their_ends(ops):
    levels = (8, 5, 3)
    every = torch.arange(-1, math.prod(levels) + 1)
    values = ops("fsq_dequantize_forward", every, levels, torch.float32)
    assert values[1:-1].equal(reference.fsq_dequantize(every[1:-1], levels))
    assert (values[0] == 0).all()
    assert (values[-1] == 0).all()  # out of range
    x = torch.tensor([[[1e30, -1e30, 0.0], [torch.inf, -torch.inf, -0.0], [torch.nan, 0.0, 1e-9]]])
    quantized, indices = ops("fsq_quantize_forward", x, levels, None)
    assert quantized[0, :2].tolist() == [[0.75, -1.0, 0.0]] * 2
    assert quantized[0, 2, 0].isnan()
    assert indices.tolist() == [[7 + 40, 7 + 40, 4 + 8 * 2 + 40]]
    strided = torch.randn(3, 40, 2).permute(2, 1, 0)
    packed = ops("fsq_quantize_forward", strided.contiguous(), levels, None)
    assert all(a.equal(b) for a, b in zip(packed, ops("fsq_quantize_forward", strided, levels, None), strict=True))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(50, 128), (9, 1), (3, 77), (0, 4), (4, 0)], ids=str)
def test_affine_integers_are_those_of_the_reference(ops, in_every_order, shape, dtype, bits):
    x = (torch.randn(shape) * 3 + 1).to(dtype)
    stored = in_every_order(lambda: ops("affine_quantize_forward", x, bits))
    assert all(a.equal(b) for a, b in zip(stored, reference.affine_quantize(x, bits), strict=True))
    (back,) = in_every_order(lambda: [ops("affine_dequantize_forward", *stored, bits, shape[1], dtype)])
    assert back.equal(reference.affine_dequantize(*stored, bits, shape[1], dtype))
    wide = [s.double() for s in stored[1:]]
    assert ops("affine_dequantize_forward", stored[0], *wide, bits, shape[1], dtype).equal(back)
    strided = x.t().contiguous().t()
    assert all(a.equal(b) for a, b in zip(stored, ops("affine_quantize_forward", strided, bits), strict=True))


@pytest.mark.parametrize("bits", [8, 4])
def test_affine_extremes(ops, bits):
    x = torch.tensor(AFFINE_EXTREMES)
    stored = ops("affine_quantize_forward", x, bits)
    assert all(a.equal(b) for a, b in zip(stored, reference.affine_quantize(x, bits), strict=True))
    bad = three_bad_rows()
    back = ops("affine_dequantize_forward", *ops("affine_quantize_forward", bad, bits), bits, 40, torch.float32)
    assert back[:3].isnan().all()
    assert torch.isfinite(back[3:]).all()


def test_bad_input_is_named(ops):
    x = torch.randn(2, 3)
    with pytest.raises(TypeError, match="x is Double; the CUDA kernels take float32"):
        ops("fsq_quantize_forward", x[None].double(), (4, 4, 4), None)
    with pytest.raises(TypeError, match="x is Double"):
        ops("affine_quantize_forward", x.double(), 8)
    with pytest.raises(TypeError, match=r"dtype is float64.*use_backend"):
        ops("fsq_dequantize_forward", torch.zeros(3, dtype=torch.int64), (4, 4), torch.float64)
    with pytest.raises(TypeError, match=r"dtype is float64.*use_backend"):
        ops("affine_dequantize_forward", *ops("affine_quantize_forward", x, 8), 8, 3, torch.float64)
    with pytest.raises(ValueError, match="bits should be 4 or 8"):
        ops("affine_quantize_forward", x, 5)
    with pytest.raises(ValueError, match=r"fewer than 2\^63 codes"):
        ops("fsq_dequantize_forward", torch.zeros(3, dtype=torch.int64), (2,) * 63, torch.float32)
    with pytest.raises(ValueError, match=r"lengths should have shape \[1\]"):
        ops("fsq_quantize_forward", x[None], (4, 4, 4), torch.tensor([1, 2]))
