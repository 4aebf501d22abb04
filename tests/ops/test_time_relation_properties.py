"""What must hold of the time-relation ops for any input."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext import ops
from ops.time_relation_cases import run, run_reference

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**31)
every = settings(max_examples=40, deadline=None)


def rows(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def algorithms(window=None):
    return ("auto", "tiled", "factored") if window is None else ("auto", "tiled", "banded")


@every
@given(st.integers(1, 3), sizes, sizes, seeds)
def test_zero_when_the_gram_matrices_agree(batch, time, features, seed):
    high = rows(seed, batch, time, features)
    rotation, _ = torch.linalg.qr(rows(seed + 1, features, features))
    lengths = rows(seed, batch, 2 * time, 1).sum((1, 2)).abs().long().clamp(max=time)
    for low in (high, 3 * high, high @ rotation):
        for algorithm in algorithms():
            loss, grad = run(low, high, lengths, algorithm=algorithm)
            assert abs(loss.item()) < 1e-13
            assert grad.abs().max() * low.norm(dim=-1).min() < 1e-12
        assert abs(ops.time_relation_loss(low, high, lengths, 2).item()) < 1e-13


@every
@given(sizes, st.integers(1, 12), st.integers(1, 30), seeds)
def test_permuting_time_permutes_the_gradient(time, d, D, seed):
    low, high = rows(seed, 1, time, d), rows(seed + 1, 1, time, D)
    order = torch.randperm(time, generator=torch.Generator().manual_seed(seed))
    for algorithm in algorithms():
        loss, grad = run(low, high, algorithm=algorithm)
        shuffled, shuffled_grad = run(low[:, order], high[:, order], algorithm=algorithm)
        torch.testing.assert_close(shuffled, loss, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(shuffled_grad, grad[:, order], rtol=1e-9, atol=1e-12)


@every
@given(sizes, st.integers(0, 60), st.one_of(st.none(), st.integers(0, 45)), seeds)
def test_padding_changes_nothing(time, padding, window, seed):
    low, high = rows(seed, 2, time, 6), rows(seed + 1, 2, time, 14)
    lengths = torch.tensor([time, time // 2])
    long_low, long_high = (torch.nn.functional.pad(x, (0, 0, 0, padding), value=torch.nan) for x in (low, high))
    for algorithm in algorithms(window):
        loss, grad = run(low, high, lengths, window, algorithm=algorithm)
        padded, padded_grad = run(long_low, long_high, lengths, window, algorithm=algorithm)
        torch.testing.assert_close(padded, loss, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(padded_grad[:, :time], grad, rtol=1e-9, atol=1e-12)
        assert not padded_grad[:, time:].any()
    torch.testing.assert_close(ops.gram_energy(long_high, lengths, window), ops.gram_energy(high, lengths, window))


@every
@given(st.integers(1, 3), st.integers(1, 300), st.integers(1, 20), st.integers(1, 60), seeds)
def test_all_algorithms_agree_with_the_definition(batch, time, d, D, seed):
    low, high = rows(seed, batch, time, d), rows(seed + 1, batch, time, D)
    exact = run_reference(low, high)
    energy = ops.gram_energy(high)
    results = [run(low, high, algorithm=algorithm) for algorithm in algorithms()]
    results.append(run(low, high, algorithm="factored", high_energy=energy))
    results.append(run(low, high, window=time - 1, algorithm="banded"))
    results.append(run(low, high, window=time + 3, algorithm="factored"))
    for result in results:
        torch.testing.assert_close(result, exact, rtol=1e-8, atol=1e-11)


@every
@given(st.integers(1, 300), st.integers(0, 320), seeds)
def test_banded_is_the_masked_definition(time, window, seed):
    low, high = rows(seed, 2, time, 5), rows(seed + 1, 2, time, 11)
    lengths = torch.tensor([time, (2 * time) // 3])
    exact = run_reference(low, high, lengths, window)
    for algorithm in algorithms(window):
        torch.testing.assert_close(run(low, high, lengths, window, algorithm=algorithm), exact, rtol=1e-8, atol=1e-11)


@every
@given(sizes, st.floats(1e-3, 1e3), seeds)
def test_the_length_of_rows_does_not_matter(time, scale, seed):
    low, high = rows(seed, 1, time, 6), rows(seed + 1, 1, time, 14)
    loss, grad = run(low, high)
    scaled, scaled_grad = run(scale * low, high / scale)
    torch.testing.assert_close(scaled, loss, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(scale * scaled_grad, grad, rtol=1e-9, atol=1e-12)
    assert (grad * low).sum(-1).abs().max() < 1e-12  # nothing along the row itself


@every
@given(sizes, st.integers(0, 40), seeds)
def test_the_energy_is_the_loss_of_a_latent_that_says_nothing(time, window, seed):
    high = rows(seed, 1, time, 9)
    nothing = torch.zeros(1, time, 2, dtype=torch.float64)
    pairs = min(window, time - 1)
    pairs = time * (2 * pairs + 1) - pairs * (pairs + 1)
    torch.testing.assert_close(
        ops.time_relation_loss(nothing, high, window=window) * pairs, ops.gram_energy(high, window=window)[0]
    )
