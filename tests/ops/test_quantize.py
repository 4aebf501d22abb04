"""Nearest codes: the choice is the least distance, however it was found."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import losatok_ext
from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext import ops
from losatok_ext.ops.reference import quantize as reference
from ops.opcheck import opchecked
from ops.quantize_cases import DTYPES, SHAPES, assert_nearest, distances, rows_and_codes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_chooses_the_least_distance(case, dtype):
    x, codebook = rows_and_codes(*case, dtype)
    indices, distance = ops.vq_nearest(x, codebook)
    assert distance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_nearest(x, codebook, indices, distance)
    with losatok_ext.use_backend("reference"):
        theirs = ops.vq_nearest(x, codebook)
    assert_nearest(x, codebook, *theirs)
    if x.numel():
        exact = distances(x, codebook).min(-1).values
        assert_within_budget(distance, theirs[1], exact)


@pytest.mark.parametrize("shift", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_a_code_finds_itself_far_from_the_origin(shift, spread):
    codebook = torch.randn(500, 64) * spread + shift
    codebook = codebook.unique(dim=0)[torch.randperm(len(codebook.unique(dim=0)))]
    indices, distance = ops.vq_nearest(codebook, codebook)
    assert torch.equal(indices, torch.arange(len(codebook)))
    assert (distance == 0).all()


def test_clusters_that_no_centre_serves():
    # |x|^2 is 10^10 times the distances: products in float32 know nothing of them.
    centres = torch.randn(6, 32) * 1e4
    codebook = (centres[:, None] + torch.randn(6, 40, 32) * 0.1).flatten(0, 1)
    x = (centres[:, None] + torch.randn(6, 50, 32) * 0.1).flatten(0, 1)
    assert_nearest(x, codebook, *ops.vq_nearest(x, codebook))


def test_one_code_far_from_all_others():
    x, codebook = rows_and_codes((200,), 300, 64)
    codebook[17] = 1e6
    assert_nearest(x, codebook, *ops.vq_nearest(x, codebook))


@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e17])
def test_scales_near_the_ends_of_float32(scale):
    x, codebook = rows_and_codes((80,), 90, 24)
    x, codebook = x * scale, codebook * scale
    indices, distance = ops.vq_nearest(x, codebook)
    if scale == 1e-20:  # squares lose their digits below 2^-126: what is left is to choose by them
        with losatok_ext.use_backend("reference"):
            _, theirs = ops.vq_nearest(x, codebook)
        torch.testing.assert_close(distance, theirs, rtol=1e-5, atol=1e-44)
    else:
        assert_nearest(x, codebook, indices, distance)


@pytest.mark.parametrize("rows", [3, 100])
def test_codes_whose_norm_overflows_are_still_found(rows):
    codebook = torch.randn(50, 16) * 1e17
    codebook[::2] += 3e19  # |c|^2 is infinite in float32, distances among them are not
    x = codebook[torch.arange(rows) % 50] * (1 + 1e-3)
    assert_nearest(x, codebook, *ops.vq_nearest(x, codebook))


def test_a_code_just_past_overflow_is_found_by_a_row_just_below():
    direction = torch.ones(16) / 4
    half = torch.randn(15, 16) * 1e18
    half[3] = direction * 2.615e19  # |c|^2 / 2 is 3.42e38
    half[4] = direction * 1e19  # a finite distance away
    codebook = torch.cat([half, -half])  # whose mean is 0
    x = torch.cat([torch.randn(20, 16) * 1e18, direction[None] * 2.59e19])
    assert_nearest(x, codebook, *ops.vq_nearest(x, codebook))


@pytest.mark.parametrize("rows", [1, 40])
def test_the_lowest_index_wins_a_tie(rows):
    x, codebook = rows_and_codes((rows,), 64, 12)
    single, distance = ops.vq_nearest(x, codebook)
    indices, again = ops.vq_nearest(x, torch.cat([codebook, codebook, codebook]))
    assert torch.equal(indices, single)
    assert torch.equal(again, distance)
    zeros, _ = ops.vq_nearest(x, codebook[:1].expand(200, 12))
    assert (zeros == 0).all()
    middle, _ = ops.vq_nearest(torch.zeros(rows, 12), torch.cat([torch.ones(20, 12) * 2, torch.ones(30, 12)]))
    assert (middle == 20).all()


@pytest.mark.parametrize("rows", [4, 100])
def test_rows_that_are_not_finite_get_index_zero(rows):
    x, codebook = rows_and_codes((rows,), 40, 8)
    x[0, 3], x[1, 2], x[2] = torch.nan, torch.inf, 1e30
    for backend in ("native", "reference"):
        with losatok_ext.use_backend(backend):
            indices, distance = ops.vq_nearest(x, codebook)
        assert indices[:3].tolist() == [0, 0, 0]
        assert distance[0].isnan()
        assert (distance[1:3] == torch.inf).all()
        assert_nearest(x[3:], codebook, indices[3:], distance[3:])


@pytest.mark.parametrize("rows", [4, 100])
def test_codes_that_are_not_finite_are_never_chosen(rows):
    x, codebook = rows_and_codes((rows,), 40, 8)
    bad = [0, 5, 39]
    codebook[0, 1], codebook[5] = torch.nan, torch.inf
    codebook[39, 7] = -torch.inf
    indices, distance = ops.vq_nearest(x, codebook)
    good = [k for k in range(40) if k not in bad]
    kept, theirs = ops.vq_nearest(x, codebook[good])
    assert torch.equal(indices, torch.tensor(good)[kept])
    assert torch.equal(distance, theirs)
    indices, distance = ops.vq_nearest(x, torch.full((9, 8), torch.nan))
    assert (indices == 0).all()
    assert distance.isnan().all()


def test_few_rows_and_many_rows_agree_bit_for_bit():
    # Fewer than 16 rows go by differences alone, more by products first: the choice must not tell.
    x, codebook = rows_and_codes((333,), 700, 48)
    whole = ops.vq_nearest(x, codebook)
    parts = [ops.vq_nearest(part, codebook) for part in x.split(11)]
    assert torch.equal(whole[0], torch.cat([p[0] for p in parts]))
    assert torch.equal(whole[1], torch.cat([p[1] for p in parts]))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of mkldnn.flags, whatever it is asked for
def test_the_precision_of_products_changes_no_bit():
    x, codebook = rows_and_codes((500,), 300, 48)
    first = ops.vq_nearest(x, codebook)
    try:
        torch.set_float32_matmul_precision("medium")
        assert all(map(torch.equal, first, ops.vq_nearest(x, codebook)))
        with torch.backends.mkldnn.flags(enabled=False):
            assert all(map(torch.equal, first, ops.vq_nearest(x, codebook)))
    finally:
        torch.set_float32_matmul_precision("highest")


def test_fast_stays_within_its_bound():
    x, codebook = rows_and_codes((400,), 500, 96, shift=5.0)
    indices, distance = ops.vq_nearest(x, codebook, precision="fast")
    centre = codebook.mean(0)
    loss = 2.0**-5 * (x - centre).norm(dim=-1) * (codebook - centre).norm(dim=-1).max()
    assert_nearest(x, codebook, indices, distance, slack=loss)


def test_memory_is_linear_in_rows():
    # [N, K] distances would take 2.1 GB.
    code = """
