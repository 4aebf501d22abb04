"""Every native op on 1, 2, 3 and 4 threads, forward and backward, at sizes that no block divides.

Most ops give the same bits on any number of threads. Those that sum over rows in one accumulator for each thread give
the same bits again on the same number of threads, and nearly the same values on others.
"""

import itertools
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from losatok_ext import ops
from ops import bottleneck_cases, dit_cases, quantize_cases, time_relation_cases, vocoder_cases

THREADS = (1, 2, 3, 4)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# (op, dtype) with the inputs of each: of a single block, which a library may want to split, and of many blocks.
ANY_NUMBER, SAME_NUMBER = [], []


def case(cases, *sizes, dtypes=DTYPES):
    """Adds to ``cases`` a function of (dtype, one of ``sizes``) that returns results of an op, gradients included."""

    def register(function):
        for (index, size), dtype in itertools.product(enumerate(sizes), dtypes):
            name = f"{function.__name__}-{index}-{str(dtype).removeprefix('torch.')}"
            cases.append(pytest.param(partial(function, dtype, size), dtype, id=name))
        return function

    return register


@contextmanager
def on_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluate(op, tensors, need, **options):
    return dit_cases.evaluate(op, tensors, need, "native", **options)


# --- ops with the same bits on any number of threads ----------------------------------------------------------------


@case(
    ANY_NUMBER,
    (1, 3, 16, 4, None),
    (1, 7, 1280, 320, None),
    (3, 150, 30, 10, [150, 3, 0]),
    (2, 133, 1280, 320, [133, 65]),
)
def polar_istft(dtype, size):
    head, window, lengths = vocoder_cases.istft_inputs(*size)
    op = vocoder_cases.istft(size[3])
    return evaluate(op, [head.to(dtype), window.to(dtype), lengths], [0])


@case(ANY_NUMBER, (1, 5, 6, 3, None), (3, 301, 70, 7, [301, 290, 5]))
def depthwise_conv_norm(dtype, size):
    inputs = bottleneck_cases.cast(vocoder_cases.conv_inputs(*size), dtype)
    return evaluate(vocoder_cases.conv_norm, inputs, range(5))


@case(ANY_NUMBER, ((1, 5, 7), (False, False)), ((3, 171, 301), (False, False)), ((3, 171, 301), (True, True)))
def layer_norm_modulate(dtype, size):
    return evaluate(ops.layer_norm_modulate, dit_cases.modulation_inputs(*size, dtype), range(3))


@case(ANY_NUMBER, ((1, 5, 7), False), ((3, 171, 301), False), ((3, 171, 301), True))
def gated_residual(dtype, size):
    inputs = dit_cases.modulation_inputs(size[0], (True, size[1]), dtype)
    return evaluate(ops.gated_residual, inputs, range(3))


@case(
    ANY_NUMBER,
    dit_cases.Case(batch=1, time=63, heads=1, size=64, rope=64),
    dit_cases.Case(batch=1, time=1, keys=511, heads=1, size=128),
    dit_cases.Case(batch=3, time=151, heads=3, size=40, rope=32, lengths=(151, 7, 90), packed=True),
)
def dit_attention(dtype, size):
    return evaluate(ops.dit_attention, size.tensors(dtype), range(5), **size.options(dtype))


INT8_SIZES = (((1,), 1280, 65), ((61,), 641, 127), ((531,), 641, 301))


@case(SAME_NUMBER, *INT8_SIZES, dtypes=[torch.float64])  # torch's own product
@case(ANY_NUMBER, *INT8_SIZES, dtypes=DTYPES[:3])
def int8_linear(dtype, size):
    lead, features, outputs = size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*lead, features, generator=generator).to(dtype)
    weight = torch.randint(-127, 128, (outputs, features), dtype=torch.int8, generator=generator)
    scale = torch.rand(outputs, generator=generator).to(dtype)
    return [ops.int8_linear(x, weight, scale, scale, "gelu")]


@case(ANY_NUMBER, ((9,), 33, 5), ((61,), 700, 128), ((501,), 301, 47))
def vq_nearest(dtype, size):
    x, codebook = quantize_cases.rows_and_codes(*size, dtype=dtype)
    results = []
    for precision in ("exact", "fast"):
        indices, distance = ops.vq_nearest(x, codebook, precision=precision)
        leaves = [x.clone().requires_grad_(), codebook.clone().requires_grad_()]
        _, differentiable = ops.vq_nearest(*leaves, precision=precision)
        results += [indices, distance, *torch.autograd.grad(differentiable.sum(), leaves)]
    return results


