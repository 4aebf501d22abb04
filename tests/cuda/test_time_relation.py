"""The time-relation CUDA kernels and bindings, executed on the CPU by the host shim, against the reference in fp64."""

import pytest
import torch

from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext.ops.reference import time_relation as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(dtype, batch, time, low_features, high_features, lengths=None):
    low = torch.randn(batch, time, low_features).to(dtype)
    high = torch.randn(batch, time, high_features).to(dtype)
    for b, length in enumerate(lengths if lengths is not None else []):
        low[b, length:] = float("nan")
        high[b, length:] = float("nan")
    return low, high


def define(low, high, lengths, window):
    low = low.nan_to_num().detach().clone().requires_grad_()
    loss = reference.time_relation_loss(low, high.nan_to_num(), lengths, None if window < 0 else window)
    return loss.detach(), torch.autograd.grad(loss, low)[0]


def check(ops, low, high, lengths=None, window=-1, algorithm="tiled", energy=None, call=None):
    def run():
        return ops("time_relation_forward", low, high, lengths, window, algorithm, energy, True)

    loss, grad = call(run) if call else run()
    exact, exact_grad = define(low.double(), high.double(), lengths, window)
    same, same_grad = define(low, high, lengths, window)
    assert loss.dtype == grad.dtype == torch.float32
    assert_within_budget(loss, same, exact, name="loss")
    assert_within_budget(grad, same_grad, exact_grad, factor=GRADIENT_FACTOR, name="grad_low")
    alone, nothing = ops("time_relation_forward", low, high, lengths, window, algorithm, energy, False)
    assert_within_budget(alone, same, exact, name="loss without gradient")
    assert nothing.shape == (0,)
    return loss, grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("algorithm", "window"), [("tiled", -1), ("banded", 5), ("factored", -1)])
def test_every_algorithm_in_every_order_of_threads_with_nan_past_lengths(ops, in_every_order, dtype, algorithm, window):
    lengths = torch.tensor([70, 41, 0])
    low, high = draw(dtype, 3, 70, 9, 24, lengths)
    check(ops, low, high, lengths, window, algorithm, call=in_every_order)


def test_more_items_than_a_warp_has_lanes_in_every_order_of_threads(ops, in_every_order):
    lengths = torch.arange(70) % 4
    low, high = draw(torch.float32, 70, 3, 4, 6, lengths)
    check(ops, low, high, lengths, call=in_every_order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("time", "low_features", "high_features"), [(2, 3, 5), (3, 1, 1), (65, 130, 36), (130, 16, 8)])
@pytest.mark.parametrize("algorithm", ["tiled", "factored", "auto"])
def test_any_sizes(ops, dtype, time, low_features, high_features, algorithm):
    low, high = draw(dtype, 2, time, low_features, high_features)
    check(ops, low, high, algorithm=algorithm)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["tiled", "factored"])
def test_one_frame_is_like_itself(ops, dtype, algorithm):
    low, high = draw(dtype, 2, 1, 3, 5)
    loss, grad = ops("time_relation_forward", low, high, None, -1, algorithm, None, True)
    assert 0 <= loss < 1e-6
    assert grad.abs().max() < 1e-5


@pytest.mark.parametrize("window", [0, 1, 63, 64, 100, 148, 149, 1000])
def test_every_window(ops, window):
    lengths = torch.tensor([150, 90])
    low, high = draw(torch.float32, 2, 150, 8, 12, lengths)
    check(ops, low, high, lengths, window, "banded")
    expected = reference.gram_energy(high.nan_to_num().double(), lengths, window)
    energy = ops("gram_energy_forward", high, lengths, window)
    assert torch.allclose(energy.double(), expected, rtol=1e-5)