import resource, torch
from losatok_ext import ops
x, codebook = torch.randn(64_000, 8), torch.randn(8192, 8)
ops.vq_nearest(x[:64], codebook)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.vq_nearest(x, codebook)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 64  # MiB


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_past_a_length_matters(dtype):
    x, codebook = rows_and_codes((3, 30), 50, 12, dtype)
    lengths = torch.tensor([30, 0, 17])
    padded = x.clone()
    padded[1], padded[2, 17:] = torch.nan, torch.inf
    for backend in ("native", "reference"):
        with losatok_ext.use_backend(backend):
            leaf = padded.clone().requires_grad_()
            codes = codebook.clone().requires_grad_()
            indices, distance = ops.vq_nearest(leaf, codes, lengths)
            distance.sum().backward()
            alone = torch.cat([x[0], x[2, :17]]).requires_grad_()
            alone_codes = codebook.clone().requires_grad_()
            alone_indices, alone_distance = ops.vq_nearest(alone, alone_codes)
            alone_distance.sum().backward()
        assert torch.equal(torch.cat([indices[0], indices[2, :17]]), alone_indices)
        assert (indices[1] == -1).all()
        assert (indices[2, 17:] == -1).all()
        assert (distance[1] == 0).all()
        assert (distance[2, 17:] == 0).all()
        assert torch.equal(torch.cat([leaf.grad[0], leaf.grad[2, :17]]), alone.grad)
        assert (leaf.grad[1] == 0).all()
        assert (leaf.grad[2, 17:] == 0).all()
        torch.testing.assert_close(codes.grad, alone_codes.grad)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradcheck(backend):
    x, codebook = rows_and_codes((2, 5), 6, 3, torch.float64)
    x.requires_grad_()
    codebook.requires_grad_()
    lengths = torch.tensor([5, 3])
    with losatok_ext.use_backend(backend):
        assert torch.autograd.gradcheck(lambda x, c: ops.vq_nearest(x, c)[1], (x, codebook))
        assert torch.autograd.gradcheck(lambda x, c: ops.vq_nearest(x, c, lengths)[1], (x, codebook))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype):
    x, codebook = rows_and_codes((300,), 20, 33, dtype)
    weights = torch.randn(300, dtype=torch.float64)
    results = {}
    for name, kind in (("ours", dtype), ("theirs", dtype), ("exact", torch.float64)):
        leaves = x.to(kind).requires_grad_(), codebook.to(kind).requires_grad_()
        with losatok_ext.use_backend("native" if name == "ours" else "reference"):
            _, distance = ops.vq_nearest(*leaves)
        results[name] = torch.autograd.grad((distance * weights.to(distance.dtype)).sum(), leaves)
    for ours, theirs, exact in zip(results["ours"], results["theirs"], results["exact"], strict=True):
        assert ours.dtype == dtype
        assert_within_budget(ours, theirs, exact, factor=GRADIENT_FACTOR)


