"""The pitch tracker on sounds whose pitch is known, and pitch errors that are as they were made."""

import math

import pytest
import torch

from losatok_ext.evaluation.metrics.pitch import pitch_error, track_pitch

RATE = 16_000


def voice(hertz, samples=8_000, rate=RATE):
    """Harmonics of ``hertz`` (a number or [samples]) with falling strength, [samples] float64."""
    phase = torch.cumsum(torch.as_tensor(hertz, dtype=torch.float64).expand(samples) / rate, 0)
    return sum(torch.sin(2 * torch.pi * k * phase + k) / k for k in range(1, 6))


@pytest.mark.parametrize("hertz", [63.0, 100.0, 220.5, 441.0, 590.0])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_steady_pitch_is_found_within_two_cents(hertz, rate):
    track = track_pitch(0.1 * voice(hertz, rate // 2, rate), rate)
    assert len(track) == rate // 2 // round(0.01 * rate) + 1
    inner = track[4:-6]
    assert float((1200 * (inner / hertz).log2()).abs().max()) < 2.5


def test_a_glide_is_followed_where_its_frames_are_centred():
    samples = 16_000
    hertz = torch.linspace(120, 240, samples, dtype=torch.float64)
    track = track_pitch(voice(hertz, samples), RATE)
    # A frame compares two windows a period apart: what it tells of lies half a period behind its first window's middle.
    frames = torch.arange(10, 90)
    expected = 120 + 120 * (frames * 160) / samples
    assert float((1200 * (track[10:90] / expected).log2()).abs().max()) < 25


def test_noise_and_silence_are_unvoiced():
    assert not track_pitch(torch.randn(16_000), RATE).any()
    assert not track_pitch(torch.zeros(8_000), RATE).any()
    assert not track_pitch(1e-7 * voice(150.0), RATE).any()


def test_what_is_far_quieter_than_the_loudest_is_unvoiced():
    signal = voice(150.0, 16_000)
    signal[8_000:] *= 1e-3
    track = track_pitch(signal, RATE)
    assert bool((track[5:45] > 0).all())
    assert not track[55:].any()


def test_errors_are_those_that_were_made():
    reference = voice(200.0)
    same = pitch_error(reference, reference, RATE)
    assert (same.cents, same.fine, same.gross, same.voicing, same.frames) == (0.0, 0.0, 0.0, 0.0, 51)
    semitone = pitch_error(voice(200.0 * 2 ** (1 / 12)), reference, RATE)
    assert semitone.cents == pytest.approx(100, abs=6)
    assert (semitone.gross, semitone.fine) == (0, semitone.cents)
    fifth = pitch_error(voice(300.0), reference, RATE)
    assert fifth.cents == pytest.approx(702, abs=15)
    assert (fifth.gross, fifth.fine) == (1, None)
    mixed = torch.cat([voice(210.0, 4_000), voice(300.0, 4_000)])
    parts = pitch_error(mixed, reference, RATE)
    assert parts.fine == pytest.approx(84.5, abs=8)
    assert parts.gross == pytest.approx(0.5, abs=0.08)
    assert parts.cents == pytest.approx((0.5 * 84.5**2 + 0.5 * 702**2) ** 0.5, rel=0.1)
    half = reference.clone()
    half[4_000:] = 0
    assert pitch_error(half, reference, RATE).voicing == pytest.approx(0.5, abs=0.06)
    none = pitch_error(torch.zeros(8_000), reference, RATE)
    assert (none.cents, none.gross, none.voiced) == (None, None, 0)
    assert none.voicing > 0.9


def test_a_long_clip_is_tracked_in_blocks_as_a_short_one(monkeypatch):
    signal = voice(torch.linspace(90, 400, 16_000, dtype=torch.float64), 16_000)
    whole = track_pitch(signal, RATE)
    monkeypatch.setattr("losatok_ext.evaluation.metrics.pitch._BLOCK", 7)
    torch.testing.assert_close(track_pitch(signal, RATE), whole, rtol=1e-12, atol=0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"at least one sample, got \[0\]"):
        track_pitch(torch.zeros(0), RATE)
    with pytest.raises(ValueError, match="lowest < highest"):
        track_pitch(torch.zeros(100), RATE, 500, 100)
    with pytest.raises(ValueError, match="as long"):
        pitch_error(torch.zeros(3), torch.zeros(4), RATE)
    assert math.isfinite(float(track_pitch(torch.ones(1), RATE).sum()))
