"""Residual quantization: every stage chooses the nearest code of what is left, and decoding adds up the choices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import losatok_ext
from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext import ops
from losatok_ext.ops.quantize import sums_by_code
from ops.opcheck import opchecked
from ops.quantize_cases import DTYPES, assert_chain, rows_and_codebooks

SHAPES = [  # leading sizes of x, stages Q, codes K, features d
    ((70,), 3, 33, 5),
    ((3, 41), 8, 100, 128),
    ((2, 2, 9), 2, 7, 16),
    ((40,), 1, 1, 1),
    ((17,), 4, 300, 33),
    ((5,), 3, 20, 8),
    ((0,), 2, 5, 8),
    ((), 2, 9, 3),
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_every_stage_chooses_the_nearest(case, dtype, backend):
    x, codebooks = rows_and_codebooks(*case, dtype)
    with losatok_ext.use_backend(backend):
        codes, quantized = ops.rvq_encode(x, codebooks)
    assert codes.shape == (*x.shape[:-1], codebooks.shape[0])
    assert codes.dtype == torch.int64
    assert quantized.shape == x.shape
    assert_chain(x, codebooks, codes, quantized)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_decoding_gives_what_encoding_summed(backend):
    x, codebooks = rows_and_codebooks((2, 200), 8, 64, 24)
    with losatok_ext.use_backend(backend):
        codes, quantized = ops.rvq_encode(x, codebooks)
        assert torch.equal(ops.rvq_decode(codes, codebooks), quantized)
        # Dropped stages: fewer codes, or -1 in their place.
        fewer = ops.rvq_decode(codes[..., :3], codebooks)
        assert torch.equal(fewer, ops.rvq_encode(x, codebooks[:3])[1])
        dropped = codes.clone()
        dropped[..., 3:] = -1
        assert torch.equal(fewer, ops.rvq_decode(dropped, codebooks))
        assert (ops.rvq_decode(codes[..., :0], codebooks) == 0).all()
        middle = ops.rvq_decode(torch.tensor([[-1, 5, -1]]), codebooks)
        assert torch.equal(middle, codebooks[1, 5:6])
    assert torch.equal(ops.rvq_decode(codes[..., :1].int(), codebooks), codebooks[0][codes[..., 0]])


def test_one_stage_is_the_nearest_code():
    x, codebooks = rows_and_codebooks((300,), 1, 90, 20)
    codes, quantized = ops.rvq_encode(x, codebooks)
    assert torch.equal(codes[:, 0], ops.vq_nearest(x, codebooks[0])[0])
    assert torch.equal(quantized, codebooks[0][codes[:, 0]])


def test_few_rows_and_many_rows_agree_bit_for_bit():
    x, codebooks = rows_and_codebooks((333,), 5, 200, 40)
    whole = ops.rvq_encode(x, codebooks)
    parts = [ops.rvq_encode(part, codebooks) for part in x.split(11)]
    assert torch.equal(whole[0], torch.cat([p[0] for p in parts]))
    assert torch.equal(whole[1], torch.cat([p[1] for p in parts]))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nothing_past_a_length_matters(backend):
    x, codebooks = rows_and_codebooks((3, 30), 3, 25, 12)
    lengths = torch.tensor([30, 0, 17])
    padded = x.clone()
    padded[1], padded[2, 17:] = torch.nan, torch.inf
    codebooks.requires_grad_()
    with losatok_ext.use_backend(backend):
        codes, quantized = ops.rvq_encode(padded, codebooks, lengths)
        (grad,) = torch.autograd.grad(quantized.square().sum(), codebooks)
        alone, total = ops.rvq_encode(torch.cat([x[0], x[2, :17]]), codebooks)
        (expected,) = torch.autograd.grad(total.square().sum(), codebooks)
        assert torch.equal(ops.rvq_decode(codes, codebooks), quantized)
    assert torch.equal(torch.cat([codes[0], codes[2, :17]]), alone)
    assert torch.equal(torch.cat([quantized[0], quantized[2, :17]]), total)
    assert (codes[1] == -1).all()
    assert (codes[2, 17:] == -1).all()
    assert (quantized[1] == 0).all()
    assert (quantized[2, 17:] == 0).all()
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("rows", [4, 100])
def test_rows_that_are_not_finite_get_code_zero(rows):
    x, codebooks = rows_and_codebooks((rows,), 3, 40, 8)
    x[0, 3], x[1, 2] = torch.nan, torch.inf
    for backend in ("native", "reference"):
        with losatok_ext.use_backend(backend):
            codes, quantized = ops.rvq_encode(x, codebooks)
        assert (codes[:2] == 0).all()
        assert torch.isfinite(quantized).all()
        assert_chain(x[2:], codebooks, codes[2:], quantized[2:])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradcheck(backend):
    x, codebooks = rows_and_codebooks((2, 5), 3, 4, 3, torch.float64)
    codebooks.requires_grad_()
    lengths = torch.tensor([5, 3])
    with losatok_ext.use_backend(backend):
        codes, _ = ops.rvq_encode(x, codebooks)
        codes[0, 0, 1] = -1
        assert torch.autograd.gradcheck(lambda c: ops.rvq_encode(x, c, lengths)[1], codebooks)
        assert torch.autograd.gradcheck(lambda c: ops.rvq_decode(codes[..., :2], c), codebooks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype):
    x, codebooks = rows_and_codebooks((400,), 3, 10, 33, dtype)
    codes, _ = ops.rvq_encode(x, codebooks)
    weights = torch.randn(400, 33, dtype=torch.float64)
    results = {}
    for name, kind in (("ours", dtype), ("theirs", dtype), ("exact", torch.float64)):
        leaf = codebooks.to(kind).requires_grad_()
        with losatok_ext.use_backend("native" if name == "ours" else "reference"):
            quantized = ops.rvq_decode(codes, leaf)
        results[name] = torch.autograd.grad(quantized, leaf, weights.to(kind))[0]
    assert results["ours"].dtype == dtype
    assert_within_budget(results["ours"], results["theirs"], results["exact"], factor=GRADIENT_FACTOR)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_by_code(dtype, backend):
    rows, codes = torch.randn(3000, 33, dtype=dtype), torch.randint(-1, 20, (3000,))
    rows[codes == -1] = torch.nan
    with losatok_ext.use_backend(backend):
        sums = sums_by_code(rows, codes, 25)
        assert torch.equal(sums, sums_by_code(rows, codes, 25))
        assert (sums_by_code(rows[:0], codes[:0], 4) == 0).all()
    assert sums.dtype == dtype
    one_hot = (codes[:, None] == torch.arange(25)).double()
    expected = one_hot.mT @ rows.double().nan_to_num()
    torch.testing.assert_close(sums.double(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-5)


def test_no_gradient_to_x():
    x, codebooks = rows_and_codebooks((30,), 2, 10, 4)
    x.requires_grad_()
    for backend in ("native", "reference"):
        with losatok_ext.use_backend(backend):
            assert not ops.rvq_encode(x, codebooks)[1].requires_grad
            codes, quantized = ops.rvq_encode(x, codebooks.clone().requires_grad_())
            assert not codes.requires_grad
            quantized.sum().backward()
            assert x.grad is None


def test_strides():
    x, codebooks = rows_and_codebooks((4, 25), 3, 40, 12)
    expected = ops.rvq_encode(x, codebooks)
    assert all(map(torch.equal, expected, ops.rvq_encode(x.mT.contiguous().mT, codebooks)))
    assert all(map(torch.equal, expected, ops.rvq_encode(x, codebooks.mT.contiguous().mT)))
    codes = expected[0].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert torch.equal(ops.rvq_decode(codes, codebooks.mT.contiguous().mT), expected[1])


@opchecked("rvq_encode_forward", "rvq_decode_forward", "rvq_decode_backward", dtypes=(torch.float32, torch.bfloat16))
def test_raw_ops(dtype, device):
    x, codebooks = (t.to(device) for t in rows_and_codebooks((2, 9), 3, 10, 4, dtype))
    for lengths in (None, torch.tensor([9, 4], device=device)):
        yield "rvq_encode_forward", (x, codebooks, lengths, "exact")
    yield "rvq_encode_forward", (x, codebooks, None, "fast")
    codes = torch.randint(-1, 10, (18, 3), device=device)
    yield "rvq_decode_forward", (codes, codebooks)
    yield "rvq_decode_backward", (x.flatten(0, 1), codes, codebooks)


def test_compiles_whole_and_once():
    torch._dynamo.reset()

    def loss(x, codebooks, lengths):
        codes, quantized = ops.rvq_encode(x, codebooks, lengths)
        return codes, quantized.square().sum() + ops.rvq_decode(codes, codebooks).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for batch, time in ((6, 20), (4, 31), (2, 7)):  # no two sizes of the first alike, lest they be taken for one
            x, codebooks = rows_and_codebooks((batch, time), 3, 30, 8)
            codebooks.requires_grad_()
            lengths = torch.full((batch,), time - 1)
            codes, value = compiled(x, codebooks, lengths)
            (grad,) = torch.autograd.grad(value, codebooks)
            expected, eager = loss(x, codebooks, lengths)
            assert torch.equal(codes, expected)
            torch.testing.assert_close(value, eager)
            torch.testing.assert_close(grad, torch.autograd.grad(eager, codebooks)[0])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("code", [-2, 10, 2**40])
def test_a_code_out_of_range_is_refused(code, backend):
    codes = torch.tensor([[0, 3], [code, 1]])
    with losatok_ext.use_backend(backend), pytest.raises(ValueError, match=r"codes should lie within -1\.\.9"):
        ops.rvq_decode(codes, torch.ones(2, 10, 4))


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        (ops.rvq_encode, (torch.ones(4, 8), torch.ones(5, 8)), ValueError, r"codebooks should have shape \[Q, K"),
        (ops.rvq_encode, (torch.ones(4, 8), torch.ones(0, 5, 8)), ValueError, "at least one code"),
        (ops.rvq_encode, (torch.ones(4, 8), torch.ones(2, 5, 8), None, "x"), ValueError, "precision should be"),
        (ops.rvq_decode, (torch.ones(4, 2), torch.ones(2, 5, 8)), TypeError, "codes should be int64"),
        (ops.rvq_decode, ([1], torch.ones(2, 5, 8)), TypeError, "codes should be a torch.Tensor"),
        (ops.rvq_decode, (torch.zeros(4, 3, dtype=torch.int64), torch.ones(2, 5, 8)), ValueError, "q <= Q = 2"),
        (ops.rvq_decode, (torch.tensor(1), torch.ones(2, 5, 8)), ValueError, "q <= Q = 2"),
        (ops.rvq_decode, (torch.zeros(4, 2, dtype=torch.int64), torch.ones(5, 8)), ValueError, "codebooks should have"),
    ],
)
def test_bad_input_is_named(function, arguments, error, words):
    with pytest.raises(error, match=words):
        function(*arguments)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 80),
    stages=st.integers(1, 5),
    codes=st.integers(1, 50),
    features=st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
def test_the_chain_holds_for_any_size(rows, stages, codes, features, seed):
    x, codebooks = rows_and_codebooks((rows,), stages, codes, features, seed=seed)
    chosen, quantized = ops.rvq_encode(x, codebooks)
    assert_chain(x, codebooks, chosen, quantized)
    assert torch.equal(ops.rvq_decode(chosen, codebooks), quantized)
    more = torch.cat([codebooks, torch.zeros(1, codes, features)])  # a stage with nothing to add changes nothing
    assert torch.equal(ops.rvq_encode(x, more)[1], quantized)
