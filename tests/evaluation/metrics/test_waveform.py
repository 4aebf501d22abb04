"""SI-SDR against its definition; PESQ and STOI where their packages are, and what is said where they are not."""

import builtins
import importlib.util

import pytest
import torch

from losatok_ext.audio.files import read_audio
from losatok_ext.audio.samples import sample_folder
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics import waveform


@pytest.mark.parametrize("decibels", [-10.0, 0.0, 20.0])
def test_si_sdr_is_the_ratio_that_was_mixed_whatever_gain_and_offset(decibels):
    signal, noise = torch.randn(2, 4_000, dtype=torch.float64)
    signal, noise = signal - signal.mean(), noise - noise.mean()
    noise = noise - signal * (noise @ signal) / (signal @ signal)  # what lies along the signal would count as signal
    noise = noise * signal.norm() / noise.norm() * 10 ** (-decibels / 20)
    assert waveform.si_sdr(3 * (signal + noise) + 1, 0.5 * signal - 2) == pytest.approx(decibels, abs=1e-8)


def test_si_sdr_has_ends():
    signal = torch.randn(100, dtype=torch.float64)
    assert waveform.si_sdr(2 * signal, signal) == 100
    assert waveform.si_sdr(torch.zeros(100), signal) == -100
    assert waveform.si_sdr(signal, torch.full((100,), 0.25)) is None
    with pytest.raises(ValueError, match="one shape"):
        waveform.si_sdr(signal, signal[1:])


@pytest.fixture(scope="module")
def speech():
    return read_audio(sample_folder() / "speech" / "00004.flac")


@pytest.mark.parametrize("measure", ["pesq", "stoi"])
def test_perceptual_measures_rank_noise(measure, speech):
    if importlib.util.find_spec(waveform.PACKAGES[measure]) is None:
        pytest.skip(f"{waveform.PACKAGES[measure]} is not installed: pip install pesq pystoi")
    function = getattr(waveform, measure)
    noise = torch.randn(len(speech))
    values = [function(speech + level * noise, speech, 16_000) for level in (0.0, 0.003, 0.1)]
    assert values[0] == pytest.approx({"pesq": 4.644, "stoi": 1.0}[measure], abs=1e-3)
    assert values[0] > values[1] + 1e-3 > values[2] + 0.05
    assert function(speech[:2_000], speech[:2_000], 16_000) is None
    assert function(speech, torch.zeros_like(speech), 16_000) is None


@pytest.mark.parametrize("measure", ["pesq", "stoi"])
def test_long_recordings_are_measured_in_parts(measure, speech):
    if importlib.util.find_spec(waveform.PACKAGES[measure]) is None:
        pytest.skip(f"{waveform.PACKAGES[measure]} is not installed: pip install pesq pystoi")
    function = getattr(waveform, measure)
    long = torch.cat([speech[:40_000]] * 10 + [torch.zeros(160_000)])  # 35 s: four parts, the last of them silent
    heard = long + 0.02 * torch.randn(len(long))
    parts = zip(heard.tensor_split(4), long.tensor_split(4), strict=True)
    values = [value for value in (function(*pair, 16_000) for pair in parts) if value is not None]
    assert len(values) == 3
    assert function(heard, long, 16_000) == pytest.approx(sum(values) / 3, rel=1e-6)


@pytest.mark.parametrize(("measure", "package"), waveform.PACKAGES.items())
def test_a_missing_package_is_named(measure, package, speech, monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=rf"{measure} needs {package} .*pip install {package}"):
        getattr(waveform, measure)(speech, speech, 16_000)