@case(ANY_NUMBER, ((61,), 3, 200, 40), ((333,), 5, 201, 41))
def rvq(dtype, size):
    x, codebooks = quantize_cases.rows_and_codebooks(*size, dtype=dtype)
    results = []
    for precision in ("exact", "fast"):
        codes, quantized = ops.rvq_encode(x, codebooks, precision=precision)
        leaf = codebooks.clone().requires_grad_()
        decoded = ops.rvq_decode(codes, leaf)
        weights = torch.linspace(0.5, 1.5, decoded.numel()).to(dtype).view(decoded.shape)
        results += [codes, quantized, decoded, *torch.autograd.grad(decoded, leaf, weights)]
    return results


@case(ANY_NUMBER, (5, 6), (5001, 6))
def fsq(dtype, size):
    levels = (8, 5, 5, 5, 3, 2)
    x = torch.randn(*size, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    quantized, indices = ops.fsq_quantize(x, levels)
    (grad,) = torch.autograd.grad(quantized.sum(), x)
    return [quantized, indices, grad, ops.fsq_dequantize(indices, levels, dtype=dtype)]


@case(ANY_NUMBER, (5, 6), (701, 129))
def affine(dtype, size):
    x = torch.randn(*size, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for bits in (4, 8):
        packed, scale, offset = ops.affine_quantize(x, bits)
        results += [
            packed,
            scale,
            offset,
            ops.affine_dequantize(packed, scale, offset, bits, size=size[1], dtype=dtype),
        ]
    return results


# --- ops with the same bits on the same number of threads -----------------------------------------------------------


@case(SAME_NUMBER, ((61,), 33, 17, 5), ((5, 131), 129, 257, 65))
def bottleneck_project(dtype, size):
    inputs = bottleneck_cases.cast(bottleneck_cases.projection(*size), dtype)
    return evaluate(ops.bottleneck_project, inputs, range(5))


@case(SAME_NUMBER, (2, 7, 3, 5, 4, [7, 3]), (5, 131, 31, 257, 129, [0, 131, 1, 66, 13]))
def normalized_reconstruction_loss(dtype, size):
    inputs = bottleneck_cases.cast(bottleneck_cases.loss_inputs(*size), dtype)
    return evaluate(ops.normalized_reconstruction_loss, inputs, [0, 2, 3, 4, 5])


@case(
    SAME_NUMBER,
    time_relation_cases.Case(1, 61, 8, 20),
    time_relation_cases.Case(2, 301, 32, 71, lengths=(301, 163)),
    time_relation_cases.Case(1, 1101, 8, 24, window=151),
    time_relation_cases.Case(5, 131, 16, 48, lengths=(131, 0, 7, 131, 60)),
)
def time_relation(dtype, size):
    low, high, lengths = size.make(dtype)
    results = [ops.gram_energy(high, lengths, size.window)]
    for algorithm in size.algorithms:
        results += time_relation_cases.run(low, high, lengths, size.window, "native", algorithm=algorithm)
    return results


# --- the tests ------------------------------------------------------------------------------------------------------


def assert_same_bits(expected, results, where):
    for index, (one, other) in enumerate(zip(expected, results, strict=True)):
        bits = [tensor.detach().reshape(-1).contiguous().view(torch.uint8) for tensor in (one, other)]
        assert torch.equal(*bits), f"{where}: result {index} is not the same bits"


@pytest.mark.parametrize(("run", "dtype"), ANY_NUMBER)
def test_the_same_bits_on_any_number_of_threads(run, dtype):
    first = None
    for count in (*THREADS, 1):
        with on_threads(count):
            values = run()
        first = first or values
        assert_same_bits(first, values, f"{count} threads")


@pytest.mark.parametrize(("run", "dtype"), SAME_NUMBER)
def test_the_same_bits_on_the_same_number_of_threads(run, dtype):
    first = None
    for count in THREADS:
        with on_threads(count):
            values = run()
            for _ in range(2):
                assert_same_bits(values, run(), f"{count} threads")
        first = first or values
        for one, other in zip(first, values, strict=True):
            scale = one.abs().max().double()
            difference = (one.double() - other.double()).abs().max()
            assert difference <= 64 * torch.finfo(dtype).eps * scale, f"{count} threads: {difference / scale:.1e}"
