"""The bottleneck's CUDA kernels and bindings, executed on the CPU by the host shim, against the reference in fp64."""

import pytest
import torch

from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext.ops.reference import bottleneck as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ["x", "weight_in", "bias_in", "weight_out", "bias_out"]


def wide(tensor):
    return None if tensor is None else tensor.double()


def mlp(dtype, features, hidden, out, bias=True):
    def draw(*shape):
        return (torch.randn(*shape) / shape[-1] ** 0.5).to(dtype)

    return draw(hidden, features), draw(hidden) if bias else None, draw(out, hidden), draw(out) if bias else None


def gradients(function, tensors, grad=None):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    present = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(function(*leaves), present, grad))
    return [None if leaf is None else next(found) for leaf in leaves]


def check_project(ops, x, parameters, activation="gelu", call=None):
    def run():
        return ops("bottleneck_project_forward", x, *parameters, activation, True)

    z, hidden = call(run) if call else run()
    same = reference.bottleneck_project(x, *parameters, activation)
    exact = reference.bottleneck_project(wide(x), *map(wide, parameters), activation)
    assert_within_budget(z, same, exact, name="z")
    pre = torch.nn.functional.linear(x, parameters[0], parameters[1])
    exact_pre = torch.nn.functional.linear(wide(x), wide(parameters[0]), wide(parameters[1]))
    assert_within_budget(hidden, pre, exact_pre, name="hidden")
    without, nothing = ops("bottleneck_project_forward", x, *parameters, activation, False)
    assert without.equal(z)
    assert nothing.shape == (0, hidden.shape[1])
    return hidden


def check_backward(ops, x, parameters, hidden, activation="gelu", call=None):
    grad = torch.randn(x.shape[0], parameters[2].shape[0]).to(x.dtype)

    def run():
        return ops("bottleneck_project_backward", grad, x, hidden, parameters[0], parameters[2], activation, True, True)

    def loss(*tensors):
        return reference.bottleneck_project(*tensors, activation)

    got = call(run) if call else run()
    same = gradients(loss, [x, *parameters], grad)
    exact = gradients(loss, [wide(x), *map(wide, parameters)], wide(grad))
    for name, mine, theirs, truth in zip(NAMES, got, same, exact, strict=True):
        if theirs is not None:
            assert mine.dtype == x.dtype
            assert_within_budget(mine, theirs, truth, factor=GRADIENT_FACTOR, name=f"grad_{name}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_project_and_its_backward_in_every_order_of_threads(ops, in_every_order, dtype):
    x, parameters = torch.randn(35, 24).to(dtype), mlp(dtype, 24, 136, 20)
    hidden = check_project(ops, x, parameters, call=in_every_order)
    check_backward(ops, x, parameters, hidden, call=in_every_order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "features", "hidden", "out"),
    [(1, 1, 1, 1), (5, 7, 9, 3), (16, 33, 64, 128), (17, 64, 65, 129), (70, 16, 200, 260), (150, 8, 100, 140)],
)
def test_any_sizes(ops, dtype, rows, features, hidden, out):
    x, parameters = torch.randn(rows, features).to(dtype), mlp(dtype, features, hidden, out)
    check_backward(ops, x, parameters, check_project(ops, x, parameters))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_take_the_large_tiles(ops, dtype):
    x, parameters = torch.randn(4133, 16).to(dtype), mlp(dtype, 16, 24, 8)
    check_project(ops, x, parameters)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_every_activation(ops, activation):
    x, parameters = 3 * torch.randn(20, 12), mlp(torch.float32, 12, 20, 10)
    hidden = check_project(ops, x, parameters, activation)
    check_backward(ops, x, parameters, hidden, activation)


def test_without_biases(ops):
    x, parameters = torch.randn(20, 12), mlp(torch.float32, 12, 20, 10, bias=False)
    check_backward(ops, x, parameters, check_project(ops, x, parameters))
    parameters = mlp(torch.float32, 12, 20, 140, bias=False)
    check_project(ops, x, parameters)


