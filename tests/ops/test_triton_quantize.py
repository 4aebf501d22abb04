"""The Triton kernels of the quantize family: in Triton's interpreter, or on a GPU where there is one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext import ops, use_backend
from losatok_ext.triton_kernels import launch, quantize
from ops.quantize_cases import (
    AFFINE_EXTREMES,
    HARD,
    LEVELS,
    assert_chain,
    assert_decides,
    assert_nearest,
    rows_and_codebooks,
    rows_and_codes,
    three_bad_rows,
)
from ops.triton_cases import DTYPES, fill_with_nan, needs_working_triton

pytestmark = needs_working_triton


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    fill_with_nan(monkeypatch)
    with use_backend("triton"):
        yield


# --- nearest codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        ((33,), 35, 5),  # two float16 to a number, and codes that no tile divides
        ((2, 10), 48, 128),
        ((20,), 40, 1),
        ((2, 2, 5), 7, 16),  # too few codes for products
        ((3,), 70, 33),  # too few rows
        ((17,), 33, 256),
        ((0,), 5, 8),
        ((2, 0), 5, 8),
        ((), 9, 3),
    ],
    ids=str,
)
def test_chooses_the_least_distance(case, dtype, device):
    x, codebook = (t.to(device) for t in rows_and_codes(*case, dtype))
    indices, distance = ops.vq_nearest(x, codebook)
    assert distance.dtype == torch.float32
    assert_nearest(x, codebook, indices, distance)


@pytest.mark.parametrize("features", [300, 1100])
def test_wide_rows(features, device):
    """Smaller tiles; and past what fits the chip, differences alone."""
    x, codebook = (t.to(device) for t in rows_and_codes((18,), 20, features))
    assert_nearest(x, codebook, *ops.vq_nearest(x, codebook))


@pytest.mark.parametrize("name", HARD)
def test_hard_cases(name, device):
    x, codebook = (t.to(device) for t in HARD[name]())
    assert_decides(ops.vq_nearest, x, codebook)


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.tuples(st.integers(17, 40), st.integers(8, 50), st.integers(1, 40)),
    shift=st.sampled_from([0, 300]),
    seed=st.integers(0, 2**31),
)
def test_joint_translation_changes_no_index(sizes, shift, seed):
    # Small whole numbers: every distance is exact, and ties abound.
    rows, codes, features = sizes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (rows, features), generator=generator).float().to(device)
    codebook = torch.randint(-4, 5, (codes, features), generator=generator).float().to(device)
    with use_backend("triton"):
        indices, distance = ops.vq_nearest(x + shift, codebook + shift)
    with use_backend("reference"):
        expected = ops.vq_nearest(x, codebook)
    assert torch.equal(indices, expected[0])
    assert torch.equal(distance, expected[1])


def test_splits_change_no_bit(device, monkeypatch):
    x, codebook = (t.to(device) for t in rows_and_codes((20,), 300, 12))
    codebook[0], codebook[70:140] = torch.nan, torch.inf  # a split may hold nothing finite
    x[0] = torch.nan
    results = []
    for processors in (1, 8):
        monkeypatch.setattr(launch, "multiprocessors", lambda device, n=processors: n)
        results.append(ops.vq_nearest(x, codebook))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=0, equal_nan=True)
    assert_nearest(x[1:], codebook.nan_to_num(1e15, 1e15), results[0][0][1:], results[0][1][1:])


def test_fast_stays_within_its_bound(device):
    x, codebook = (t.to(device) for t in rows_and_codes((40,), 90, 96, shift=5.0))
    indices, distance = ops.vq_nearest(x, codebook, precision="fast")
    centre = codebook.mean(0)
    loss = 2.0**-5 * (x - centre).norm(dim=-1) * (codebook - centre).norm(dim=-1).max()
    assert_nearest(x, codebook, indices, distance, slack=loss.double())


@pytest.mark.parametrize("rows", [4, 10])
def test_nothing_past_a_length_matters(rows, device):
    x, codebook = (t.to(device) for t in rows_and_codes((3, rows), 20, 12))
    lengths = torch.tensor([rows, 0, 3], device=device)
    padded = x.clone()
    padded[1], padded[2, 3:] = torch.nan, torch.inf
    leaf, codes = padded.requires_grad_(), codebook.clone().requires_grad_()
    indices, distance = ops.vq_nearest(leaf, codes, lengths)
    distance.sum().backward()
    alone, alone_codes = torch.cat([x[0], x[2, :3]]).requires_grad_(), codebook.clone().requires_grad_()
    alone_indices, alone_distance = ops.vq_nearest(alone, alone_codes)
    alone_distance.sum().backward()
    assert torch.equal(torch.cat([indices[0], indices[2, :3]]), alone_indices)
    assert torch.equal(torch.cat([distance[0], distance[2, :3]]), alone_distance)
    assert (indices[1] == -1).all()
    assert (indices[2, 3:] == -1).all()
    assert (distance[1] == 0).all()
    assert torch.equal(torch.cat([leaf.grad[0], leaf.grad[2, :3]]), alone.grad)
    assert (leaf.grad[1] == 0).all()
    assert (leaf.grad[2, 3:] == 0).all()
    torch.testing.assert_close(codes.grad, alone_codes.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype, device):
    x, codebook = (t.to(device) for t in rows_and_codes((3, 30), 9, 140, dtype))
    weights = torch.randn(3, 30, dtype=torch.float64, device=device)
    results = {}
    for name, kind in (("ours", dtype), ("theirs", dtype), ("exact", torch.float64)):
        leaves = x.to(kind).requires_grad_(), codebook.to(kind).requires_grad_()
        with use_backend("triton" if name == "ours" else "reference"):
            _, distance = ops.vq_nearest(*leaves)
        results[name] = torch.autograd.grad((distance * weights.to(distance.dtype)).sum(), leaves)
    for ours, theirs, exact in zip(results["ours"], results["theirs"], results["exact"], strict=True):
        assert ours.dtype == dtype
        assert_within_budget(ours, theirs, exact, factor=GRADIENT_FACTOR)


def test_codes_that_nobody_chose_get_zeros_and_one_that_all_chose_its_sum(device):
    grad, codebooks = torch.randn(100, 20, device=device), torch.zeros(1, 5, 20, device=device)
    codes = torch.full((100, 1), 2, device=device)
    sums = torch.ops.losatok_triton.rvq_decode_backward(grad, codes, codebooks)[0]
    torch.testing.assert_close(sums[2], grad.sum(0))
    assert (sums[torch.arange(5) != 2] == 0).all()


def test_half_precision_rows_keep_a_float32_codebook_whole(device):
    codebook = torch.randn(60, 16, device=device) * 1e-3 + 1
    half = (torch.randn(40, 16, device=device) * 1e-3 + 1).half()
    assert_nearest(half, codebook, *ops.vq_nearest(half, codebook))
    found, distance = ops.vq_nearest(codebook, codebook)
    assert torch.equal(found, torch.arange(60, device=device))
    assert (distance == 0).all()


def test_strides_and_offsets(device):
    x, codebook = (t.to(device) for t in rows_and_codes((2, 10), 20, 6))
    expected = ops.vq_nearest(x, codebook)
    wide = torch.full((2, 10, 20), torch.nan, device=device)
    wide[..., 3:15:2] = x
    for view in (x.transpose(0, 1).contiguous().transpose(0, 1), wide[..., 3:15:2]):
        assert all(map(torch.equal, expected, ops.vq_nearest(view, codebook)))
    assert all(map(torch.equal, expected, ops.vq_nearest(x, codebook.T.contiguous().T)))


# --- residual quantization ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", [((2, 10), 4, 33, 40), ((18,), 3, 20, 3), ((5,), 2, 20, 8), ((0,), 2, 5, 8), ((), 2, 9, 3)], ids=str
)
def test_every_stage_chooses_the_nearest_and_decoding_gives_the_sum(case, dtype, device):
    x, codebooks = (t.to(device) for t in rows_and_codebooks(*case, dtype))
    codes, quantized = ops.rvq_encode(x, codebooks)
    assert codes.shape == (*x.shape[:-1], codebooks.shape[0])
    assert_chain(x, codebooks, codes, quantized)
    assert torch.equal(ops.rvq_decode(codes, codebooks), quantized)
    assert torch.equal(ops.rvq_decode(codes[..., :1], codebooks), codebooks[0][codes[..., 0]])
    assert (ops.rvq_decode(codes[..., :0], codebooks) == 0).all()


def test_one_stage_and_few_rows_are_the_nearest_codes(device):
    x, codebooks = (t.to(device) for t in rows_and_codebooks((20,), 2, 40, 20))
    codes, quantized = ops.rvq_encode(x, codebooks)
    assert torch.equal(codes[:, 0], ops.vq_nearest(x, codebooks[0])[0])
    few, sums = ops.rvq_encode(x[:5], codebooks)  # by differences alone
    assert torch.equal(few, codes[:5])
    assert torch.equal(sums, quantized[:5])


def test_residual_codes_of_padding_and_of_rows_that_are_not_finite(device):
    x, codebooks = (t.to(device) for t in rows_and_codebooks((3, 9), 3, 12, 7))
    lengths = torch.tensor([9, 0, 4], device=device)
    padded = x.clone()
    padded[1], padded[2, 4:] = torch.nan, torch.inf
    padded[0, 0, 2] = torch.nan
    codebooks.requires_grad_()
    codes, quantized = ops.rvq_encode(padded, codebooks, lengths)
    assert (codes[1] == -1).all()
    assert (codes[2, 4:] == -1).all()
    assert (codes[0, 0] == 0).all()
    assert (quantized[1] == 0).all()
    assert (quantized[2, 4:] == 0).all()
    alone, total = ops.rvq_encode(torch.cat([x[0, 1:], x[2, :4]]), codebooks)
    assert torch.equal(torch.cat([codes[0, 1:], codes[2, :4]]), alone)
    assert torch.equal(torch.cat([quantized[0, 1:], quantized[2, :4]]), total)
    (grad,) = torch.autograd.grad(quantized[:, 1:].square().sum(), codebooks)
    (expected,) = torch.autograd.grad(torch.cat([total[:8], total[9:]]).square().sum(), codebooks)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_to_codebooks(dtype, device):
    _, codebooks = (t.to(device) for t in rows_and_codebooks((0,), 3, 7, 33, dtype))
    codes = torch.randint(-1, 7, (60, 3), device=device)
    weights = torch.randn(60, 33, dtype=torch.float64, device=device)
    results = {}
    for name, kind in (("ours", dtype), ("theirs", dtype), ("exact", torch.float64)):
        leaf = codebooks.to(kind).requires_grad_()
        with use_backend("triton" if name == "ours" else "reference"):
            quantized = ops.rvq_decode(codes[:, :2], leaf)
        results[name] = torch.autograd.grad(quantized, leaf, weights.to(kind))[0]
    assert results["ours"].dtype == dtype
    assert_within_budget(results["ours"], results["theirs"], results["exact"], factor=GRADIENT_FACTOR)


def test_codes_out_of_range_add_nothing(device):
    """On a GPU, where looking would wait for the device; on the CPU the interpreter does as the GPU would."""
    codebooks = torch.randn(2, 5, 4, device=device)
    codes = torch.tensor([[1, 7], [-3, 2], [2**40, -1]], device=device)
    quantized = torch.ops.losatok_triton.rvq_decode_forward(codes, codebooks)
    assert torch.equal(quantized, torch.stack([codebooks[0, 1], codebooks[1, 2], torch.zeros(4, device=device)]))
    grad = torch.ops.losatok_triton.rvq_decode_backward(torch.ones(3, 4, device=device), codes, codebooks)
    assert grad.sum() == 8
    x = torch.randn(1, 3, 4, device=device)
    indices = torch.tensor([[1, 5, 2**40]], device=device)
    grads = torch.ops.losatok_triton.vq_nearest_backward(
        torch.ones(1, 3, device=device), x, codebooks[0], indices, True, True
    )
    assert grads[0][0, 1:].eq(0).all()
    torch.testing.assert_close(grads[1][1], 2 * (codebooks[0, 1] - x[0, 0]))
    assert grads[1].count_nonzero() == 4


# --- levels and affine integers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_levels_match_the_reference(levels, dtype, device):
    x = (torch.randn(2, 150, len(levels)) * 2).to(dtype).to(device)
    lengths = torch.tensor([150, 31], device=device)
    x[1, 31:] = torch.nan
    results = []
    for backend in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        with use_backend(backend):
            quantized, indices = ops.fsq_quantize(leaf, levels, lengths)
            assert torch.equal(ops.fsq_dequantize(indices, levels, dtype), quantized)
        results.append((quantized.detach(), indices, torch.autograd.grad(quantized.float().sum(), leaf)[0]))
    (quantized, indices, grad), (theirs, numbers, expected) = results
    half = torch.tensor([n // 2 for n in levels], device=device)
    steps = ((quantized.double() - theirs.double()) * half).abs()  # a boundary between two ways to round tanh
    assert steps.max() <= 1 + 65536 * torch.finfo(dtype).eps
    if max(levels) <= 8:
        assert (indices != numbers).double().mean() <= 2e-3
    assert (indices[1, 31:] == -1).all()
    assert (quantized[1, 31:] == 0).all()
    assert (grad[1, 31:] == 0).all()
    torch.testing.assert_close(grad, expected, rtol=8 * torch.finfo(dtype).eps, atol=2e-6)


def test_levels_reach_every_code_and_their_ends(device):
    levels = (8, 5, 3)
    every = torch.arange(-1, math.prod(levels) + 1, device=device)
    values = torch.ops.losatok_triton.fsq_dequantize_forward(every, levels, torch.float32)
    with use_backend("reference"):
        assert torch.equal(values[1:-1], ops.fsq_dequantize(every[1:-1], levels))
    assert (values[0] == 0).all()
    assert (values[-1] == 0).all()  # out of range
    x = torch.tensor([[1e30, -1e30, 0.0], [torch.inf, -torch.inf, -0.0], [torch.nan, 0.0, 1e-9]], device=device)
    quantized, indices = ops.fsq_quantize(x, levels)
    assert quantized[:2].tolist() == [[0.75, -1.0, 0.0]] * 2
    assert quantized[2, 0].isnan()
    assert indices.tolist() == [7 + 40, 7 + 40, 4 + 8 * 2 + 40]
    assert (ops.fsq_quantize(torch.zeros(1, 3, device=device), levels)[0] == 0).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(50, 128), (3, 20, 7), (9, 1), (11,), (0, 4), (4, 0)], ids=str)
def test_affine_integers_are_those_of_the_reference(shape, dtype, bits, device):
    x = (torch.randn(shape) * 3 + 1).to(dtype).to(device)
    for view, dim in ((x, -1), (x, 0), (x.mT if x.dim() > 1 else x, -1)):
        stored, theirs = [], []
        for results, backend in ((stored, "triton"), (theirs, "reference")):
            with use_backend(backend):
                results.extend(ops.affine_quantize(view, bits, dim))
                results.append(ops.affine_dequantize(*results, bits, dim, view.shape[dim], dtype))
        assert all(map(torch.equal, stored, theirs))


@pytest.mark.parametrize("bits", [8, 4])
def test_affine_rows_longer_than_a_block(bits, device):
    x = torch.randn(2, 4101, device=device)
    stored = ops.affine_quantize(x, bits)
    back = ops.affine_dequantize(*stored, bits, size=4101)
    with use_backend("reference"):
        assert all(map(torch.equal, stored, ops.affine_quantize(x, bits)))
        assert torch.equal(back, ops.affine_dequantize(*stored, bits, size=4101))


@pytest.mark.parametrize("bits", [8, 4])
def test_affine_extremes(bits, device):
    x = torch.tensor(AFFINE_EXTREMES, device=device)
    packed, scale, offset = ops.affine_quantize(x, bits)
    with use_backend("reference"):
        assert all(map(torch.equal, (packed, scale, offset), ops.affine_quantize(x, bits)))
    bad = three_bad_rows().to(device)
    stored = torch.ops.losatok_triton.affine_quantize_forward(bad, bits)
    back = torch.ops.losatok_triton.affine_dequantize_forward(*stored, bits, 40, torch.float32)
    assert back[:3].isnan().all()
    assert torch.isfinite(back[3:]).all()


# --- all ------------------------------------------------------------------------------------------------------------


def test_repeats_bit_for_bit(device):
    x, codebooks = (t.to(device) for t in rows_and_codebooks((20,), 2, 20, 10))
    results = []
    for _ in range(2):
        codes, quantized = ops.rvq_encode(x, codebooks)
        gradient = torch.ops.losatok_triton.rvq_decode_backward(x, codes, codebooks)
        results.append([codes, quantized, gradient, *ops.vq_nearest(x, codebooks[0])])
    assert all(map(torch.equal, *results))


def test_float64_is_refused_with_a_cure(device):
    x = torch.randn(4, 3, dtype=torch.float64, device=device)
    cure = r"float32.*use_backend\('reference'\)"
    for call in (
        lambda: ops.vq_nearest(x, x),
        lambda: ops.rvq_encode(x, x[None]),
        lambda: ops.rvq_decode(torch.zeros(4, 1, dtype=torch.int64, device=device), x[None]),
        lambda: ops.fsq_quantize(x, (4, 4, 4)),
        lambda: ops.fsq_dequantize(torch.zeros(4, dtype=torch.int64, device=device), (4, 4), torch.float64),
        lambda: ops.affine_quantize(x),
        lambda: ops.affine_dequantize(*ops.affine_quantize(x.float()), dtype=torch.float64),
    ):
        with pytest.raises(TypeError, match=cure):
            call()


def test_every_width_has_tiles_on_every_kind_of_device():
    for kind in launch.KINDS:
        for width in (128, 256, 512, quantize.PRODUCT_WIDTH):
            tiles = quantize.SEARCH[kind, width]
            assert tiles["BLOCK_N"] % tiles["LANES"] == 0
