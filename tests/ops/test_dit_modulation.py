"""layer_norm_modulate and gated_residual on the CPU, against the reference."""

import itertools

import pytest
import torch

from losatok_ext import ops, use_backend
from ops.dit_cases import DTYPES, MODULATION_SIZES, PER_FRAME, check, evaluate, modulation_inputs

NATIVE_OR_REFERENCE = ["native", "reference"]
OPS = [ops.layer_norm_modulate, ops.gated_residual]


pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")


def inputs_of(op, sizes, per_frame, dtype=torch.float64):
    """x, shift, scale; or x, branch, gate: a branch has all frames."""
    return modulation_inputs(sizes, per_frame if op is ops.layer_norm_modulate else (True, per_frame[1]), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_frame", PER_FRAME, ids=str)
@pytest.mark.parametrize("sizes", MODULATION_SIZES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_against_fp64(op, sizes, per_frame, dtype):
    check(op, inputs_of(op, sizes, per_frame, dtype), dtype, "native")


@pytest.mark.parametrize("backend", NATIVE_OR_REFERENCE)
@pytest.mark.parametrize("per_frame", PER_FRAME, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op, per_frame, backend):
    leaves = [t.requires_grad_() for t in inputs_of(op, (2, 3, 4), per_frame)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("op", OPS)
def test_only_wanted_gradients(op):
    tensors = inputs_of(op, (2, 7, 5), (False, True), torch.float32)
    every = evaluate(op, tensors, range(3), "native")
    for count in (1, 2):
        for need in itertools.combinations(range(3), count):
            for i, grad in zip(need, evaluate(op, tensors, need, "native")[1:], strict=True):
                assert torch.equal(grad, every[1 + i])


@pytest.mark.parametrize("op", OPS)
def test_second_derivative_is_refused(op):
    x, *others = inputs_of(op, (2, 7, 5), (False, False), torch.float32)
    scale = others[1].requires_grad_()
    (grad,) = torch.autograd.grad(op(x, others[0], scale).square().sum(), scale, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_frame", PER_FRAME, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_strides_do_not_matter(op, per_frame, dtype):
    """Every other frame, channels-first, chunks of one modulation, and a gradient that is one number everywhere."""
    tensors = inputs_of(op, (2, 37, 12), per_frame, dtype)
    plain = evaluate(op, tensors, range(3), "native")
    layouts = [
        [t.repeat_interleave(2, dim=1)[:, ::2] for t in tensors],
        [t.transpose(0, -1).contiguous().transpose(0, -1) for t in tensors],
        [torch.cat((t, torch.full_like(t, torch.nan)), dim=-1).chunk(2, dim=-1)[0] for t in tensors],
    ]
    for layout in layouts:
        for a, b in zip(plain, evaluate(op, layout, range(3), "native"), strict=True):
            assert torch.equal(a, b)
    leaves = [t.clone().requires_grad_() for t in tensors]
    one = torch.autograd.grad(op(*leaves).sum(), leaves)
    ones = torch.autograd.grad(op(*leaves), leaves, torch.ones_like(tensors[0]))
    assert all(torch.equal(a, b) for a, b in zip(one, ones, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_frame", [False, True])
def test_a_zero_gate_is_the_identity(per_frame, dtype):
    x, branch, gate = modulation_inputs((2, 33, 20), (True, per_frame), dtype)
    assert torch.equal(ops.gated_residual(x, branch, torch.zeros_like(gate)), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_shift_and_scale_it_is_the_layer_norm(dtype):
    x, shift, scale = modulation_inputs((2, 33, 20), (False, False), dtype)
    y = ops.layer_norm_modulate(x, torch.zeros_like(shift), torch.zeros_like(scale), eps=1e-5)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (20,), eps=1e-5))


def test_mean_far_above_the_spread():
    """The mean goes off first: nothing cancels, however far the frame lies from zero."""
    x = (torch.randn(1, 40, 64, dtype=torch.float64) + 1e4).float()
    zero = torch.zeros(1, 64)
    exact = torch.nn.functional.layer_norm(x.double(), (64,), eps=1e-6)
    error = (ops.layer_norm_modulate(x, zero, zero).double() - exact).abs().max()
    assert error < 2e-3  # x itself is known to 1e-3 / 2


def test_a_constant_frame_gives_the_shift():
    x, shift, scale = modulation_inputs((2, 5, 8), (False, False), torch.float32)
    x = torch.ones_like(x).requires_grad_()
    y = ops.layer_norm_modulate(x, shift, scale)
    torch.testing.assert_close(y, shift[:, None].expand_as(y))
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("backend", NATIVE_OR_REFERENCE)
@pytest.mark.parametrize("op", OPS)
def test_autocast_takes_the_common_dtype(op, backend):
    """A float32 residual stream beside what bfloat16 linear layers give."""
    x, *others = inputs_of(op, (2, 7, 5), (False, False), torch.float32)
    halves = [t.bfloat16().requires_grad_() for t in others]
    with use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            y = op(x, *halves)
        assert y.dtype == torch.float32
        assert torch.equal(y, op(x, *(t.float() for t in halves)))
        assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(y.sum(), halves))


X, ROW = torch.randn(2, 5, 3), torch.randn(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "x should be a torch.Tensor"),
        ({"x": X.long()}, TypeError, "x should be one of float32, bfloat16, float16, float64, got int64"),
        ({"x": X[0]}, ValueError, r"x should have shape \[B, T, C\]"),
        ({"x": X[:, :, :0]}, ValueError, "x should have at least one channel"),
        ({"shift": ROW[:1]}, ValueError, r"shift should have shape \[B, C\] = \[2, 3\] or \[B, T, C\] = \[2, 5, 3\]"),
        ({"shift": ROW.bfloat16()}, TypeError, "shift should have x's dtype torch.float32, got torch.bfloat16"),
        ({"shift": ROW.to("meta")}, ValueError, "shift should be on x's device cpu, got meta"),
        ({"scale": ROW[:, None]}, ValueError, r"scale should have shape .*got \[2, 1, 3\]"),
        ({"scale": None}, TypeError, "scale should be a torch.Tensor, got NoneType"),
    ],
)
@pytest.mark.parametrize("backend", NATIVE_OR_REFERENCE)
def test_bad_input_of_the_norm_is_named(change, error, message, backend):
    arguments = {"x": X, "shift": ROW, "scale": ROW} | change
    with use_backend(backend), pytest.raises(error, match=message):
        ops.layer_norm_modulate(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X.int()}, TypeError, "x should be one of"),
        ({"x": X[0]}, ValueError, r"x should have shape \[B, T, C\]"),
        ({"branch": X[:, :4]}, ValueError, r"branch should have x's shape \[2, 5, 3\], got \[2, 4, 3\]"),
        ({"branch": X.double()}, TypeError, "branch should have x's dtype"),
        ({"branch": 1.0}, TypeError, "branch should be a torch.Tensor, got float"),
        ({"gate": X[:, :4]}, ValueError, r"gate should have shape \[B, C\]"),
        ({"gate": ROW.to("meta")}, ValueError, "gate should be on x's device"),
    ],
)
@pytest.mark.parametrize("backend", NATIVE_OR_REFERENCE)
def test_bad_input_of_the_residual_is_named(change, error, message, backend):
    arguments = {"x": X, "branch": X, "gate": ROW} | change
    with use_backend(backend), pytest.raises(error, match=message):
        ops.gated_residual(**arguments)


def test_the_raw_ops_guard_themselves():
    raw = torch.ops.losatok
    with pytest.raises(ValueError, match="scale should have shape"):
        raw.layer_norm_modulate_forward(X, ROW, ROW[:1], 1e-6)
    with pytest.raises(ValueError, match=r"grad should have shape \[2, 5, 3\]"):
        raw.layer_norm_modulate_backward(X[:, :2], X, ROW, X[..., 0], X[..., 0], False)
    with pytest.raises(ValueError, match="gate should have shape"):
        raw.gated_residual_forward(X, X, ROW[:1])
    with pytest.raises(ValueError, match=r"branch should have shape \[2, 5, 3\]"):
        raw.gated_residual_forward(X, X[:1], ROW)
