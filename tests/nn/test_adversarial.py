"""Adversarial losses and feature matching against sums written out over the valid frames."""

import pytest
import torch

from losatok_ext.nn.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from losatok_ext.nn.discriminators import Scores

COUNTS = ((5, 3), (3, 2))  # valid frames of both clips in the map and in the logits


def scores(dtype=torch.float64, masked=True):
    """Two views, a map [2, 4, 5, 2] and logits [2, 3, 2] each; what lies past a length is NaN."""
    views = []
    for _ in range(2):
        values = [torch.randn(2, 4, 5, 2, dtype=dtype), torch.randn(2, 1, 3, 2, dtype=dtype)]
        lengths = [torch.tensor(counts) for counts in COUNTS]
        if masked:
            for value, counts in zip(values, COUNTS, strict=True):
                for row, count in enumerate(counts):
                    value[row, :, count:] = float("nan")
        views.append(Scores(values[1][:, 0].clone(), [values[0]], lengths if masked else None))
    return views


def valid(value, place):
    """The valid values of a map, or of logits, as one vector."""
    return torch.cat([value[row, ..., :count, :].flatten() for row, count in enumerate(COUNTS[place])])


TERMS = {
    "hinge": (lambda x: -x, lambda x: (1 - x).clamp(min=0), lambda x: (1 + x).clamp(min=0)),
    "least_squares": (lambda x: (x - 1) ** 2, lambda x: (x - 1) ** 2, lambda x: x**2),
}


@pytest.mark.parametrize("kind", TERMS)
def test_the_games_are_their_formulas_over_valid_frames(kind):
    pay, real_pays, fake_pays = TERMS[kind]
    reals, fakes = scores(), scores()
    real, fake = ([valid(s.logits, 1) for s in side] for side in (reals, fakes))
    torch.testing.assert_close(generator_loss(fakes, kind), sum(pay(x).mean() for x in fake) / 2)
    expected = sum(real_pays(r).mean() + fake_pays(f).mean() for r, f in zip(real, fake, strict=True)) / 2
    torch.testing.assert_close(discriminator_loss(reals, fakes, kind), expected)


@pytest.mark.parametrize("normalize", [False, True])
def test_feature_matching_is_its_formula_over_valid_frames(normalize):
    reals, fakes = scores(), scores()
    for fake in fakes:
        fake.maps[0].requires_grad_(True)
    for real in reals:
        real.maps[0].requires_grad_(True)
    expected = 0.0
    for real, fake in zip(reals, fakes, strict=True):
        theirs, ours = valid(real.maps[0], 0), valid(fake.maps[0], 0)
        expected += (ours - theirs).abs().mean() / (theirs.abs().mean() if normalize else 1.0) / 2
    loss = feature_matching_loss(reals, fakes, normalize)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert reals[0].maps[0].grad is None
    assert torch.isfinite(fakes[0].maps[0].grad).all()
    assert not fakes[0].maps[0].grad[1, :, 3:].any()


@pytest.mark.parametrize("kind", TERMS)
def test_without_lengths_every_frame_counts(kind):
    reals, fakes = scores(masked=False), scores(masked=False)
    full = [s._replace(lengths=[torch.tensor([5, 5]), torch.tensor([3, 3])]) for s in fakes]
    torch.testing.assert_close(generator_loss(fakes, kind), generator_loss(full, kind))
    torch.testing.assert_close(discriminator_loss(reals, fakes, kind), discriminator_loss(reals, full, kind))
    torch.testing.assert_close(
        feature_matching_loss(reals, fakes),
        feature_matching_loss([r._replace(lengths=f.lengths) for r, f in zip(reals, full, strict=True)], full),
    )


def test_low_precision_scores_give_float32_losses():
    reals, fakes = scores(torch.bfloat16), scores(torch.bfloat16)
    exact = [[Scores(s.logits.double(), [s.maps[0].double()], s.lengths) for s in side] for side in (reals, fakes)]
    with torch.autocast("cpu", torch.bfloat16):
        found = generator_loss(fakes), discriminator_loss(reals, fakes), feature_matching_loss(reals, fakes, True)
    wanted = generator_loss(exact[1]), discriminator_loss(*exact), feature_matching_loss(*exact, True)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)


def test_gradients_in_float64():
    reals, fakes = scores(masked=False), scores(masked=False)
    for kind in TERMS:
        assert torch.autograd.gradcheck(
            lambda x, kind=kind: (
                discriminator_loss(reals, [fakes[0]._replace(logits=x), fakes[1]], kind)
                + generator_loss([fakes[0]._replace(logits=x)], kind)
            ),
            (fakes[0].logits.clone().requires_grad_(True),),
        )


def test_a_batch_of_empty_clips_costs_nothing():
    none = [s._replace(lengths=[torch.zeros(2, dtype=torch.int64)] * 2) for s in scores()]
    assert generator_loss(none) == 0
    assert discriminator_loss(none, none) == 0
    assert feature_matching_loss(none, none, True) == 0


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="kind should be one of 'hinge', 'least_squares', got 'wasserstein'"):
        generator_loss(scores(), "wasserstein")
    with pytest.raises(ValueError, match="at least one view"):
        discriminator_loss([], [])
    with pytest.raises(ValueError, match="reals should hold the scores of at least one view"):
        feature_matching_loss([], [])
