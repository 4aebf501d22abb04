"""dit_attention in Triton against the reference: in Triton's interpreter, or on a GPU where there is one."""

import pytest
import torch

from losatok_ext import use_backend
from losatok_ext.ops.dit_attention import dit_attention
from ops.triton_cases import DTYPES, check_op, evaluate, fill_with_nan, needs_working_triton

pytestmark = needs_working_triton


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_with_nan(monkeypatch)


def draw(batch=2, time=37, heads=2, size=32, keys=None, weights=True):
    """q, k, v and the weights of the norms (or None)."""
    q = torch.randn(batch, time, heads, size)
    k, v = (torch.randn(batch, time if keys is None else keys, heads, size) for _ in range(2))
    return [q, k + 0.3, v, *((1 + 0.2 * torch.randn(size) if weights else None) for _ in range(2))]


def angles(time, pairs):
    turns = torch.arange(time)[:, None] * 10000.0 ** (-torch.arange(pairs) / pairs)
    return turns.cos(), turns.sin()


def attend(q, k, v, q_weight, k_weight, cos=None, sin=None, **options):
    """dit_attention with tensors only as positional arguments, as check_op passes them."""
    return dit_attention(q, k, v, q_weight, k_weight, None if cos is None else (cos, sin), **options)


def check(tensors, dtype, device, rope=None, **options):
    """The output and every gradient; ``rope`` are the pairs that are turned."""
    cos, sin = (None, None) if rope is None else angles(tensors[0].shape[1], rope)
    need = [True] * 5 + [False] * 2
    return check_op(attend, [*tensors, cos, sin], need, dtype, device, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 64, 80, 96, 128])
def test_head_sizes(size, dtype, device):
    check(draw(1, 19, 2, size), dtype, device, rope=size // 2)


@pytest.mark.parametrize("size", [1, 7, 40, 160])
def test_other_head_sizes(size, device):
    check(draw(1, 19, 1, size), torch.float32, device, rope=size // 4 or None)


@pytest.mark.parametrize("norm", ["rms", "layer", None])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("rope", [None, 16, 5])
@pytest.mark.parametrize("interleaved", [False, True])
def test_norms_and_rotations(norm, weights, rope, interleaved, device):
    tensors = draw(1, 19, weights=weights and norm is not None)
    check(tensors, torch.float32, device, rope=rope, norm=norm, interleaved=interleaved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["rms", None])
def test_lengths_with_nan_behind_them(norm, dtype, device):
    lengths = torch.tensor([37, 16, 0, 21])
    tensors = draw(4, heads=1, weights=norm is not None)
    options = {"lengths": lengths, "norm": norm}
    expected = check(tensors, dtype, device, rope=16, **options)
    for x in tensors[:3]:
        for b, length in enumerate(lengths.tolist()):
            x[b, length:] = float("nan")
    rope = angles(37, 16)
    result = evaluate(
        attend, "triton", [*tensors, *rope], [t is not None for t in tensors] + [False] * 2, dtype, device, **options
    )
    for got, want in zip(result, expected, strict=True):
        assert got.equal(want)


@pytest.mark.parametrize(("time", "keys"), [(37, 20), (5, 50), (16, 16)])
def test_cross_attention(time, keys, device):
    options = {"lengths": torch.tensor([time, 3, time]), "key_lengths": torch.tensor([keys, 7, 0])}
    check(draw(3, time, keys=keys), torch.float32, device, **options)
    check(draw(3, time, keys=keys), torch.float32, device)


@pytest.mark.parametrize("time", [2, 15, 16, 17, 48, 70])
def test_sizes(time, device):
    check(draw(1, time, 3), torch.float32, device, rope=16)


def test_one_key_gets_all_the_weight(device):
    tensors = draw(2, 1, 3)
    out, grad_q, grad_k, grad_v, *_ = evaluate(attend, "triton", tensors, [True] * 5, torch.float32, device)
    torch.testing.assert_close(out.cpu(), tensors[2])
    assert max(grad_q.abs().max(), grad_k.abs().max()) < 1e-6
    assert (grad_v > 0).all()  # that of the output, 0.5 to 1.5


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=str)
def test_nothing_to_attend(shape, device):
    tensors = draw(*shape)
    result = evaluate(attend, "triton", tensors, [True] * 5, torch.float32, device)
    assert result[0].shape == tensors[0].shape
    for gradient, tensor in zip(result[1:], tensors, strict=True):
        assert gradient.equal(torch.zeros_like(tensor).to(device))


def test_without_keys_all_is_zero(device):
    tensors = draw(2, 5, keys=0)
    for result in evaluate(attend, "triton", tensors, [True] * 5, torch.float32, device):
        assert (result == 0).all()


def test_views_of_a_packed_projection_are_read_where_they_lie(device):
    packed = torch.randn(2, 20, 3, 2, 32).to(device)
    leaf = packed.clone().requires_grad_()
    with use_backend("triton"):
        out = dit_attention(*leaf.unbind(2), rope=angles(20, 16))
        (grad,) = torch.autograd.grad(out.square().sum(), leaf)
        parts = [x.contiguous().requires_grad_() for x in packed.unbind(2)]
        expected = dit_attention(*parts, rope=angles(20, 16))
        grads = torch.autograd.grad(expected.square().sum(), parts)
    assert out.equal(expected)
    assert grad.equal(torch.stack(grads, 2))


def test_features_apart_are_copied(device):
    tensors = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in draw(1, 9)[:3]]
    check([*tensors, None, None], torch.float32, device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_are_bitwise_equal(dtype, device):
    tensors = [*draw(2, 50), *angles(50, 16)]
    need = [True] * 5 + [False] * 2
    first, *others = (evaluate(attend, "triton", tensors, need, dtype, device) for _ in range(3))
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other, strict=True))


def test_constant_values_come_back(device):
    q, k, v, *weights = (x.to(device) for x in draw(2, 40))
    with use_backend("triton"):
        out = dit_attention(q, k, v[:, :1].expand_as(v), *weights)
    torch.testing.assert_close(out, v[:, :1].expand_as(v))


def test_scores_far_apart_stay_finite(device):
    q, k, v, *none = draw(1, 40, weights=False)
    tensors = [100 * q, 100 * k, v, *none]
    check_op(attend, tensors, [False] * 5, torch.float32, device, norm=None)
    need = [True] * 3 + [False] * 2
    results = evaluate(attend, "triton", tensors, need, torch.float32, device, norm=None)
    assert all(result.isfinite().all() for result in results)


def test_an_eps_that_counts(device):
    tensors = draw(1, 19)
    check([0.1 * tensors[0], 0.1 * tensors[1], *tensors[2:]], torch.float32, device, eps=0.05)


def test_float64_is_refused_with_the_cure(device):
    q, k, v, *_ = (x.double().to(device) for x in draw(1, 3))
    with use_backend("triton"), pytest.raises(TypeError, match="use_backend"):
        dit_attention(q, k, v)
