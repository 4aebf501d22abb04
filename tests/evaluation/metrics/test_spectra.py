"""Spectral distances: against their definitions in a few lines of PyTorch, on batches and behind padding."""

import itertools
import math

import pytest
import torch

from losatok_ext.audio import stft
from losatok_ext.evaluation.metrics import spectra
from small_models import tone

RATE = 16_000
FUNCTIONS = {
    "log_band": spectra.log_band_distance,
    "stft": spectra.stft_distance,
    "mel": lambda a, r, n=None: spectra.mel_distance(a, r, RATE, n),
    "convergence": spectra.spectral_convergence,
}


def bands_by_definition(clip):
    window = torch.hann_window(1024, dtype=torch.float64)
    spectrum = torch.stft(clip.double(), 1024, 256, window=window, center=True, return_complex=True).abs()
    edges = [round(513 * i / 80) for i in range(81)]
    bands = torch.stack([spectrum[low:high].mean(0) for low, high in itertools.pairwise(edges)])
    return bands.clamp(min=1e-4).log().T


def test_the_log_bands_are_as_defined():
    clip = tone(9_001, 3)
    found, frames = spectra.log_bands(clip[None])
    assert found.shape == (1, 36, 80)
    assert frames.tolist() == [36]
    torch.testing.assert_close(found[0].double(), bands_by_definition(clip), rtol=0, atol=2e-4)


def test_the_box_score_is_as_defined():
    pairs = [(tone(n, seed + 5), tone(n, seed)) for seed, n in enumerate((9_001, 4_000, 16_384))]
    ours, theirs = ([bands_by_definition(clip) for clip in clips] for clips in zip(*pairs, strict=True))
    off = sum(float((a - b).abs().sum()) for a, b in zip(ours, theirs, strict=True))
    mean = torch.cat(theirs).mean(0)
    constant = sum(float((b - mean).abs().sum()) for b in theirs)
    count = sum(b.numel() for b in theirs)
    score = spectra.log_band_score(pairs)
    assert score.distance == pytest.approx(off / count, rel=1e-5)
    assert score.constant == pytest.approx(constant / count, rel=1e-5)
    assert score.ratio == pytest.approx(off / constant, rel=1e-5)
    torch.testing.assert_close(spectra.mean_log_bands(b for _, b in pairs), mean, rtol=1e-4, atol=1e-4)
    whole = spectra.constant_spectrum_distance(pairs[0][1][None], constant=mean)
    assert float(whole) == pytest.approx(float((theirs[0] - mean).abs().mean()), rel=1e-5)


def test_the_constant_of_a_batch_is_the_mean_of_its_valid_frames():
    clips = [tone(n, seed) for seed, n in enumerate((9_001, 4_000))]
    batch = torch.full((2, 9_001), math.nan)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    lengths = torch.tensor([9_001, 4_000])
    found = spectra.constant_spectrum_distance(batch, lengths)
    mean = spectra.mean_log_bands(clips)
    for value, clip in zip(found, clips, strict=True):
        assert float(value) == pytest.approx(float(spectra.constant_spectrum_distance(clip[None], None, mean)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_distances_of_a_batch_are_those_of_its_clips_alone(name):
    measure = FUNCTIONS[name]
    sizes = (16_000, 5_003, 700)
    audio, reference = torch.full((2, 3, 16_000), math.nan)
    for row, size in enumerate(sizes):
        audio[row, :size], reference[row, :size] = tone(size, row + 3), tone(size, row)
    found = measure(audio, reference, torch.tensor(sizes))
    assert found.dtype == torch.float64
    for row, size in enumerate(sizes):
        alone = measure(audio[row : row + 1, :size], reference[row : row + 1, :size])
        assert float(found[row]) == pytest.approx(float(alone), rel=1e-6)
        assert float(alone) > 0.05
    assert float(measure(audio[:1], audio[:1])) == 0


def test_a_long_clip_is_compared_in_blocks(monkeypatch):
    audio, reference = tone(30_000, 3)[None], tone(30_000, 1)[None]
    whole = {name: float(measure(audio, reference)) for name, measure in FUNCTIONS.items()}
    monkeypatch.setitem(stft.BLOCK_FRAMES, "cpu", 18)
    for name, measure in FUNCTIONS.items():
        assert float(measure(audio, reference)) == pytest.approx(whole[name], rel=1e-6)


def test_a_gain_shows_in_full():
    clip = (0.5 * torch.randn(1, 20_000)).clamp(-1, 1)  # noise: every bin lies far above the floors
    ten = 10 * clip
    assert float(spectra.log_band_distance(ten, clip)) == pytest.approx(math.log(10), rel=1e-4)
    assert float(spectra.stft_distance(ten, clip)) == pytest.approx(1, rel=1e-3)
    assert float(spectra.mel_distance(ten, clip, RATE)) == pytest.approx(1, rel=1e-3)
    assert float(spectra.spectral_convergence(ten, clip)) == pytest.approx(9, rel=1e-4)


def test_silence_has_no_convergence_and_shapes_must_agree():
    assert math.isnan(float(spectra.spectral_convergence(torch.ones(1, 4_000), torch.zeros(1, 4_000))))
    with pytest.raises(ValueError, match=r"one shape \[B, N\], got \[1, 3\] and \[1, 4\]"):
        spectra.log_band_distance(torch.ones(1, 3), torch.ones(1, 4))
    with pytest.raises(ValueError, match="at least one clip"):
        spectra.log_band_score([])
    with pytest.raises(ValueError, match="at least one sample"):
        spectra.mean_log_bands([])
