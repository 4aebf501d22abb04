"""Moments, ranks and baselines: against closed forms, numpy-free definitions, and each other."""

import math

import pytest
import torch

from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics import rank
from losatok_ext.evaluation.metrics.baselines import PCA, ChannelMerge, take_moments


@pytest.fixture
def frames():
    """[500, 12] float64 of falling variances along turned axes, about a large mean."""
    axes = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    return torch.randn(500, 12, dtype=torch.float64) * torch.logspace(1, -2, 12, dtype=torch.float64) @ axes + 1e4


def test_moments_of_blocks_are_those_of_all(frames):
    moments = take_moments([frames[:1], frames[1:200], frames[200:200], frames[200:]])
    assert moments.count == 500
    torch.testing.assert_close(moments.mean, frames.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance, torch.cov(frames.t(), correction=0), rtol=1e-8, atol=1e-12)
    spectrum = torch.linalg.svdvals(frames - frames.mean(0)).square() / 500
    torch.testing.assert_close(moments.variances(), spectrum, rtol=1e-6, atol=1e-12)


def test_moments_refuse_what_they_cannot_add(frames):
    moments = take_moments(frames)
    with pytest.raises(ValueError, match=r"shape \[N, 12\], got \[3, 4\]"):
        moments.add(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="NaN"):
        moments.add(torch.full((1, 12), math.nan))
    with pytest.raises(UserError, match="no frames"):
        take_moments([])


def test_ranks_of_known_spectra():
    assert rank.effective_rank(torch.ones(7)) == pytest.approx(7)
    assert rank.participation_ratio(torch.ones(7)) == pytest.approx(7)
    assert rank.effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert rank.participation_ratio(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert (rank.effective_rank(torch.zeros(3)), rank.participation_ratio(torch.zeros(3))) == (0, 0)
    # Singular values 2 and 1: shares 2/3 and 1/3.
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert rank.effective_rank(torch.tensor([4.0, 1.0])) == pytest.approx(math.exp(entropy))
    assert rank.participation_ratio(torch.tensor([4.0, 1.0])) == pytest.approx(25 / 17)


def test_explained_variance_and_how_many_dimensions_it_takes():
    variances = torch.tensor([6.0, 3.0, 1.0])
    assert rank.explained_variance(variances).tolist() == pytest.approx([0.6, 0.9, 1.0])
    assert [rank.dimensions_for(variances, share) for share in (0.5, 0.6, 0.61, 0.9, 1.0)] == [1, 1, 2, 2, 3]
    assert rank.explained_variance(torch.zeros(2)).tolist() == [1, 1]


@pytest.mark.parametrize("dims", [1, 4, 12])
def test_pca_restores_what_the_spectrum_says(frames, dims):
    pca = PCA(dims).fit(frames)
    reduced = pca.transform(frames)
    assert reduced.shape == (500, dims)
    moments = take_moments(frames)
    error = (pca.restore(reduced) - frames).square().sum(1).mean()
    kept = float(rank.explained_variance(moments.variances())[dims - 1])
    assert 1 - float(error / moments.covariance.trace()) == pytest.approx(kept, abs=1e-9)
    assert pca.explained(moments) == pytest.approx(kept, abs=1e-9)
    covariance = torch.cov(reduced.t(), correction=0).reshape(dims, dims)
    torch.testing.assert_close(covariance.diagonal(), moments.variances()[:dims], rtol=1e-6, atol=1e-10)
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 1e-6


def test_merging_averages_neighbours_and_restores_the_best_constant():
    frames = torch.randn(50, 7, dtype=torch.float64)
    merge = ChannelMerge(3).fit(frames)
    edges = ((0, 2), (2, 5), (5, 7))
    expected = torch.stack([frames[:, low:high].mean(1) for low, high in edges], 1)
    torch.testing.assert_close(merge.transform(frames), expected)
    groups = [(frames - frames.mean(0))[:, low:high] for low, high in edges]
    restored = torch.cat([group.mean(1, keepdim=True).expand_as(group) for group in groups], 1) + frames.mean(0)
    torch.testing.assert_close(merge.restore(merge.transform(frames)), restored)
    error = (restored - frames).square().sum(1).mean() / take_moments(frames).covariance.trace()
    assert merge.explained(take_moments(frames)) == pytest.approx(1 - float(error), abs=1e-9)
    assert merge.explained(take_moments(frames)) < PCA(3).fit(frames).explained(take_moments(frames))


def test_other_frames_than_those_fitted_to(frames):
    for reduction in (PCA(3), ChannelMerge(3)):
        reduction.fit(frames[:100])
        other = frames[100:] + 0.3
        error = (reduction.restore(reduction.transform(other)) - other).square().sum(1).mean()
        moments = take_moments(other)
        assert reduction.explained(moments) == pytest.approx(1 - float(error / moments.covariance.trace()), abs=1e-6)


def test_components_do_not_depend_on_the_sign_that_the_solver_chose(frames):
    down = PCA(5).fit(frames)._fitted()[1]
    assert bool((down.gather(0, down.abs().argmax(0, keepdim=True)) > 0).all())
    assert PCA(2).fit(frames.float()).transform(frames.float()).dtype == torch.float32


def test_what_does_not_fit_is_said(frames):
    with pytest.raises(UserError, match="pca:13 needs as many dimensions, and these features have 12"):
        PCA(13).fit(frames)
    with pytest.raises(ValueError, match="dims should be at least 1"):
        ChannelMerge(0)
    with pytest.raises(RuntimeError, match="call fit first"):
        PCA(2).transform(frames)
