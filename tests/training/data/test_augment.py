"""Augmentation: what it does to a crop, that seed and number decide it, and that nothing is the default."""

import math

import numpy as np
import pytest
import torch

from losatok_ext.errors import ConfigError
from losatok_ext.training import TrainConfig
from losatok_ext.training.config.data_options import AugmentConfig
from losatok_ext.training.config.options import DataConfig
from losatok_ext.training.data.augment import Variation, draw_variation, vary
from losatok_ext.training.data.corpus import Clip, Corpus
from losatok_ext.training.data.crops import CropSource

RATE, HOP = 16000, 640
ALWAYS = AugmentConfig(mix=1, mix_snr_db=(3, 9), gain=1, gain_db=(-6, -3), polarity=1)


def corpus(count=6, samples=20000, level=0.1):
    generator = torch.Generator().manual_seed(0)
    audio = tuple(level * torch.randn(samples + 1500 * i, generator=generator).clamp(-3, 3) for i in range(count))
    return Corpus(tuple(Clip(None, str(i), len(a)) for i, a in enumerate(audio)), RATE, HOP, (), audio)


def source(augment=None, seed=5, clips=None, workers=0):
    config = DataConfig(crop_seconds=0.4, workers=workers)
    return CropSource(clips or corpus(), config, batch_size=4, seed=seed, multiple=HOP, augment=augment)


def test_nothing_is_changed_by_default():
    for one, other in zip(source().batches(0, 5), source(AugmentConfig()).batches(0, 5), strict=True):
        assert torch.equal(one.audio, other.audio)


def test_a_gain_lies_in_its_range_and_polarity_turns_the_sign():
    plain, changed = source(), source(AugmentConfig(gain=1, gain_db=(-6, -3), polarity=1))
    levels = []
    for step in range(10):
        for before, after in zip(plain.batch(step).audio, changed.batch(step).audio, strict=True):
            ratio = float((before @ after) / (before @ before))
            torch.testing.assert_close(after, ratio * before, rtol=1e-4, atol=1e-6)
            assert ratio < 0
            levels.append(20 * math.log10(-ratio))
    assert -6 <= min(levels) < -5.5
    assert -3.5 < max(levels) <= -3


def test_what_is_mixed_in_has_the_level_that_was_drawn():
    plain, mixed = source(), source(AugmentConfig(mix=1, mix_snr_db=(3, 9)))
    levels = []
    for step in range(10):
        for before, after in zip(plain.batch(step).audio, mixed.batch(step).audio, strict=True):
            added = after - before
            assert abs(float(before @ added) / float(before.norm() * added.norm())) < 0.2  # another clip
            levels.append(20 * math.log10(float(before.norm() / added.norm())))
    assert 3 - 1e-3 <= min(levels) < 3.8
    assert 8.2 < max(levels) <= 9 + 1e-3


def test_a_shorter_clip_lies_somewhere_within_the_crop():
    crop, other = torch.full((1000,), 0.1), torch.full((100,), 0.3)
    for place in (0.0, 0.5, 0.999999):
        mixed = vary(crop, Variation(None, False, 0.0, (0, 0, place)), other) - crop
        where = mixed.nonzero().squeeze(1)
        assert len(where) == 100
        assert int(where[0]) == int(place * 901)
        assert mixed[where] == pytest.approx(0.1)  # 0 dB: as strong where it sounds as the crop is


@pytest.mark.parametrize("which", ["crop", "other"])
def test_silence_is_left_alone(which):
    sounding, silent = torch.full((500,), 0.2), torch.zeros(500)
    crop, other = (silent, sounding) if which == "crop" else (sounding, silent)
    assert torch.equal(vary(crop, Variation(None, False, 0.0, (0, 0, 0)), other), crop)
    assert torch.equal(vary(silent, Variation(6.0, True, None, (0, 0, 0))), silent)


def test_what_would_be_too_loud_is_scaled_down_and_the_corpus_stays_as_it_is():
    loud = corpus(level=0.3)
    before = [audio.clone() for audio in loud.audio]
    batch = source(AugmentConfig(gain=1, gain_db=(20, 20), mix=1), clips=loud).batch(0)
    for row, length in zip(batch.audio, batch.lengths.tolist(), strict=True):
        assert float(row[:length].abs().max()) == pytest.approx(1)
    assert all(torch.equal(one, other) for one, other in zip(before, loud.audio, strict=True))
    over = torch.tensor([0.5, -1.4])  # a recording beyond full scale is not touched by what does not happen
    assert vary(over, Variation(None, False, None, (0, 0, 0))) is over


def test_probabilities_are_those_asked_for():
    config = AugmentConfig(mix=0.3, gain=0.5, polarity=0.1)
    drawn = [draw_variation(config, np.random.default_rng([1, number])) for number in range(3000)]
    rates = [np.mean([v.snr_db is not None for v in drawn]), np.mean([v.gain_db is not None for v in drawn])]
    assert rates == pytest.approx([0.3, 0.5], abs=0.03)
    assert np.mean([v.flip for v in drawn]) == pytest.approx(0.1, abs=0.02)


def test_one_option_changes_nothing_of_another():
    only, both = AugmentConfig(mix=0.5), AugmentConfig(mix=0.5, gain=1, polarity=0.5)
    for number in range(50):
        one, other = (draw_variation(c, np.random.default_rng(number)) for c in (only, both))
        assert (one.snr_db, one.other) == (other.snr_db, other.other)


def test_augmented_batches_are_a_function_of_seed_and_step_alone():
    ahead = list(source(ALWAYS).batches(0, 12))
    again, threads = source(ALWAYS), source(ALWAYS)
    threads.workers = 3
    for step in (11, 0, 5):
        assert torch.equal(again.batch(step).audio, ahead[step].audio)
        assert torch.equal(again.batch(step, slice(1, 3)).audio, ahead[step].audio[1:3])
    for one, other in zip(ahead, threads.batches(0, 12), strict=True):
        assert torch.equal(one.audio, other.audio)
    assert not torch.equal(source(ALWAYS, seed=6).batch(0).audio, ahead[0].audio)


def test_the_crops_themselves_stay_those_without_augmentation():
    plain, changed = source().batch(3), source(ALWAYS).batch(3)
    assert plain.names == changed.names
    assert torch.equal(plain.lengths, changed.lengths)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["augment.mix=1.5"], "augment.mix should be a number within 0..1, got 1.5"),
        (["augment.polarity=-1"], "augment.polarity should be a number within 0..1"),
        (["augment.gain_db=[3, -3]"], "augment.gain_db should be two numbers of dB, the lower first"),
        (["augment.mix_snr_db=[0, 500]"], "augment.mix_snr_db.1. should be a number within -120..120"),
        (["augment.mix_snr_db=3"], "augment.mix_snr_db should be a list of 2"),
        (["augment.gian=1"], "did you mean augment.gain"),
    ],
)
def test_options_that_mean_nothing_are_named(assignments, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.load(assignments=assignments)
