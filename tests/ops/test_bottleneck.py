"""bottleneck_project and normalized_reconstruction_loss on the CPU, against the reference."""

import pytest
import torch

from losatok_ext import _native, ops, use_backend
from losatok_ext.ops.reference.bottleneck import ACTIVATIONS
from ops.bottleneck_cases import (
    DTYPES,
    LOSS_CASES,
    PROJECT_CASES,
    cast,
    check_loss,
    check_projection,
    evaluate,
    loss_inputs,
    projection,
)

NATIVE_OR_REFERENCE = ["native", "reference"]


pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PROJECT_CASES, ids=str)
def test_projection(case, dtype, threads):
    check_projection(case, dtype, "native")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LOSS_CASES, ids=str)
def test_loss(case, dtype, threads):
    check_loss(case, dtype, "native")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 6, 7, 12, 23, 24, 25, 31, 32, 33])
def test_few_rows(rows, dtype, threads):
    """Where our own products run and end: tiles of 6 rows by 4 columns, over features that fill vectors or do not."""
    check_projection(((rows,), 77, 130, 35), dtype, "native")
    check_projection(((rows,), 96, 64, 2), dtype, "native", bias=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_blocks_for_each_thread(dtype, threads):
    """So wide a hidden layer that a block has 64 to 128 rows, and gradients are summed over blocks and threads."""
    check_projection(((701,), 9, 4096, 5), dtype, "native")
    check_loss((3, 350, 5, 4096, 9, [350, 1, 300]), dtype, "native")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_activations(activation, bias, dtype):
    check_projection(PROJECT_CASES[6], dtype, "native", activation=activation, bias=bias)
    check_loss(LOSS_CASES[6], dtype, "native", activation=activation, bias=bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_accurate_over_its_whole_range(activation):
    """Against fp64, point by point: a few float32 roundings of the result, or of x where the result is far below it."""
    x = torch.cat([torch.linspace(-30, 30, 100_001), torch.logspace(-30, 4, 1000), -torch.logspace(-30, 4, 1000)])[
        :, None
    ]
    one = torch.ones(1, 1)
    leaf = x.clone().requires_grad_()
    value = ops.bottleneck_project(leaf, one, None, one, None, activation)
    value.sum().backward()
    exact = x.double().requires_grad_()
    expected = ACTIVATIONS[activation](exact)
    expected.sum().backward()
    eps = torch.finfo(torch.float32).eps
    allowed = 4 * eps * expected.abs() + 4 * eps * x.double().abs().clamp(max=1)
    assert ((value.double() - expected).abs() <= allowed).all()
    assert ((leaf.grad.double() - exact.grad).abs() <= 8 * eps).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_of_extremes(activation):
    x = torch.tensor([float("inf"), float("nan"), 1e30, -1e30])[:, None]
    one = torch.ones(1, 1)
    value = ops.bottleneck_project(x, one, None, one, None, activation)[:, 0]
    assert value[0] == float("inf")
    assert value[1].isnan()
    assert value[2] == x[2]
    assert value[3] == (x[3] if activation == "none" else 0)


@pytest.mark.parametrize("backend", NATIVE_OR_REFERENCE)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "none"])  # relu has a corner
def test_gradcheck(backend, activation):
    x, *weights = projection((3, 2), 5, 4, 3)
    with use_backend(backend):
        leaves = [t.requires_grad_() for t in (x, *weights)]
        torch.autograd.gradcheck(lambda *a: ops.bottleneck_project(*a, activation), leaves)
        z, target, *weights, lengths = loss_inputs(2, 3, 3, 4, 5, [3, 1])
        leaves = [t.requires_grad_() for t in (z, *weights)]
        torch.autograd.gradcheck(
            lambda z, *w: ops.normalized_reconstruction_loss(z, target, *w, lengths, activation), leaves
        )


@pytest.mark.parametrize("need", [[0], [1], [2], [4], [1, 2, 3, 4]], ids=str)
def test_only_wanted_gradients(need):
    check_projection(PROJECT_CASES[6], torch.float32, "native", need=need)
    check_loss(LOSS_CASES[6], torch.float32, "native", need=[i and i + 1 for i in need])