def test_only_what_needs_a_gradient_gets_one():
    x, codebook = rows_and_codes((30,), 20, 4)
    for leaf in (x, codebook):
        leaf.requires_grad_()
        indices, distance = ops.vq_nearest(x, codebook)
        assert not indices.requires_grad
        distance.sum().backward()
        assert (x.grad is not None) == x.requires_grad
        assert (codebook.grad is not None) == codebook.requires_grad
        leaf.requires_grad_(False)
        leaf.grad = None


def test_mixed_dtypes_keep_a_float32_codebook_whole():
    x, codebook = rows_and_codes((200,), 300, 16)
    codebook = codebook * 1e-3 + 1  # in bfloat16 a few hundred codes would collapse into a handful
    half = (x * 1e-3 + 1).bfloat16()
    indices, distance = ops.vq_nearest(half, codebook)
    assert_nearest(half, codebook, indices, distance)
    found, _ = ops.vq_nearest(codebook, codebook)
    assert torch.equal(found, torch.arange(300))
    codes = codebook.clone().requires_grad_()
    leaf = half.clone().requires_grad_()
    ops.vq_nearest(leaf, codes)[1].sum().backward()
    assert leaf.grad.dtype == torch.bfloat16
    assert codes.grad.dtype == torch.float32


def test_strides_and_offsets():
    x, codebook = rows_and_codes((4, 25), 40, 12)
    expected = ops.vq_nearest(x, codebook)
    wide = torch.full((4, 25, 40), torch.nan)
    wide[..., 3:27:2] = x
    views = {
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "features first": x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "step": wide[..., 3:27:2],
        "offset": torch.cat([torch.full((1, 25, 12), torch.nan), x])[1:],
    }
    for name, view in views.items():
        assert all(map(torch.equal, expected, ops.vq_nearest(view, codebook))), name
    assert all(map(torch.equal, expected, ops.vq_nearest(x, codebook.T.contiguous().T)))
    row = ops.vq_nearest(x[0, :1].expand(50, 12), codebook)
    assert (row[0] == expected[0][0, 0]).all()


@opchecked("vq_nearest_forward", "vq_nearest_backward")
def test_raw_ops(dtype, device):
    x, codebook = (t.to(device) for t in rows_and_codes((2, 9), 10, 4, dtype))
    for lengths in (None, torch.tensor([9, 4], device=device)):
        yield "vq_nearest_forward", (x, codebook, lengths, "exact")
    distance = torch.rand(2, 9).to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    indices = torch.randint(-1, 10, (2, 9), device=device)
    for need in ((True, True), (True, False), (False, True), (False, False)):
        yield "vq_nearest_backward", (distance, x, codebook, indices, *need)


