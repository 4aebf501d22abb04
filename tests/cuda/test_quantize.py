"""The codebook CUDA kernels and bindings, executed on the CPU by the host shim, against the reference."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext.ops.reference import quantize as reference
from ops.quantize_cases import (
    HARD,
    assert_chain,
    assert_decides,
    assert_nearest,
    rows_and_codebooks,
    rows_and_codes,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def batch(x):
    return x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])


@pytest.fixture
def nearest(ops):
    """``vq_nearest`` of rows [N, d] by the CUDA kernels."""

    def call(x, codebook):
        indices, distance = ops("vq_nearest_forward", x[None], codebook, None, "exact")
        return indices[0], distance[0]

    return call


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_nearest_in_every_order_of_threads_with_nan_past_lengths(ops, in_every_order, dtype, precision):
    x, codebook = rows_and_codes((3, 30), 150, 70, dtype)
    lengths = torch.tensor([30, 17, 0])
    for b, length in enumerate(lengths):
        x[b, length:] = float("nan")
    indices, distance = in_every_order(lambda: ops("vq_nearest_forward", x, codebook, lengths, precision))
    for b, length in enumerate(lengths):
        centre, own = codebook.float().mean(0), x[b, :length]
        slack = 2.0**-5 * (own.float() - centre).norm(dim=-1) * (codebook.float() - centre).norm(dim=-1).max()
        assert_nearest(
            own, codebook, indices[b, :length], distance[b, :length], 0.0 if precision == "exact" else slack.double()
        )
        assert (indices[b, length:] == -1).all()
        assert (distance[b, length:] == 0).all()


def test_few_rows_in_every_order_of_threads(ops, in_every_order):
    x, codebooks = rows_and_codebooks((2, 4), 3, 70, 40)
    lengths = torch.tensor([4, 1])
    x[1, 1:] = float("nan")
    indices, distance = in_every_order(lambda: ops("vq_nearest_forward", x, codebooks[0], lengths, "exact"))
    assert_nearest(x[0], codebooks[0], indices[0], distance[0])
    codes, quantized = in_every_order(lambda: ops("rvq_encode_forward", x, codebooks, lengths, "exact"))
    assert_chain(x[0], codebooks, codes[0], quantized[0])
    assert (codes[1, 1:] == -1).all()
    assert (quantized[1, 1:] == 0).all()


def test_few_features_in_every_order_of_threads(ops, in_every_order):
    """A number is two float16: lanes read what other lanes wrote of a row."""
    x, codebooks = rows_and_codebooks((2, 20), 3, 70, 12)
    indices, distance = in_every_order(lambda: ops("vq_nearest_forward", x, codebooks[0], None, "exact"))
    assert_nearest(x, codebooks[0], indices, distance)
    codes, quantized = in_every_order(lambda: ops("rvq_encode_forward", x, codebooks, None, "exact"))
    assert_chain(x, codebooks, codes, quantized)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "codes", "features"),
    [
        (70, 33, 5),  # two float16 to a number, and codes that no tile divides
        (123, 100, 128),
        (65, 257, 129),  # the wide tiles
        (33, 70, 512),
        (18, 20, 600),  # wider than they are: differences alone
        (40, 64, 1),
        (18, 7, 16),  # too few codes for products
        (20, 1, 4),
        (1, 300, 8),
        (0, 5, 8),
    ],
)
def test_any_sizes(ops, nearest, dtype, rows, codes, features):
    x, codebook = rows_and_codes((rows,), codes, features, dtype)
    assert_nearest(x, codebook, *nearest(x, codebook))


@pytest.mark.parametrize("name", HARD)
def test_hard_cases(nearest, name):
    assert_decides(nearest, *HARD[name]())


def test_close_codes_in_every_order_of_threads(ops, in_every_order):
    x, codebook = HARD["close codes in one lane"]()
    indices, distance = in_every_order(lambda: ops("vq_nearest_forward", x[None], codebook, None, "exact"))
    assert_nearest(x, codebook, indices[0], distance[0])


def test_many_codes_are_split_and_a_split_may_hold_nothing_finite(ops, nearest):
    """The shim has 4 multiprocessors: 70 rows are split 4 ways over 20 tiles of codes, 40 rows 5 ways, 3 rows 10."""
    x, codebook = rows_and_codes((70,), 20 * 64, 12)
    codebook[0], codebook[3 * 64 : 10 * 64] = torch.nan, torch.inf
    x[0] = torch.nan
    indices, distance = nearest(x, codebook)
    assert indices[0] == 0
    assert distance[0].isnan()
    assert_nearest(x[1:], codebook.nan_to_num(1e15, 1e15), indices[1:], distance[1:])
    for rows in (40, 3):
        some, as_near = nearest(x[:rows], codebook)
        assert some.equal(indices[:rows])
        torch.testing.assert_close(as_near, distance[:rows], rtol=0, atol=0, equal_nan=True)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(st.integers(1, 80), st.integers(1, 150), st.integers(1, 140)),
    shift=st.sampled_from([0, 300]),
    seed=st.integers(0, 2**31),
)
def test_joint_translation_changes_no_index(nearest, sizes, shift, seed):
    # Small whole numbers: every distance is exact, and ties abound.
    rows, codes, features = sizes
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (rows, features), generator=generator).float()
    codebook = torch.randint(-4, 5, (codes, features), generator=generator).float()
    expected, least = reference.vq_nearest(x, codebook)
    indices, distance = nearest(x + shift, codebook + shift)
    assert indices.equal(expected)
    assert distance.equal(least)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixed_dtypes(nearest, dtype):
    x, codebook = rows_and_codes((40,), 60, 16)
    half = (x * 1e-3 + 1).to(dtype)
    codebook = codebook * 1e-3 + 1
    assert_nearest(half, codebook, *nearest(half, codebook))
    found, distance = nearest(codebook, codebook)
    assert found.equal(torch.arange(60))
    assert (distance == 0).all()


def test_strided_and_offset_inputs(ops):
    x, codebook = rows_and_codes((4, 25), 40, 12)
    expected = ops("vq_nearest_forward", x, codebook, None, "exact")
    wide = torch.full((4, 25, 40), torch.nan)
    wide[..., 3:27:2] = x
    views = [
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        wide[..., 3:27:2],
        torch.cat([torch.full((1, 25, 12), torch.nan), x])[1:],
    ]
    for view in views:
        found = ops("vq_nearest_forward", view, codebook.T.contiguous().T, None, "exact")
        assert all(a.equal(b) for a, b in zip(expected, found, strict=True))
        grads = [ops("vq_nearest_backward", expected[1], v, codebook, expected[0], True, True) for v in (x, view)]
        assert all(a.equal(b) for a, b in zip(*grads, strict=True))
    books = codebook.view(2, 20, 12)
    codes, quantized = ops("rvq_encode_forward", x, books, None, "exact")
    for view in views:
        found = ops("rvq_encode_forward", view, books.mT.contiguous().mT, None, "exact")
        assert found[0].equal(codes)
        assert found[1].equal(quantized)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_in_every_order_of_threads(ops, in_every_order, dtype):
    x, codebook = rows_and_codes((3, 60), 9, 45, dtype)
    lengths = torch.tensor([60, 31, 0])
    indices, distance = ops("vq_nearest_forward", x, codebook, lengths, "exact")
    x[1, 31:], x[2] = float("nan"), float("nan")
    weights = torch.randn_like(distance)
    got = in_every_order(lambda: ops("vq_nearest_backward", weights, x, codebook, indices, True, True))

    def define(kind):
        leaves = x.nan_to_num().to(kind).requires_grad_(), codebook.to(kind).requires_grad_()
        _, distance = reference.vq_nearest(*leaves, lengths)
        return torch.autograd.grad((distance * weights).sum(), leaves)

    for mine, theirs, exact in zip(got, define(dtype), define(torch.float64), strict=True):
        assert mine.dtype == dtype
        assert_within_budget(mine, theirs, exact, factor=GRADIENT_FACTOR)
    assert (got[0][1, 31:] == 0).all()
    for need in ((True, False), (False, True), (False, False)):
        some = ops("vq_nearest_backward", weights, x, codebook, indices, *need)
        assert all(s.equal(g) if n else s.shape == (0,) for s, g, n in zip(some, got, need, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_in_every_order_of_threads_with_nan_past_lengths(ops, in_every_order, dtype):
    x, codebooks = rows_and_codebooks((3, 30), 3, 80, 36, dtype)
    lengths = torch.tensor([30, 17, 0])
    for b, length in enumerate(lengths):
        x[b, length:] = float("nan")
    codes, quantized = in_every_order(lambda: ops("rvq_encode_forward", x, codebooks, lengths, "exact"))
    for b, length in enumerate(lengths):
        assert_chain(x[b, :length], codebooks, codes[b, :length], quantized[b, :length])
        assert (codes[b, length:] == -1).all()
        assert (quantized[b, length:] == 0).all()
    rows = codes.flatten(0, 1)
    (decoded,) = in_every_order(lambda: [ops("rvq_decode_forward", rows, codebooks)])
    assert decoded.view(x.shape).equal(quantized)
    grad = torch.randn(90, 36)
    (sums,) = in_every_order(lambda: [ops("rvq_decode_backward", grad, rows[:, :2], codebooks)])

    def define(kind):
        leaf = codebooks.to(kind).requires_grad_()
        return torch.autograd.grad(reference.rvq_decode(rows[:, :2], leaf), leaf, grad.to(kind))[0]

    assert sums.dtype == dtype
    assert_within_budget(sums, define(dtype), define(torch.float64), factor=GRADIENT_FACTOR)
    assert (sums[2] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "stages", "codes", "features"),
    [(70, 3, 33, 5), (66, 3, 100, 128), (40, 1, 1, 1), (34, 2, 70, 200), (18, 2, 20, 600), (5, 3, 20, 8), (0, 2, 5, 8)],
)
def test_every_stage_chooses_the_nearest(ops, nearest, dtype, rows, stages, codes, features):
    x, codebooks = rows_and_codebooks((1, rows), stages, codes, features, dtype)
    chosen, quantized = ops("rvq_encode_forward", x, codebooks, None, "exact")
    assert_chain(x, codebooks, chosen, quantized)
    assert nearest(x[0], codebooks[0])[0].equal(chosen[0, :, 0])
    few = [ops("rvq_encode_forward", part, codebooks, None, "exact")[0] for part in x.split(16, dim=1)]
    assert torch.cat(few, dim=1).equal(chosen)


def test_residual_of_rows_that_are_not_finite(ops):
    x, codebooks = rows_and_codebooks((1, 40), 3, 40, 8)
    x[0, 0, 3], x[0, 1, 2] = torch.nan, torch.inf
    for rows in (x, x[:, :4]):
        codes, quantized = ops("rvq_encode_forward", rows, codebooks, None, "exact")
        assert (codes[0, :2] == 0).all()
        assert torch.isfinite(quantized).all()
        assert_chain(rows[0, 2:], codebooks, codes[0, 2:], quantized[0, 2:])


def test_codes_out_of_range_add_nothing(ops):
    codebooks = torch.randn(2, 5, 4)
    codes = torch.tensor([[1, 7], [-3, 2], [2**40, -1]])
    quantized = ops("rvq_decode_forward", codes, codebooks)
    assert quantized.equal(torch.stack([codebooks[0, 1], codebooks[1, 2], torch.zeros(4)]))
    assert ops("rvq_decode_backward", torch.ones(3, 4), codes, codebooks).sum() == 8
    assert ops("rvq_decode_forward", codes[:, :0], codebooks).equal(torch.zeros(3, 4))


def test_lengths_are_clamped_on_the_device(ops):
    x, codebook = rows_and_codes((2, 20), 30, 6)
    results = [ops("vq_nearest_forward", x, codebook, torch.tensor(n), "exact") for n in ([99, -3], [20, 0])]
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_bad_input_is_named(ops):
    x, codebook = rows_and_codes((2, 10), 20, 6)
    with pytest.raises(TypeError, match="x is Double; the CUDA kernels take float32"):
        ops("vq_nearest_forward", x.double(), codebook.double(), None, "exact")
    with pytest.raises(TypeError, match="x and codebook should both be float64 or neither"):
        ops("vq_nearest_forward", x, codebook.double(), None, "exact")
    with pytest.raises(ValueError, match="precision should be exact or fast"):
        ops("rvq_encode_forward", x, codebook[None], None, "rough")
    with pytest.raises(ValueError, match=r"lengths should have shape \[2\]"):
        ops("vq_nearest_forward", x, codebook, torch.tensor([1, 2, 3]), "exact")
    with pytest.raises(ValueError, match="up to 8192 features"):
        ops("vq_nearest_forward", torch.ones(1, 1, 8193), torch.ones(1, 8193), None, "exact")
