"""dit_attention in Triton against the reference: in Triton's interpreter, or on a GPU where there is one."""

import pytest
import torch

from losatok_ext import use_backend
from losatok_ext.ops.dit_attention import dit_attention
from losatok_ext.triton_kernels import launch
from ops.dit_cases import LARGE, SMALL, Case, check, check_attention, evaluate
from ops.triton_cases import DTYPES, fill_with_nan, needs_working_triton

pytestmark = needs_working_triton


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_with_nan(monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in SMALL if case.time > 1], ids=str)
def test_against_fp64(case, dtype, device):
    check_attention(case, dtype, "triton", device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_several_blocks_against_fp64(case, dtype, device):
    check_attention(case, dtype, "triton", device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [32, 64, 80, 96, 128])
def test_tuned_head_sizes(size, dtype, device):
    check_attention(Case(batch=1, time=19, heads=1, size=size, rope=size), dtype, "triton", device)


@pytest.mark.parametrize("size", [1, 7, 40, 160])
def test_other_head_sizes_are_padded(size, device):
    case = Case(batch=1, time=19, heads=1, size=size, rope=size // 4 * 2, norm="layer")
    check_attention(case, torch.float32, "triton", device)


@pytest.mark.parametrize("norm", ["rms", "layer", None])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("rope", [0, 24, 10])
@pytest.mark.parametrize("interleaved", [False, True])
def test_every_preparation(norm, weights, rope, interleaved, device):
    case = Case(1, 5, 2, 24, rope=rope, interleaved=interleaved, norm=norm, weights=weights)
    check_attention(case, torch.float32, "triton", device)


@pytest.mark.parametrize("time", [2, 15, 16, 17, 48, 70])
def test_whole_and_partial_blocks(time, device):
    check_attention(Case(1, time, 1, 16, rope=16), torch.float32, "triton", device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["rms", None])
def test_padding_never_leaks(norm, dtype, device):
    lengths = (20, 16, 0)
    case = Case(3, 20, 1, 16, rope=16, norm=norm, lengths=lengths)
    tensors, options = case.tensors(dtype, device), case.options(dtype, device)
    need = [i for i, t in enumerate(tensors) if t is not None]
    expected = evaluate(dit_attention, tensors, need, "triton", **options)
    for tensor in tensors[:3]:
        for b, length in enumerate(lengths):
            tensor[b, length:] = float("nan")
    for got, want in zip(evaluate(dit_attention, tensors, need, "triton", **options), expected, strict=True):
        assert got.equal(want)


def test_a_clip_without_keys_is_zero(device):
    case = Case(2, 5, keys=4, key_lengths=(4, 0))
    for result in evaluate(dit_attention, case.tensors(torch.float32, device), range(3), "triton", **case.options()):
        assert result[0].any()
        assert not result[1].any()


@pytest.mark.parametrize("sizes", [(0, 5, 2), (2, 0, 2), (2, 5, 0)], ids=str)
def test_nothing_to_attend(sizes, device):
    tensors = Case(*sizes).tensors(torch.float32, device)
    for result, like in zip(evaluate(dit_attention, tensors, range(5), "triton"), [tensors[0], *tensors], strict=True):
        assert result.equal(torch.zeros_like(like))


def test_one_key_gets_all_the_weight(device):
    tensors = Case(2, 1, 3, 32).tensors(torch.float32, device)
    out, grad_q, grad_k, _ = evaluate(dit_attention, tensors, range(3), "triton")
    torch.testing.assert_close(out, tensors[2])
    assert max(grad_q.abs().max(), grad_k.abs().max()) < 1e-5


def test_packed_views_give_what_copies_give(device):
    case = Case(2, 20, 2, 32, rope=32, packed=True)
    views, options = case.tensors(torch.float32, device), case.options(torch.float32, device)
    copies = [t.contiguous() for t in views]
    apart = [t.transpose(1, 3).contiguous().transpose(1, 3) for t in views[:3]] + views[3:]
    expected, *others = (
        evaluate(dit_attention, tensors, range(5), "triton", **options) for tensors in (copies, views, apart)
    )
    for other in others:
        assert all(a.equal(b) for a, b in zip(other, expected, strict=True))


def test_packed_views_are_not_copied(device):
    view = Case(2, 20, 2, 32, packed=True).tensors(torch.float32, device)[1]
    assert launch.rows_contiguous(view, 1) is view


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeats_are_bitwise_equal(dtype, device):
    case = Case(2, 33, 1, 16, rope=16, lengths=(33, 20))
    tensors, options = case.tensors(dtype, device), case.options(dtype, device)
    first, *others = (evaluate(dit_attention, tensors, range(5), "triton", **options) for _ in range(2))
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other, strict=True))


def test_constant_values_come_back(device):
    q, k, v, *weights = Case(2, 40).tensors(torch.float32, device)
    constant = v[:, :1].expand_as(v)
    with use_backend("triton"):
        torch.testing.assert_close(dit_attention(q, k, constant, *weights), constant)


def test_scores_far_apart_stay_finite(device):
    q, k, v, *_ = Case(1, 40, norm=None).tensors(torch.float32, device)
    tensors = [100 * q, 100 * k, v]
    check(dit_attention, tensors, torch.float32, "triton", device, need=[], norm=None)
    assert all(r.isfinite().all() for r in evaluate(dit_attention, tensors, range(3), "triton", norm=None))


def test_an_eps_that_counts(device):
    q, k, *others = Case(1, 19).tensors(torch.float32, device)
    check(dit_attention, [0.1 * q, 0.1 * k, *others], torch.float32, "triton", device, eps=0.05)


def test_float64_is_refused_with_the_cure(device):
    tensors = Case(1, 3).tensors(torch.float64, device)
    with use_backend("triton"), pytest.raises(TypeError, match="use_backend"):
        dit_attention(*tensors)
