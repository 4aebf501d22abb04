"""dit_attention on the CPU, against the reference."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from losatok_ext import ops, use_backend
from ops.dit_cases import CASES, DTYPES, SMALL, Case, cast, check_attention, evaluate

NATIVE_OR_REFERENCE = ["native", "reference"]


pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_fp64(case, dtype):
    check_attention(case, dtype, "native")


@pytest.mark.parametrize("size", [32, 64, 80, 96, 128])
@pytest.mark.parametrize("norm", ["rms", "layer", None])
def test_tuned_head_sizes(size, norm):
    check_attention(Case(time=70, size=size, rope=size // 2, norm=norm, lengths=(70, 40)), torch.float32, "native")
    check_attention(Case(time=70, size=size, rope=size, norm=norm, interleaved=True), torch.bfloat16, "native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_close_as_the_fused_attention_of_torch(dtype):
    """Beside scaled_dot_product_attention, which rounds where this op rounds: its error is the budget."""
    case = Case(time=300, size=64, norm=None)
    q, k, v, _, _ = tensors = case.tensors(dtype)
    ours = evaluate(ops.dit_attention, tensors, [0, 1, 2], "native", norm=None)
    theirs = evaluate(
        lambda q, k, v, *_: F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2),
        tensors,
        [0, 1, 2],
        "native",
    )
    exact = evaluate(ops.dit_attention, cast((q, k, v, None, None), torch.float64), [0, 1, 2], "reference", norm=None)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert (a - c).norm() <= 1.5 * (b - c).norm() + 1e-7 * c.norm()


@pytest.mark.parametrize("backend", NATIVE_OR_REFERENCE)
@pytest.mark.parametrize(
    "case",
    [
        Case(time=3, heads=1, size=4),
        Case(time=3, heads=2, size=5, norm="layer", rope=4, lengths=(3, 1)),
        Case(time=2, heads=1, size=6, rope=4, interleaved=True, weights=False, packed=True),
        Case(time=2, keys=4, heads=1, size=3, norm=None, key_lengths=(3, 0)),
    ],
    ids=str,
)
def test_gradcheck(case, backend):
    options = case.options()
    tensors = [t if t is None else t.detach().requires_grad_() for t in case.tensors()]

    def attend(*leaves):
        leaves = iter(leaves)
        return ops.dit_attention(*(t if t is None else next(leaves) for t in tensors), **options)

    with use_backend(backend):
        assert torch.autograd.gradcheck(attend, [t for t in tensors if t is not None])


@pytest.mark.parametrize("need", [[0], [1], [2], [3], [2, 4]], ids=str)
def test_only_wanted_gradients(need):
    case = Case(time=20, rope=8)
    every = evaluate(ops.dit_attention, case.tensors(torch.float32), range(5), "native", **case.options(torch.float32))
    some = evaluate(ops.dit_attention, case.tensors(torch.float32), need, "native", **case.options(torch.float32))
    for i, grad in zip(need, some[1:], strict=True):
        assert torch.equal(grad, every[1 + i])


def test_second_derivative_is_refused():
    q, k, v, *_ = Case().tensors(torch.float32)
    out = ops.dit_attention(q.requires_grad_(), k, v)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_packed_views_give_what_copies_give(dtype):
    case = Case(time=90, size=24, rope=16, lengths=(90, 31), packed=True)
    views, options = case.tensors(dtype), case.options(dtype)
    assert not views[0].is_contiguous()
    packed = evaluate(ops.dit_attention, views, range(5), "native", **options)
    copies = [t.clone(memory_format=torch.contiguous_format) for t in views]
    for a, b in zip(packed, evaluate(ops.dit_attention, copies, range(5), "native", **options), strict=True):
        assert torch.equal(a, b)


def test_any_strides():
    """Heads before frames, features not next to each other, a gradient that is one number everywhere."""
    case = Case(time=37, size=20)
    tensors = case.tensors(torch.float32)
    plain = evaluate(ops.dit_attention, tensors, range(3), "native")
    layouts = [
        [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors[:3]],
        [t.movedim(3, 0).contiguous().movedim(0, 3) for t in tensors[:3]],
        [F.pad(t, (1, 2, 1, 1, 3, 1))[:, 3:-1, 1:-1, 1:-2] for t in tensors[:3]],
    ]
    for layout in layouts:
        for a, b in zip(plain, evaluate(ops.dit_attention, layout + tensors[3:], range(3), "native"), strict=True):
            assert torch.equal(a, b)
    q, k, v = (t.clone().requires_grad_() for t in tensors[:3])
    grads = torch.autograd.grad(ops.dit_attention(q, k, v).sum(), [q, k, v])
    ones = torch.autograd.grad(ops.dit_attention(q, k, v), [q, k, v], torch.ones_like(q))
    assert all(torch.equal(a, b) for a, b in zip(grads, ones, strict=True))


def test_packed_projection_is_not_copied():
    """No more memory than the output and what a head needs, although q, k and v lie apart."""
    from losatok_ext.evaluation.tasks.side_by_side import peak_memory

    q, k, v = torch.randn(1, 6000, 3, 8, 32).unbind(2)
    extra = peak_memory(lambda: ops.dit_attention(q, k, v)) - q.numel() * 4
    assert extra < 3 * q.numel() * 4 / 2, f"{extra / 2**20:.1f} MiB"


@pytest.mark.parametrize("case", [Case(time=130, size=32, rope=32, lengths=(130, 71)), SMALL[7]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_never_leaks(case, dtype):
    """NaN past the lengths, in the gradient too: nothing changes, and what is there comes out zero."""
    options = case.options(dtype)
    q, k, v, *weights = case.tensors(dtype)
    rows = case.lengths or [case.time] * case.batch
    keys = case.key_lengths or rows
    clean = evaluate(ops.dit_attention, [q, k, v, *weights], range(5), "native", **options)
    for b in range(case.batch):
        q[b, rows[b] :] = torch.nan
        k[b, keys[b] :] = torch.nan
        v[b, keys[b] :] = torch.inf
    dirty = evaluate(ops.dit_attention, [q, k, v, *weights], range(5), "native", **options)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
    for backend in NATIVE_OR_REFERENCE:
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        with use_backend(backend):
            out = ops.dit_attention(*leaves, *weights, **options)
        grad = torch.ones_like(out)
        for b in range(case.batch):
            grad[b, rows[b] :] = torch.nan
        for result in torch.autograd.grad(out, leaves, grad):
            assert torch.isfinite(result).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_clip_without_keys_is_zero(dtype):
    case = Case(time=5, keys=4, key_lengths=(0, 4), lengths=(5, 0))
    for result in evaluate(ops.dit_attention, case.tensors(dtype), range(5), "native", **case.options(dtype)):
        assert not result.any()
    empty = Case(time=3, keys=0)
    for result in evaluate(ops.dit_attention, empty.tensors(dtype), range(5), "native"):
        assert not result.any()


@pytest.mark.parametrize("sizes", [(0, 5, 2, 8), (2, 0, 2, 8), (2, 5, 0, 8)], ids=str)
@pytest.mark.parametrize("backend", NATIVE_OR_REFERENCE)
def test_empty(sizes, backend):
    leaves = [torch.randn(sizes, requires_grad=True) for _ in range(3)]
    with use_backend(backend):
        out = ops.dit_attention(*leaves)
    assert out.shape == sizes
    assert all(g.shape == sizes for g in torch.autograd.grad(out.sum(), leaves))


def test_values_that_are_not_finite_stay_in_their_rows():
    q, k, v, *_ = Case(time=70, batch=1).tensors(torch.float32)
    clean = ops.dit_attention(q, k, v)
    q[0, 3] = torch.nan
    out = ops.dit_attention(q, k, v)
    assert out[0, 3].isnan().all()
    out[0, 3] = clean[0, 3]
    assert torch.equal(out, clean)
    k[0, 65, 0] = torch.nan
    assert ops.dit_attention(q, k, v)[0, :, 0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_scores(dtype):
    """Differences of scores beyond what exp can hold: the largest takes all, and gradients stay finite."""
    q = torch.randn(1, 80, 1, 32).to(dtype) * 40
    leaves = [q.clone().requires_grad_(), q.clone().requires_grad_(), torch.randn(1, 80, 1, 32).to(dtype)]
    out = ops.dit_attention(*leaves, norm=None)
    grads = torch.autograd.grad(out.sum(), leaves[:2])
    torch.testing.assert_close(out, leaves[2], rtol=1e-2, atol=1e-3)
    assert all(torch.isfinite(g).all() for g in grads)


def test_a_clip_does_not_depend_on_its_batch():
    case = Case(batch=3, time=140, size=32, rope=32, lengths=(140, 33, 90))
    q, k, v, *weights = case.tensors(torch.float32)
    options = case.options(torch.float32)
    out = ops.dit_attention(q, k, v, *weights, **options)
    for b, length in enumerate(case.lengths):
        rope = tuple(t[:length] for t in options["rope"])
        alone = ops.dit_attention(*(t[b : b + 1, :length] for t in (q, k, v)), *weights, rope=rope)
        torch.testing.assert_close(out[b : b + 1, :length], alone, rtol=1e-6, atol=1e-6)


def test_weights_and_angles_of_other_dtypes():
    """A bfloat16 model may keep norm weights and angles in float32; their gradients come back in their own dtype."""
    case = Case(time=20, rope=8)
    q, k, v, *_ = case.tensors(torch.bfloat16)
    weights = [t.float().requires_grad_() for t in case.tensors(torch.float32)[3:]]
    options = case.options(torch.float32)
    out = ops.dit_attention(q, k, v, *weights, **options)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.float().sum(), weights))
    assert torch.equal(out, ops.dit_attention(q, k, v, *(w.double() for w in weights), **options))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_autocast_takes_its_dtype(backend):
    q, k, v, *_ = Case(time=20).tensors(torch.float32)
    with use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            out = ops.dit_attention(q, k, v)
        assert torch.equal(out, ops.dit_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        assert ops.dit_attention(q.double(), k.double(), v.double()).dtype == torch.float64


def test_keys_follow_the_lengths_of_self_attention_only():
    q, k, v, *_ = Case(time=9).tensors(torch.float32)
    lengths = torch.tensor([9, 4])
    both = ops.dit_attention(q, k, v, lengths=lengths)
    assert torch.equal(both, ops.dit_attention(q, k, v, lengths=lengths, key_lengths=lengths))
    own = ops.dit_attention(q, k, v, lengths=lengths, key_lengths=torch.tensor([9, 9]))
    assert torch.equal(own[0], both[0])
    assert not torch.equal(own[1, :4], both[1, :4])
    assert torch.equal(own[:, :4], ops.dit_attention(q, k, v)[:, :4])
    across = ops.dit_attention(q, k[:, :5], v[:, :5], lengths=lengths)
    torch.testing.assert_close(across[:, :4], ops.dit_attention(q, k[:, :5], v[:, :5])[:, :4])


def test_int32_lengths_are_converted():
    case = replace(Case(time=9), lengths=(9, 4))
    q, k, v, *_ = case.tensors(torch.float32)
    lengths = torch.tensor(case.lengths, dtype=torch.int32)
    assert torch.equal(ops.dit_attention(q, k, v, lengths=lengths), ops.dit_attention(q, k, v, lengths=lengths.long()))


def test_the_raw_ops_guard_themselves():
    raw, q, rest = torch.ops.losatok, torch.zeros(1, 2, 1, 4), [None] * 6
    with pytest.raises(ValueError, match="norm should be one of none, rms, layer, got batch"):
        raw.dit_attention_forward(q, q, q, *rest, "batch", 1e-6, False)
    with pytest.raises(ValueError, match=r"v should have shape"):
        raw.dit_attention_forward(q, q, q[:, :1], *rest, "rms", 1e-6, False)
    with pytest.raises(ValueError, match="lengths should have shape"):
        raw.dit_attention_forward(q, q, q, *rest[:4], torch.tensor([1, 1]), None, "rms", 1e-6, False)
    with pytest.raises(ValueError, match=r"lse should have shape \[1, 1, 2\]"):
        raw.dit_attention_backward(q, q, q, q, *rest, q, q[0, 0, 0], "rms", 1e-6, False)