def test_long_clips_are_cut_in_time_and_batches_in_items(ops):
    lengths = torch.tensor([600, 200, 599])
    low, high = draw(torch.float32, 3, 600, 8, 24, lengths)
    loss, grad = check(ops, low, high, lengths, algorithm="factored")
    energy = ops("gram_energy_forward", high, lengths, -1)
    exact = reference.gram_energy(high.nan_to_num().double(), lengths)
    same = reference.gram_energy(high.nan_to_num(), lengths)
    assert energy.dtype == torch.float32
    assert_within_budget(energy, same, exact, name="energy")
    cached, cached_grad = check(ops, low, high, lengths, algorithm="factored", energy=energy)
    assert torch.allclose(cached, loss, rtol=1e-5)
    assert cached_grad.equal(grad)
    automatic, _ = check(ops, low, high, lengths, algorithm="auto", energy=energy)
    assert automatic.equal(cached)


@pytest.mark.parametrize("dtype", DTYPES)
def test_energy_in_every_order_of_threads(ops, in_every_order, dtype):
    lengths = torch.tensor([70, 33])
    _, high = draw(dtype, 2, 70, 1, 24, lengths)
    (energy,) = in_every_order(lambda: [ops("gram_energy_forward", high, lengths, -1)])
    exact = reference.gram_energy(high.nan_to_num().double(), lengths)
    assert_within_budget(energy, reference.gram_energy(high.nan_to_num(), lengths), exact, name="energy")


@pytest.mark.parametrize("algorithm", ["tiled", "factored"])
def test_strided_inputs(ops, algorithm):
    low, high = torch.randn(20, 2, 24), torch.randn(2, 24, 20)
    low, high = low.transpose(0, 1)[:, 1:, 3:12], high.transpose(1, 2)[:, 1:]
    loss, grad = check(ops, low, high, algorithm=algorithm)
    packed, packed_grad = check(ops, low.contiguous(), high.contiguous(), algorithm=algorithm)
    assert torch.allclose(loss, packed)
    assert torch.allclose(grad, packed_grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("algorithm", ["tiled", "factored"])
def test_equal_relations_cost_nothing(ops, algorithm):
    low = torch.randn(2, 70, 16)
    turned = low @ torch.linalg.qr(torch.randn(16, 16))[0]
    loss, grad = ops("time_relation_forward", low, turned, None, -1, algorithm, None, True)
    assert 0 <= loss < 1e-6
    assert grad.abs().max() < 1e-6


def test_a_row_of_zeros_gets_a_finite_gradient(ops):
    low, high = draw(torch.float32, 1, 6, 5, 7)
    low[0, 2] = 0
    check(ops, low, high)
    check(ops, low, high, algorithm="factored")


@pytest.mark.parametrize("algorithm", ["tiled", "factored", "auto"])
@pytest.mark.parametrize(("batch", "time"), [(0, 5), (3, 0), (2, 6)])
def test_without_a_valid_pair_the_loss_is_zero(ops, algorithm, batch, time):
    lengths = torch.zeros(batch, dtype=torch.int64)
    low, high = draw(torch.float32, batch, time, 4, 6, lengths)
    loss, grad = ops("time_relation_forward", low, high, lengths, -1, algorithm, None, True)
    assert loss == 0
    assert grad.shape == low.shape
    assert (grad == 0).all()
    energy = ops("gram_energy_forward", high, lengths, -1)
    assert energy.equal(torch.zeros(batch))


def test_bad_input_is_named(ops):
    low, high = draw(torch.float32, 1, 6, 5, 7)
    with pytest.raises(TypeError, match="low is Double; the CUDA kernels take float32"):
        ops("time_relation_forward", low.double(), high.double(), None, -1, "tiled", None, True)
    with pytest.raises(TypeError, match="high should be Float"):
        ops("time_relation_forward", low, high.bfloat16(), None, -1, "tiled", None, True)
    with pytest.raises(ValueError, match="algorithm should be one of auto"):
        ops("time_relation_forward", low, high, None, -1, "fast", None, True)
    with pytest.raises(ValueError, match="should come without a window"):
        ops("time_relation_forward", low, high, None, 2, "factored", None, True)
    with pytest.raises(ValueError, match=r"lengths should have shape \[1\]"):
        ops("time_relation_forward", low, high, torch.tensor([1, 2]), -1, "tiled", None, True)
