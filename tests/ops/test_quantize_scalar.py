"""Finite scalar quantization and affine integers: levels, digits, straight-through gradients, error bounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import losatok_ext
from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext import ops
from losatok_ext.ops.reference import quantize as reference
from ops.opcheck import opchecked
from ops.quantize_cases import DTYPES, LEVELS

BACKENDS = ["native", "reference"]


def eps(dtype):
    return torch.finfo(dtype).eps


# --- finite scalar quantization -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_fsq_matches_the_reference(levels, dtype):
    x = (torch.randn(7, 61, len(levels)) * 2).to(dtype)
    quantized, indices = ops.fsq_quantize(x, levels)
    assert quantized.dtype == dtype
    assert quantized.shape == x.shape
    assert indices.shape == (7, 61)
    assert 0 <= indices.min() <= indices.max() < math.prod(levels)
    with losatok_ext.use_backend("reference"):
        theirs, numbers = ops.fsq_quantize(x, levels)
    # A rounding boundary may fall between two ways to round tanh: then neighbours, and rarely. 65536 levels lie so
    # close that float32 cannot tell them apart near the ends.
    half = torch.tensor([n // 2 for n in levels])
    steps = ((quantized.double() - theirs.double()) * half).abs()
    assert steps.max() <= 1 + 65536 * eps(dtype)
    if max(levels) <= 8:
        assert (indices != numbers).double().mean() <= 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_fsq_round_trip(levels, dtype, backend):
    x = (torch.randn(200, len(levels)) * 2).to(dtype)
    with losatok_ext.use_backend(backend):
        quantized, indices = ops.fsq_quantize(x, levels)
        assert torch.equal(ops.fsq_dequantize(indices, levels, dtype), quantized)
    assert quantized.abs().max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (4, 3), (2, 2, 2), (7,)], ids=str)
def test_fsq_reaches_every_code_once(levels, backend):
    every = torch.arange(math.prod(levels))
    with losatok_ext.use_backend(backend):
        values = ops.fsq_dequantize(every, levels, torch.float64)
        assert len(values.unique(dim=0)) == len(every)
        # The x whose bound is exactly that level, by the inverse of the definition.
        half_range, offset, shift = reference.fsq_constants(levels, torch.float64, values.device)
        half_width = torch.tensor([n // 2 for n in levels])
        x = torch.atanh((values * half_width + offset) / half_range) - shift
        quantized, indices = ops.fsq_quantize(x, levels)
    assert torch.equal(indices, every)
    assert torch.equal(quantized, values)
    assert ops.fsq_quantize(torch.zeros(1, len(levels)), levels)[0].eq(0).all()


def test_fsq_digits_are_mixed_radix_with_the_first_least():
    values = ops.fsq_dequantize(torch.tensor([0, 1, 8, 8 * 5]), (8, 5, 3))
    expected = torch.tensor([[-1, -1, -1], [-0.75, -1, -1], [-1, -0.5, -1], [-1, -1, 0]])
    assert torch.equal(values, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fsq_ends_and_values_that_are_not_finite(backend):
    x = torch.tensor([[1e30, -1e30], [torch.inf, -torch.inf], [torch.nan, 0.0]])
    with losatok_ext.use_backend(backend):
        quantized, indices = ops.fsq_quantize(x, (8, 5))
    assert quantized[:2].tolist() == [[0.75, -1.0]] * 2
    assert quantized[2, 0].isnan()
    assert quantized[2, 1] == 0
    assert indices.tolist() == [7, 7, 4 + 8 * 2]


def test_fsq_gradcheck_of_the_bound():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reference.fsq_bound(x, (8, 5, 2, 3)), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fsq_gradient_is_that_of_the_bound(dtype):
    levels = (8, 5, 2, 3)
    x, weights = torch.randn(3, 50, 4).to(dtype), torch.randn(3, 50, 4, dtype=torch.float64)
    grads = {}
    for name, kind in (("ours", dtype), ("theirs", dtype), ("exact", torch.float64)):
        leaf = x.to(kind).requires_grad_()
        with losatok_ext.use_backend("native" if name == "ours" else "reference"):
            quantized, indices = ops.fsq_quantize(leaf, levels)
        assert not indices.requires_grad
        (grads[name],) = torch.autograd.grad(quantized, leaf, weights.to(kind))
    assert_within_budget(grads["ours"], grads["theirs"], grads["exact"], factor=GRADIENT_FACTOR)
    leaf = x.double().requires_grad_()
    bound = reference.fsq_bound(leaf, levels) / torch.tensor([n // 2 for n in levels])
    torch.testing.assert_close(grads["exact"], torch.autograd.grad(bound, leaf, weights)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_fsq_nothing_past_a_length_matters(backend):
    levels = (8, 5, 3)
    x = torch.randn(3, 30, 3)
    lengths = torch.tensor([30, 0, 17])
    padded = x.clone()
    padded[1], padded[2, 17:] = torch.nan, torch.inf
    padded.requires_grad_()
    with losatok_ext.use_backend(backend):
        quantized, indices = ops.fsq_quantize(padded, levels, lengths)
        quantized.sum().backward()
        values, numbers = ops.fsq_quantize(x, levels)
        assert torch.equal(ops.fsq_dequantize(indices, levels), quantized)
    for b, n in enumerate(lengths.tolist()):
        assert torch.equal(indices[b, :n], numbers[b, :n])
        assert torch.equal(quantized[b, :n], values[b, :n])
        assert (indices[b, n:] == -1).all()
        assert (quantized[b, n:] == 0).all()
        assert (padded.grad[b, n:] == 0).all()
        assert (padded.grad[b, :n] != 0).all()


def test_fsq_agrees_with_vector_quantize_pytorch():
    peers = pytest.importorskip("vector_quantize_pytorch")
    for levels in ([8, 5, 5, 5], [4, 3], [16, 9, 3]):
        x = (torch.randn(4, 500, len(levels)) * 2).requires_grad_()
        quantized, indices = ops.fsq_quantize(x, levels)
        theirs, numbers = peers.FSQ(levels)(x)
        assert (indices != numbers).double().mean() < 1e-3
        same = indices == numbers
        torch.testing.assert_close(quantized[same], theirs[same])
        weights = torch.randn_like(x)
        ours = torch.autograd.grad(quantized, x, weights)[0]
        torch.testing.assert_close(ours, torch.autograd.grad(theirs, x, weights)[0])


@settings(max_examples=60, deadline=None)
@given(
    levels=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    values=st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40),
)
def test_fsq_is_monotone_in_each_dimension(levels, values):
    x = torch.tensor(values).sort().values
    for position in range(len(levels)):
        rows = torch.zeros(len(values), len(levels))
        rows[:, position] = x
        quantized, indices = ops.fsq_quantize(rows, levels)
        assert (quantized[1:, position] >= quantized[:-1, position]).all()
        assert (indices[1:] >= indices[:-1]).all()
        assert torch.equal(ops.fsq_dequantize(indices, levels), quantized)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [-2, 40, 2**50])
def test_fsq_refuses_an_index_out_of_range(index, backend):
    with losatok_ext.use_backend(backend), pytest.raises(ValueError, match=r"indices should lie within -1\.\.39"):
        ops.fsq_dequantize(torch.tensor([0, index]), (8, 5))


# --- affine integers ------------------------------------------------------------------------------------------------


def assert_stored_well(x, bits, dim=-1):
    """The round trip holds its bound, is bit for bit the reference's, and keeps constant slices exactly."""
    size = x.shape[dim]
    packed, scale, offset = ops.affine_quantize(x, bits, dim)
    with losatok_ext.use_backend("reference"):
        theirs = ops.affine_quantize(x, bits, dim)
    assert all(map(torch.equal, (packed, scale, offset), theirs))
    assert packed.dtype == torch.uint8
    assert packed.shape[dim] == (size if bits == 8 else (size + 1) // 2)
    assert packed.is_contiguous()
    back = ops.affine_dequantize(packed, scale, offset, bits, dim, size, x.dtype)
    with losatok_ext.use_backend("reference"):
        same = ops.affine_dequantize(packed, scale, offset, bits, dim, size, x.dtype)
    assert back.shape == x.shape
    assert back.dtype == x.dtype
    if not x.numel():
        return
    exact = x.double()
    if x.dtype == torch.float64:  # the product rounds, or not, by the processor's instructions
        assert ((back - same).abs() <= 4 * eps(x.dtype) * exact.abs().amax(dim, keepdim=True)).all()
    else:
        assert torch.equal(back, same)
    rounding = eps(x.dtype) / 2 * back.double().abs() + torch.finfo(x.dtype).smallest_normal * eps(x.dtype) / 2
    if x.dtype == torch.float64:  # differences and products round too
        rounding = rounding + 4 * eps(x.dtype) * exact.abs().amax(dim, keepdim=True)
    bound = scale.double() / 2 * (1 + 1e-12) + rounding
    assert ((back.double() - exact).abs() <= bound).all()
    constant = (x.amax(dim, keepdim=True) == x.amin(dim, keepdim=True)).expand_as(x)
    assert torch.equal(back[constant], x[constant])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(50, 128), (3, 20, 7), (9, 1), (11,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
def test_affine_round_trip(shape, dtype, bits):
    x = (torch.randn(shape) * 3 + 1).to(dtype)
    for dim in range(-1, x.dim() - 1):
        assert_stored_well(x, bits, dim)
    assert_stored_well(x.mT if x.dim() > 1 else x, bits)


@pytest.mark.parametrize("bits", [8, 4])
def test_affine_extremes(bits):
    for dtype in (torch.float32, torch.float64):
        facts = torch.finfo(dtype)
        top = facts.max if dtype == torch.float32 else facts.max / 4
        tiny = facts.smallest_normal * facts.eps
        rows = [
            [top, -top, 0.0, 1.0],  # in float32 the range overflows
            [tiny, 3 * tiny, 0.0, 5 * tiny],  # the scale underflows
            [5.0, 5.0, 5.0, 5.0],
            [1e10, 1e10 + 1024, 1e10 + 2048, 1e10],
            [-0.0, 0.0, -0.0, 0.0],
            [facts.smallest_normal, facts.smallest_normal * 100, 0.0, -tiny],
        ]
        assert_stored_well(torch.tensor(rows, dtype=dtype), bits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_affine_refuses_values_that_are_not_finite(bad, bits, backend):
    for position in range(0, 40, 13):
        x = torch.randn(20, 40)
        x[7, position] = bad
        with losatok_ext.use_backend(backend), pytest.raises(ValueError, match="x should hold finite values"):
            ops.affine_quantize(x, bits)


def test_affine_dtypes_of_the_result():
    packed, scale, offset = ops.affine_quantize(torch.randn(4, 9))
    exact = ops.affine_dequantize(packed, scale, offset)
    for dtype in DTYPES:
        values = ops.affine_dequantize(packed, scale, offset, dtype=dtype)
        assert values.dtype == dtype
        torch.testing.assert_close(values.float(), exact, rtol=eps(dtype), atol=1e-6)
    packed, scale, offset = ops.affine_quantize(torch.randn(4, 9), bits=4)
    assert ops.affine_dequantize(packed, scale, offset, bits=4).shape == (4, 10)
    assert ops.affine_dequantize(packed, scale, offset, bits=4, size=9).shape == (4, 9)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30),
    bits=st.sampled_from([4, 8]),
)
def test_affine_holds_its_bound_for_any_values(values, bits):
    assert_stored_well(torch.tensor([values, values[::-1]]), bits)


# --- both -----------------------------------------------------------------------------------------------------------


def test_strides_change_no_bit():
    x = torch.randn(5000, 6)
    expected = ops.fsq_quantize(x, (8,) * 6), ops.affine_quantize(x)
    for view in (x, x.T.contiguous().T, torch.cat([x[:1], x])[1:]):
        assert all(map(torch.equal, expected[0], ops.fsq_quantize(view, (8,) * 6)))
        assert all(map(torch.equal, expected[1], ops.affine_quantize(view)))
    parts = [ops.fsq_quantize(part, (8,) * 6)[1] for part in x.split(7)]
    assert torch.equal(torch.cat(parts), expected[0][1])


@opchecked(
    "fsq_quantize_forward",
    "fsq_quantize_backward",
    "fsq_dequantize_forward",
    "affine_quantize_forward",
    "affine_dequantize_forward",
)
def test_raw_ops(dtype, device):
    x = torch.randn(2, 9, 3).to(device, dtype)
    for lengths in (None, torch.tensor([9, 4], device=device)):
        yield "fsq_quantize_forward", (x, (4, 5, 2), lengths)
        yield "fsq_quantize_backward", (x, x, (4, 5, 2), lengths)
    yield "fsq_dequantize_forward", (torch.arange(-1, 39, device=device), (4, 5, 2), dtype)
    for bits in (8, 4):
        yield "affine_quantize_forward", (x[0], bits)
        packed = torch.randint(0, 256, (9, 3 if bits == 8 else 2), dtype=torch.uint8, device=device)
        scale = torch.ones(9, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        yield "affine_dequantize_forward", (packed, scale, scale.clone(), bits, 3, dtype)


def test_compiles_whole_and_once():
    torch._dynamo.reset()

    def both(x):
        quantized, indices = ops.fsq_quantize(x, (8, 5, 3))
        stored = ops.affine_quantize(x, bits=4, dim=1)
        back = ops.affine_dequantize(*stored, bits=4, dim=1, size=x.shape[1])
        return quantized.sum(), indices, ops.fsq_dequantize(indices, (8, 5, 3)), back

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for batch, time in ((6, 20), (4, 31), (2, 7)):  # no two sizes of the first alike, lest they be taken for one
            x = torch.randn(batch, time, 3, requires_grad=True)
            value, *rest = compiled(x)
            (grad,) = torch.autograd.grad(value, x)
            eager, *expected = both(x)
            torch.testing.assert_close(grad, torch.autograd.grad(eager, x)[0])
            assert all(map(torch.equal, rest, expected))


STORED = torch.zeros(4, 6, dtype=torch.uint8), torch.ones(4, 1), torch.ones(4, 1)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        (ops.fsq_quantize, (torch.ones(3, 2), (8, 5, 5)), ValueError, "as many features"),
        (ops.fsq_quantize, (torch.ones(3, 2), ()), ValueError, "at least one dimension"),
        (ops.fsq_quantize, (torch.ones(3, 2), (8, 1)), ValueError, r"within 2\.\.65536, got 1"),
        (ops.fsq_quantize, (torch.ones(3, 2), (8, 5.0)), TypeError, "levels should hold ints"),
        (ops.fsq_quantize, (torch.ones(3, 4), (65536,) * 4), ValueError, r"fewer than 2\^63 codes"),
        (ops.fsq_quantize, (torch.ones(3, 2), (8, 5), torch.ones(3)), ValueError, r"\[B, T, features\] with lengths"),
        (ops.fsq_dequantize, (torch.ones(3), (8, 5)), TypeError, "indices should be int64"),
        (ops.fsq_dequantize, (torch.ones(3).long(), (8, 5), torch.int64), TypeError, "dtype should be one of"),
        (ops.affine_quantize, (torch.ones(3, 2), 5), ValueError, "bits should be 4 or 8"),
        (ops.affine_quantize, (torch.tensor(1.0),), ValueError, "at least one dimension"),
        (ops.affine_quantize, (torch.ones(3, 2), 8, 2), IndexError, "ension"),
        (ops.affine_quantize, (torch.ones(3, 2).long(),), TypeError, "x should be one of"),
        (ops.affine_dequantize, (STORED[0].long(), *STORED[1:]), TypeError, "packed should be a torch.Tensor of uint8"),
        (ops.affine_dequantize, (STORED[0], STORED[1][:, 0], STORED[2]), ValueError, r"scale should have the shape"),
        (ops.affine_dequantize, (STORED[0], STORED[1], STORED[2].double()), TypeError, "offset should have scale's"),
        (ops.affine_dequantize, (*STORED, 8, -1, 5), ValueError, "size should be the number of values"),
        (ops.affine_dequantize, (*STORED, 4, -1, 10), ValueError, "size should be the number of values"),
        (ops.affine_dequantize, (*STORED, 3), ValueError, "bits should be 4 or 8"),
    ],
)
def test_bad_input_is_named(function, arguments, error, words):
    with pytest.raises(error, match=words):
        function(*arguments)