@pytest.mark.parametrize("out", [10, 140, 300])
def test_strided_and_offset_inputs(ops, out):
    parameters = mlp(torch.float32, 12, 20, out)
    x = torch.randn(41, 30)[1::2, 5:17]
    weight = torch.randn(12, 20)[:, :].t()  # features far apart
    hidden = check_project(ops, x, (weight, *parameters[1:]))
    grad = torch.randn(out, 20).t()
    got = ops("bottleneck_project_backward", grad, x, hidden, weight, parameters[2], "gelu", True, True)
    packed = [t.contiguous() for t in (grad, x, hidden, weight, parameters[2])]
    for mine, theirs in zip(got, ops("bottleneck_project_backward", *packed, "gelu", True, True), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_no_rows_and_gradients_not_asked_for(ops):
    parameters = mlp(torch.float32, 12, 20, 10)
    x = torch.randn(0, 12)
    z, hidden = ops("bottleneck_project_forward", x, *parameters, "gelu", True)
    assert z.shape == (0, 10)
    assert hidden.shape == (0, 20)
    grads = ops("bottleneck_project_backward", z, x, hidden, parameters[0], parameters[2], "gelu", True, True)
    assert [list(g.shape) for g in grads] == [[0, 12], [20, 12], [20], [10, 20], [10]]
    assert all((g == 0).all() for g in grads)
    for rows in (0, 5):
        x = torch.randn(rows, 12)
        z, hidden = ops("bottleneck_project_forward", x, *parameters, "gelu", True)
        for need_x, need_parameters in ((True, False), (False, True), (False, False)):
            grads = ops(
                "bottleneck_project_backward",
                *(z, x, hidden, parameters[0], parameters[2], "gelu", need_x, need_parameters),
            )
            shapes = [[rows, 12] if need_x else [0]]
            shapes += [[20, 12], [20], [10, 20], [10]] if need_parameters else [[0]] * 4
            assert [list(g.shape) for g in grads] == shapes


def draw_loss_case(dtype, batch, time, latent, hidden, features, target_dtype=None):
    weight_in, bias_in, weight_out, bias_out = mlp(dtype, latent, hidden, features)
    z = torch.randn(batch, time, latent).to(dtype)
    target = torch.randn(batch, time, features).to(target_dtype or dtype)
    return z, target, (weight_in, bias_in, weight_out, bias_out)


def check_loss(ops, z, target, parameters, lengths=None, activation="gelu", call=None):
    def run():
        return ops("normalized_reconstruction_loss_forward", z, target, *parameters, lengths, activation, True)

    loss, *grads = call(run) if call else run()
    clean_z, clean_target = z.nan_to_num(), target.nan_to_num()

    def define(dtype):
        def function(z, *parameters):
            return reference.normalized_reconstruction_loss(z, clean_target.to(dtype), *parameters, lengths, activation)

        tensors = [t if t is None else t.to(dtype) for t in (clean_z, *parameters)]
        return function(*tensors), gradients(function, tensors)

    exact, exact_grads = define(torch.float64)
    same, same_grads = define(z.dtype)
    assert loss.dtype == torch.float32
    assert_within_budget(loss, same, exact, name="loss")
    for name, mine, theirs, truth in zip(["z", *NAMES[1:]], grads, same_grads, exact_grads, strict=True):
        if theirs is not None:
            assert mine.dtype == torch.float32
            assert_within_budget(mine, theirs, truth, factor=GRADIENT_FACTOR, name=f"grad_{name}")
    alone, *nothing = ops("normalized_reconstruction_loss_forward", z, target, *parameters, lengths, activation, False)
    assert alone.equal(loss)
    assert all(n.shape == (0,) for n in nothing)
    return loss


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_in_every_order_of_threads_with_nan_past_lengths(ops, in_every_order, dtype):
    z, target, parameters = draw_loss_case(dtype, 3, 7, 12, 20, 36)
    lengths = torch.tensor([7, 3, 0])
    for b, length in enumerate(lengths):
        z[b, length:] = float("nan")
        target[b, length:] = float("nan")
    check_loss(ops, z, target, parameters, lengths, call=in_every_order)


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_takes_targets_of_any_type(ops, dtype, target_dtype):
    z, target, parameters = draw_loss_case(dtype, 2, 5, 5, 9, 131, target_dtype)
    check_loss(ops, z, target, parameters)


def test_loss_over_several_blocks_of_rows(ops):
    z, target, parameters = draw_loss_case(torch.float32, 3, 200, 12, 20, 36)
    check_loss(ops, z, target, parameters, torch.tensor([200, 120, 199]), activation="silu")


def test_loss_of_strided_inputs_and_without_biases(ops):
    z, target, parameters = draw_loss_case(torch.float32, 5, 2, 12, 20, 36)
    check_loss(ops, z.transpose(0, 1), target.transpose(0, 1), (parameters[0], None, parameters[2], None))


def test_loss_of_zero_rows(ops):
    """A row of norm 0 is normalised to 0, and what it pushes back is finite."""
    z, target, (weight_in, _, weight_out, _) = draw_loss_case(torch.float32, 1, 4, 12, 20, 36)
    target[0, 1] = 0
    check_loss(ops, z, target, (weight_in, None, weight_out, None))


@pytest.mark.parametrize(("batch", "time"), [(0, 5), (3, 0), (2, 4)])
def test_loss_without_a_valid_frame_is_zero(ops, batch, time):
    z, target, parameters = draw_loss_case(torch.float32, batch, time, 12, 20, 36)
    lengths = torch.zeros(batch, dtype=torch.int64)
    loss, *grads = ops("normalized_reconstruction_loss_forward", z, target, *parameters, lengths, "gelu", True)
    assert loss == 0
    assert grads[0].shape == z.shape
    assert all((g == 0).all() for g in grads)


def test_lengths_are_clamped_on_the_device(ops):
    z, target, parameters = draw_loss_case(torch.float32, 2, 4, 12, 20, 36)
    results = [
        ops("normalized_reconstruction_loss_forward", z, target, *parameters, torch.tensor(n), "gelu", True)
        for n in ([9, -3], [4, 0])
    ]
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_bad_input_is_named(ops):
    x, parameters = torch.randn(4, 12), mlp(torch.float32, 12, 20, 10)
    with pytest.raises(TypeError, match="x is Double; the CUDA kernels take float32"):
        ops("bottleneck_project_forward", x.double(), *map(wide, parameters), "gelu", True)
    with pytest.raises(TypeError, match="weight_in should be BFloat16"):
        ops("bottleneck_project_forward", x.bfloat16(), *parameters, "gelu", True)
    with pytest.raises(ValueError, match="activation should be one of gelu"):
        ops("bottleneck_project_forward", x, *parameters, "swish", True)
    with pytest.raises(ValueError, match="hidden should have shape"):
        ops(
            "bottleneck_project_backward",
            *(torch.randn(4, 10), x, x.new_empty(0, 20), parameters[0], parameters[2], "gelu", True, True),
        )
