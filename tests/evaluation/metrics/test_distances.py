"""Distances between sets: closed forms, the definition by a matrix root, no bias where none should be."""

import itertools

import pytest
import torch

from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.distances import bootstrap, extrapolated_frechet, frechet_distance, kernel_distance


def by_definition(x, y):
    """With eigenvalues of the product of the covariances, in float64."""
    cx, cy = torch.cov(x.t()), torch.cov(y.t())
    roots = torch.linalg.eigvals(cx @ cy).real.clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + cx.trace() + cy.trace() - 2 * roots)


@pytest.mark.parametrize(("n", "m", "dims"), [(200, 300, 5), (40, 7, 20), (6, 5, 30), (2, 2, 3)])
def test_frechet_is_as_defined_whatever_the_rank(n, m, dims):
    x = torch.randn(n, dims, dtype=torch.float64) @ torch.randn(dims, dims, dtype=torch.float64)
    y = torch.randn(m, dims, dtype=torch.float64) + 0.5
    found = frechet_distance(x, y)
    assert found == pytest.approx(by_definition(x, y), rel=1e-6, abs=1e-5)
    assert frechet_distance(y, x) == pytest.approx(found, rel=1e-9)


def test_frechet_of_one_dimension_is_known():
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)  # mean 1, variance 2
    y = 3 * x + 4  # mean 7, variance 18
    assert frechet_distance(x, y) == pytest.approx(36 + (18**0.5 - 2**0.5) ** 2)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_a_shift_and_a_large_mean_cost_no_digits():
    x = torch.randn(100, 8, dtype=torch.float64)
    assert frechet_distance(x + 1e6, x + 1e6 + 0.1) == pytest.approx(8 * 0.01, rel=1e-6)
    assert frechet_distance(x.float(), x.float() + 1) == pytest.approx(8, rel=1e-5)


def test_kernel_distance_is_as_defined():
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64) * 2

    def k(a, b):
        return float((a @ b / 4 + 1) ** 3)

    within = [
        sum(k(a[i], a[j]) for i, j in itertools.permutations(range(len(a)), 2)) / (len(a) * (len(a) - 1))
        for a in (x, y)
    ]
    across = sum(k(a, b) for a in x for b in y) / 35
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * across, rel=1e-10)


def test_kernel_distance_in_blocks(monkeypatch):
    x, y = torch.randn(30, 4), torch.randn(20, 4)
    whole = kernel_distance(x, y)
    monkeypatch.setattr("losatok_ext.evaluation.metrics.distances._BLOCK", 7)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-9)


def test_only_the_kernel_distance_is_unbiased():
    draws = [torch.randn(2, 12, 6, dtype=torch.float64) for _ in range(200)]
    kernel = torch.tensor([kernel_distance(*pair) for pair in draws])
    assert abs(float(kernel.mean())) < 3 * float(kernel.std()) / 200**0.5
    frechet = torch.tensor([frechet_distance(*pair) for pair in draws])
    assert float(frechet.mean()) > 1


def test_extrapolation_takes_the_bias_of_the_generated_set_away():
    reference = list(torch.randn(3000, 1, 6, dtype=torch.float64))
    plain, better = [], []
    for _ in range(20):
        generated = list(torch.randn(40, 1, 6, dtype=torch.float64))
        plain.append(frechet_distance(torch.cat(reference), torch.cat(generated)))
        better.append(extrapolated_frechet(reference, generated))
    assert sum(plain) / 20 > 0.15
    assert abs(sum(better) / 20) < sum(plain) / 20 / 3
    with pytest.raises(UserError, match="at least 9 generated clips, got 8"):
        extrapolated_frechet(reference, reference[:8])


def test_the_bootstrap_covers_what_other_draws_give():
    truth = 2 * 0.5**2
    hits = 0
    for seed in range(30):
        x, y = list(torch.randn(60, 1, 2, dtype=torch.float64)), list(torch.randn(60, 1, 2, dtype=torch.float64) + 0.5)
        found = bootstrap(frechet_distance, x, y, 60, seed)
        hits += found.low <= truth <= found.high
        assert found.low <= found.value <= found.high
    assert hits >= 24


def test_the_bootstrap_draws_whole_clips_and_repeats_itself():
    clips = [torch.full((3, 1), float(i)) for i in range(5)]
    seen = []

    def distance(x, y):
        seen.append(x.flatten().tolist())
        return float(x.sum())

    first = bootstrap(distance, clips, clips, 10, seed=3)
    for drawn in seen:
        assert [drawn[i : i + 3] for i in range(0, 15, 3)] == [[value] * 3 for value in drawn[::3]]
    assert bootstrap(distance, clips, clips, 10, seed=3) == first
    assert bootstrap(distance, clips, clips, 10, seed=4) != first


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_bad_sets(distance):
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"y should have shape \[n, D = 3\], got \[4, 2\]"):
        distance(x, x[:, :2])
    with pytest.raises(ValueError, match="y should be finite"):
        distance(x, x * torch.nan)
    with pytest.raises(UserError, match="needs 2 rows of each, got 1"):
        distance(x, x[:1])
