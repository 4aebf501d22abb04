"""Probes and splits by themselves: optima, votes, and sources that stay together."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losatok_ext.evaluation.metrics import probes
from losatok_ext.evaluation.metrics.probes import Data
from losatok_ext.evaluation.metrics.splits import SHARES, split_by_source


def clouds(count, spread=0.3, classes=3, dims=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(classes, dims, dtype=torch.float64)
    y = torch.arange(count) % classes
    return Data(centres[y] + spread * torch.randn(count, dims, dtype=torch.float64, generator=generator), y)


@pytest.mark.parametrize("penalty", [1e-4, 0.1])
def test_logistic_regression_is_at_the_one_minimum(penalty):
    data = clouds(90)
    weights = probes.fit_logistic(data, 3, penalty)
    shares = torch.softmax(data.x @ weights[:-1] + weights[-1], 1)
    off = (shares - torch.nn.functional.one_hot(data.y, 3)) / 90
    gradient = data.x.t() @ off + penalty * weights[:-1]
    assert float(gradient.abs().max()) < 1e-5
    assert float(off.sum(0).abs().max()) < 1e-5
    start = torch.randn(5, 3, dtype=torch.float64)
    again = probes.fit_logistic(data, 3, penalty, start)
    torch.testing.assert_close(again[:-1], weights[:-1], rtol=0, atol=max(2e-5 / penalty, 1e-4))


def test_logistic_regression_that_cannot_converge_says_so():
    data = clouds(30)
    with pytest.raises(RuntimeError, match="did not converge"):
        probes.fit_logistic(Data(data.x * math.nan, data.y), 3, 0.1)


def test_votes_are_those_of_the_nearest():
    train = Data(torch.tensor([[1.0, 0], [1, 1], [0, 1], [-1, 0]], dtype=torch.float64), torch.tensor([0, 1, 1, 0]))
    x = torch.tensor([[2.0, 0.1]], dtype=torch.float64)
    cosine = torch.nn.functional.normalize(train.x, dim=1) @ torch.nn.functional.normalize(x, dim=1)[0]
    one = probes.neighbour_votes(train, x, 2, 1)
    assert one.argmax() == 0
    assert float(one[0, 1]) == 0
    weights = ((cosine - 1) / 0.07).exp()
    three = probes.neighbour_votes(train, x, 2, 3)
    torch.testing.assert_close(three[0], torch.stack([weights[0], weights[1] + weights[2]]))
    torch.testing.assert_close(probes.neighbour_votes(train, x, 2, 99)[0, 0], weights[0] + weights[3])


def test_votes_in_blocks_are_those_at_once(monkeypatch):
    train, test = clouds(40), clouds(30, seed=1)
    whole = probes.neighbour_votes(train, test.x, 3, 5)
    monkeypatch.setattr(probes, "_BLOCK", 7)
    torch.testing.assert_close(probes.neighbour_votes(train, test.x, 3, 5), whole)


@pytest.mark.parametrize("name", probes.PROBES)
def test_probes_tell_apart_what_can_be_and_guess_else(name):
    train, validation, test = (clouds(n, 0.1, seed=s) for s, n in enumerate((60, 30, 30)))
    score = probes.PROBES[name](train, validation, test, 3)
    assert (score.accuracy, score.balanced) == (1.0, 1.0)
    noise = [Data(torch.randn(n, 4, dtype=torch.float64), torch.arange(n) % 3) for n in (300, 100, 300)]
    assert probes.PROBES[name](*noise, 3).accuracy < 0.45


def test_a_strong_penalty_is_chosen_where_features_are_many_and_clips_few():
    torch.manual_seed(0)
    signal = [clouds(n, 1.0, classes=2, dims=2, seed=s) for s, n in enumerate((30, 200, 200))]
    wide = [Data(torch.cat([d.x, torch.randn(len(d.x), 60, dtype=torch.float64)], 1), d.y) for d in signal]
    assert probes.linear_probe(*wide, 2).setting >= 1e-2


def test_standardising_takes_the_training_set_only():
    train, other = torch.randn(50, 3) * 5 + 2, torch.randn(20, 3)
    train[:, 2] = 7
    a, b = probes.standardise(train, other)
    torch.testing.assert_close(a.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(a.std(0, unbiased=False)[:2], torch.ones(2, dtype=torch.float64))
    assert not a[:, 2].any()
    assert not b[:, 2].any()
    expected = (other.double() - train.double().mean(0)) / train.double().std(0, unbiased=False)
    torch.testing.assert_close(b[:, :2], expected[:, :2])


def test_balanced_accuracy_and_majority():
    y = torch.tensor([0, 0, 0, 1])
    assert probes.balanced_accuracy(torch.tensor([1, 1, 1, 0]), y, 3) == 0.5
    assert probes.majority(torch.tensor([1, 1, 0]), y, 3) == 0.25


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=60), st.integers(0, 99))
def test_no_source_is_ever_split(clips, seed):
    labels, sources = zip(*((label, f"s{source}") for label, source in clips), strict=True)
    places = split_by_source(labels, sources, seed)
    assert len(places) == len(clips)
    for source in set(sources):
        assert len({int(place) for place, own in zip(places, sources, strict=True) if own == source}) == 1
    assert torch.equal(places, split_by_source(labels, sources, seed))


@given(st.lists(st.integers(3, 30), min_size=2, max_size=5), st.integers(0, 99))
def test_every_class_with_three_sources_is_everywhere_in_its_share(counts, seed):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    places = split_by_source(labels, [f"clip {i}" for i in range(len(labels))], seed)
    for label, count in enumerate(counts):
        own = places[torch.tensor(labels) == label]
        found = torch.bincount(own, minlength=3)
        assert bool((found > 0).all())
        if count >= 10:
            assert (found / count).tolist() == pytest.approx(SHARES, abs=0.12)


def test_seeds_shuffle():
    labels, sources = [0, 1] * 20, [f"s{i // 2}" for i in range(40)]
    assert len({tuple(split_by_source(labels, sources, seed).tolist()) for seed in range(5)}) == 5