def test_compiles_whole_and_once():
    torch._dynamo.reset()

    def loss(x, codebook, lengths):
        indices, distance = ops.vq_nearest(x, codebook, lengths)
        return indices, distance.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for batch, time in ((3, 20), (4, 31), (2, 7)):
            x, codebook = rows_and_codes((batch, time), 30, 8)
            x.requires_grad_()
            lengths = torch.full((batch,), time - 1)
            indices, value = compiled(x, codebook, lengths)
            (grad,) = torch.autograd.grad(value, x)
            expected, eager = loss(x, codebook, lengths)
            assert torch.equal(indices, expected)
            torch.testing.assert_close(value, eager)
            torch.testing.assert_close(grad, torch.autograd.grad(eager, x)[0])


def test_exports():
    class Nearest(torch.nn.Module):
        def forward(self, x, codebook):
            return ops.vq_nearest(x, codebook)

    x, codebook = rows_and_codes((30,), 20, 4)
    time = torch.export.Dim("time", min=2)
    program = torch.export.export(Nearest(), (x, codebook), dynamic_shapes={"x": {0: time}, "codebook": None})
    longer, _ = rows_and_codes((55,), 20, 4, seed=1)
    assert all(map(torch.equal, program.module()(longer, codebook), ops.vq_nearest(longer, codebook)))


def test_autocast_changes_nothing():
    x, codebook = rows_and_codes((40,), 50, 8)
    expected = ops.vq_nearest(x, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, expected, ops.vq_nearest(x, codebook)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x should be a torch.Tensor"),
        ({"x": torch.ones(4, 8, dtype=torch.int64)}, TypeError, "x should be one of"),
        ({"x": torch.tensor(1.0)}, ValueError, "got a scalar"),
        ({"codebook": torch.ones(8)}, ValueError, r"codebook should have shape \[K, features of x\]"),
        ({"codebook": torch.ones(5, 7)}, ValueError, "codebook should have shape"),
        ({"codebook": torch.ones(0, 8)}, ValueError, "at least one code"),
        ({"codebook": torch.ones(5, 8, dtype=torch.float64)}, TypeError, "both be float64 or neither"),
        ({"precision": "rough"}, ValueError, "precision should be one of 'exact', 'fast'"),
        ({"lengths": torch.tensor([1, 2])}, ValueError, r"x should have shape \[B, T, features\] with lengths"),
        ({"x": torch.ones(2, 4, 8), "lengths": torch.tensor([1, 5])}, ValueError, r"within 0..4"),
        ({"x": torch.ones(2, 4, 8), "lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths should be int64"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {"x": torch.ones(4, 8), "codebook": torch.ones(5, 8), **change}
    with pytest.raises(error, match=words):
        ops.vq_nearest(**arguments)


# --- properties -----------------------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(0, 90), st.integers(1, 70), st.integers(1, 40))
seeds = st.integers(0, 2**31)


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, seed=seeds, shift=st.sampled_from([0.0, 1.0, 300.0]), dtype=st.sampled_from(DTYPES))
def test_the_chosen_distance_is_the_least(sizes, seed, shift, dtype):
    rows, codes, features = sizes
    x, codebook = rows_and_codes((rows,), codes, features, dtype, shift, seed)
    assert_nearest(x, codebook, *ops.vq_nearest(x, codebook))


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, seed=seeds, shift=st.integers(-1000, 1000))
def test_joint_translation_and_permutation_change_no_index(sizes, seed, shift):
    # Small whole numbers: translation is exact, and ties abound.
    rows, codes, features = sizes
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (rows, features), generator=generator).float()
    codebook = torch.randint(-4, 5, (codes, features), generator=generator).float()
    indices, distance = ops.vq_nearest(x, codebook)
    moved, same = ops.vq_nearest(x + shift, codebook + shift)
    assert torch.equal(indices, moved)
    assert torch.equal(distance, same)
    with losatok_ext.use_backend("reference"):
        assert torch.equal(indices, ops.vq_nearest(x, codebook)[0])
    order = torch.randperm(rows, generator=generator)
    assert torch.equal(ops.vq_nearest(x[order], codebook)[0], indices[order])
    first, zero = ops.vq_nearest(codebook, codebook)  # the first of equal codes
    assert torch.equal(codebook[first], codebook)
    assert (first <= torch.arange(codes)).all()
    assert (zero == 0).all()


def test_the_reference_is_the_definition():
    x, codebook = rows_and_codes((30,), 20, 6, torch.float64)
    indices, distance = reference.vq_nearest(x, codebook)
    for i in range(30):
        by_hand = torch.stack([((x[i] - c) ** 2).sum() for c in codebook])
        assert indices[i] == by_hand.argmin()
        torch.testing.assert_close(distance[i], by_hand.min(), rtol=1e-14, atol=0)