def test_target_takes_no_gradient():
    z, target, *weights, lengths = loss_inputs(2, 3, 3, 4, 5, [3, 1])
    for backend in NATIVE_OR_REFERENCE:
        with use_backend(backend):
            loss = ops.normalized_reconstruction_loss(z, target.requires_grad_(), *weights, lengths)
            assert not loss.requires_grad


def test_second_derivative_is_refused():
    x, *weights = cast(projection((3,), 5, 4, 3), torch.float32)
    z = ops.bottleneck_project(x.requires_grad_(), *weights)
    (grad,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_offsets_do_not_matter(dtype):
    """Channels-first, every other frame, and in the middle of a larger tensor, against contiguous copies."""
    need = [0, 1, 2, 3, 4]

    def awkward(t):
        if t is None or t.dim() == 0:
            return t
        large = torch.full([2 * s + 3 for s in t.shape], float("nan"), dtype=t.dtype).transpose(0, -1).contiguous()
        view = large.transpose(0, -1)[tuple(slice(2, 2 + 2 * s, 2) for s in t.shape)]
        return view.copy_(t)

    inputs = cast(projection((3, 67), 31, 65, 129), dtype)
    plain = evaluate(ops.bottleneck_project, inputs, need, "native")
    strided = evaluate(ops.bottleneck_project, [awkward(t) for t in inputs], need, "native")
    z, target, *weights, lengths = cast(loss_inputs(*LOSS_CASES[6]), dtype)
    plain += evaluate(ops.normalized_reconstruction_loss, [z, target, *weights, lengths], [0, 2, 3, 4, 5], "native")
    strided += evaluate(
        ops.normalized_reconstruction_loss,
        [*(awkward(t) for t in (z, target, *weights)), lengths.repeat_interleave(2)[::2]],
        [0, 2, 3, 4, 5],
        "native",
    )
    for a, b in zip(plain, strided, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
def test_target_of_another_dtype(dtype, target_dtype):
    """Cached teacher features may be in half precision beside float32 latents, or the other way round."""
    z, target, *rest = cast(loss_inputs(2, 7, 3, 5, 19, [7, 3]), dtype)
    target = target.to(target_dtype)
    exact = cast([z, target, *rest], torch.float64)
    result = evaluate(ops.normalized_reconstruction_loss, [z, target, *rest], [0], "native")
    expected = evaluate(ops.normalized_reconstruction_loss, exact, [0], "reference")
    tolerance = 4 * torch.finfo(dtype).eps
    for a, b in zip(result, expected, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm() + (1e-6 if dtype == torch.float64 != target_dtype else 0)


def test_leading_sizes_do_not_matter():
    z, target, *weights, _ = cast(loss_inputs(4, 6, 5, 7, 9, None), torch.float32)
    loss = ops.normalized_reconstruction_loss(z, target, *weights)
    for lead in [(24,), (2, 2, 6), (1, 1, 24), (24, 1)]:
        other = ops.normalized_reconstruction_loss(z.view(*lead, 5), target.view(*lead, 9), *weights)
        torch.testing.assert_close(loss, other)
    single = ops.normalized_reconstruction_loss(z[0, 0], target[0, 0], *weights)
    torch.testing.assert_close(single, ops.normalized_reconstruction_loss(z[:1, :1], target[:1, :1], *weights))


@pytest.mark.parametrize("backend", NATIVE_OR_REFERENCE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_past_a_length_is_read(backend, dtype):
    z, target, *weights, lengths = cast(loss_inputs(*LOSS_CASES[6]), dtype)
    need = [0, 2, 3, 4, 5]
    clean = evaluate(ops.normalized_reconstruction_loss, [z, target, *weights, lengths], need, backend)
    past = torch.arange(z.shape[1]) >= lengths[:, None]
    z, target = z.clone(), target.clone()
    z[past], target[past] = float("nan"), float("inf")
    dirty = evaluate(ops.normalized_reconstruction_loss, [z, target, *weights, lengths], need, backend)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
    assert (dirty[1][past] == 0).all()


@pytest.mark.parametrize("backend", NATIVE_OR_REFERENCE)
def test_no_valid_frame_gives_zero(backend):
    for case in [(2, 5, 4, 8, 16, [0, 0]), (2, 0, 4, 8, 16, None), (0, 5, 4, 8, 16, [])]:
        inputs = cast(loss_inputs(*case), torch.float32)
        inputs[-1] = None if case[-1] is None else torch.tensor(case[-1], dtype=torch.int64)
        for value in evaluate(ops.normalized_reconstruction_loss, inputs, [0, 2, 3, 4, 5], backend):
            assert (value == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows_are_directions_too(dtype):
    """A restored or target row of zeros is normalised to zeros, by max(norm, 1e-12), and nothing becomes NaN."""
    z, target, *weights, _ = cast(loss_inputs(1, 4, 5, 7, 9, None), dtype)
    target[0, 1] = 0
    zero_bias = [weights[0], torch.zeros_like(weights[1]), weights[2], torch.zeros_like(weights[3])]
    z[0, 2] = 0
    with torch.no_grad():
        loss = ops.normalized_reconstruction_loss(z, target, *zero_bias)
        with use_backend("reference"):
            expected = ops.normalized_reconstruction_loss(*cast([z, target, *zero_bias], torch.float64))
    assert abs(loss.double() - expected) <= 4 * torch.finfo(dtype).eps * expected


def test_autocast_casts_as_linear_does():
    inputs = cast(projection((40,), 31, 65, 12), torch.float32)
    loss_in = cast(loss_inputs(*LOSS_CASES[6]), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z, *grads = evaluate(ops.bottleneck_project, inputs, range(5), "native")
        by_hand = evaluate(ops.bottleneck_project, cast(inputs, torch.bfloat16), range(5), "native")
        loss, *loss_grads = evaluate(ops.normalized_reconstruction_loss, loss_in, [0, 2, 3, 4, 5], "native")
    assert z.dtype == torch.bfloat16
    assert torch.equal(z, by_hand[0])
    assert loss.dtype == torch.float32
    for grad, other in zip(grads, by_hand[1:], strict=True):
        assert grad.dtype == torch.float32
        assert torch.equal(grad, other.float())
    exact = evaluate(ops.normalized_reconstruction_loss, cast(loss_in, torch.float64), [0, 2, 3, 4, 5], "reference")
    for grad, other in zip([loss, *loss_grads], exact, strict=True):
        assert (grad.double() - other).norm() <= 0.02 * other.norm()


def test_inference_equals_training():
    inputs = cast(projection((300,), 1280, 512, 128), torch.float32)
    with torch.no_grad():
        z = ops.bottleneck_project(*inputs)
    assert torch.equal(z, evaluate(ops.bottleneck_project, inputs, [1], "native")[0])


def test_float16_gradients_do_not_underflow_before_they_are_scaled():
    """1 / (N D) is below float16's least number here; a loss scale must find gradients that are still there."""
    z, target, *weights, _ = cast(loss_inputs(1, 600, 8, 16, 256, None), torch.float16)
    leaf = weights[3].requires_grad_()
    loss = ops.normalized_reconstruction_loss(z, target, *weights[:3], leaf)
    (grad,) = torch.autograd.grad(loss, leaf, torch.tensor(4096.0, dtype=torch.float16))
    exact = evaluate(
        ops.normalized_reconstruction_loss, cast([z, target, *weights, None], torch.float64), [5], "reference"
    )[1]
    exact = exact / 0.5  # the output gradient of evaluate
    assert (grad.double() / 4096 - exact).norm() <= 0.01 * exact.norm()


def test_bad_arguments_are_named():
    x, *weights = cast(projection((3,), 5, 4, 2), torch.float32)
    wrong = [
        (TypeError, "x should be a torch.Tensor", lambda: ops.bottleneck_project([1.0], *weights)),
        (TypeError, "x should be one of", lambda: ops.bottleneck_project(x.long(), *weights)),
        (TypeError, "weight_in should have x's dtype", lambda: ops.bottleneck_project(x.double(), *weights)),
        (ValueError, "x should have shape", lambda: ops.bottleneck_project(torch.tensor(1.0), *weights)),
        (
            ValueError,
            r"weight_in should have shape \[hidden, features of x\]",
            lambda: ops.bottleneck_project(x[:, :4], *weights),
        ),
        (
            ValueError,
            "weight_out should have shape",
            lambda: ops.bottleneck_project(x, weights[0], None, weights[0], None),
        ),
        (
            ValueError,
            "bias_in should have shape",
            lambda: ops.bottleneck_project(x, weights[0], x[0], weights[2], None),
        ),
        (ValueError, "bias_out should have shape", lambda: ops.bottleneck_project(x, *weights[:3], x[0])),
        (ValueError, "activation should be one of 'gelu'", lambda: ops.bottleneck_project(x, *weights, "tanh")),
        (ValueError, "should not be empty", lambda: ops.bottleneck_project(x, x[:0], None, x[:, :0], None)),
    ]
    z, target, *rest, lengths = cast(loss_inputs(2, 7, 3, 5, 4, [7, 3]), torch.float32)
    loss = ops.normalized_reconstruction_loss
    wrong += [
        (ValueError, "target should have z's leading sizes", lambda: loss(z, target[:, :6], *rest)),
        (TypeError, "target should be one of", lambda: loss(z, target.int(), *rest)),
        (ValueError, r"z should have shape \[B, T, d\]", lambda: loss(z[0], target[0], *rest, lengths)),
        (ValueError, r"lengths should lie within 0\.\.7", lambda: loss(z, target, *rest, lengths + 1)),
        (ValueError, "lengths should have shape", lambda: loss(z, target, *rest, lengths[:1])),
        (TypeError, "lengths should be int64", lambda: loss(z, target, *rest, lengths.float())),
    ]
    for error, message, call in wrong:
        with pytest.raises(error, match=message):
            call()


def test_raw_ops_refuse_what_does_not_fit():
    raw = torch.ops.losatok
    x, *weights = cast(projection((3,), 5, 4, 2), torch.float32)
    with pytest.raises(ValueError, match="weight_in"):
        raw.bottleneck_project_forward(x[:, :4], *weights, "gelu", False)
    with pytest.raises(ValueError, match="bias_in"):
        raw.bottleneck_project_forward(x, weights[0], weights[3], *weights[2:], "gelu", False)
    with pytest.raises(ValueError, match="activation"):
        raw.bottleneck_project_forward(x, *weights, "tanh", False)
    with pytest.raises(ValueError, match="hidden"):
        raw.bottleneck_project_backward(x[:, :2], x, x[:0], weights[0], weights[2], "gelu", True, True)
    with pytest.raises(ValueError, match="target"):
        raw.normalized_reconstruction_loss_forward(x[None], x[None, :2, :2], *weights, None, "gelu", True)


def test_native_module_is_loaded():
    assert _native.module is not None, _native.failure


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("long", [("z",), ("target",), ("z", "target")], ids="+".join)
def test_rows_whose_squares_overflow_are_normalised_all_the_same(long, dtype):
    """As for rows a power of two shorter: how long a row is does not matter to the loss, and divides its gradient."""
    factor = 2.0 ** (700 if dtype == torch.float64 else 100)
    inputs = cast(loss_inputs(2, 7, 3, 5, 4, None, bias=False), dtype)
    long_inputs = [tensor if tensor is None else tensor.clone() for tensor in inputs]
    for name in long:
        long_inputs[["z", "target"].index(name)][:, 1] *= factor
    exact, exact_grad = evaluate(
        ops.normalized_reconstruction_loss, cast(inputs, torch.float64), [0], "reference", activation="none"
    )
    loss, grad = evaluate(ops.normalized_reconstruction_loss, long_inputs, [0], "native", activation="none")
    grad = grad.double()
    if "z" in long:
        grad[:, 1] *= factor
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=0)
    torch.testing.assert_close(grad, exact_grad, rtol=tolerance, atol=tolerance * exact_grad.abs().max())
