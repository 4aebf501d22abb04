"""Sample rate conversion: length, level, alias rejection, batches and bad arguments."""

import pytest
import torch

from losatok_ext.audio.resample import resample


def tone(rate, hertz, seconds=1.0, dtype=torch.float32):
    return torch.sin(2 * torch.pi * hertz * torch.arange(round(rate * seconds), dtype=torch.float64) / rate).to(dtype)


@pytest.mark.parametrize(
    ("source", "target"), [(8_000, 16_000), (44_100, 16_000), (48_000, 16_000), (16_000, 24_000), (16_000, 44_100)]
)
def test_a_tone_stays_a_tone(source, target):
    y = resample(tone(source, 1000), source, target)
    assert y.shape == (target,)
    inner = slice(target // 10, -target // 10)
    assert (y - tone(target, 1000))[inner].abs().max() < 1e-4


def test_what_lies_above_the_new_nyquist_is_gone():
    y = resample(tone(48_000, 12_000), 48_000, 16_000)
    assert y[1600:-1600].abs().max() < 1e-4


def test_batches_are_resampled_row_by_row():
    x = torch.randn(2, 3, 4410)
    y = resample(x, 44_100, 16_000)
    assert y.shape == (2, 3, 1600)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(y[i, j], resample(x[i, j], 44_100, 16_000), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    assert resample(tone(8_000, 440, dtype=dtype), 8_000, 16_000).dtype == dtype


def test_equal_rates_return_the_audio_itself_and_empty_audio_stays_empty():
    x = torch.randn(10)
    assert resample(x, 16_000, 16_000) is x
    assert resample(torch.zeros(2, 0), 8_000, 16_000).shape == (2, 0)
    assert resample(torch.zeros(0, 100), 8_000, 16_000).shape == (0, 200)


def test_strided_input():
    x = torch.randn(8820)[::2]
    torch.testing.assert_close(resample(x, 44_100, 16_000), resample(x.contiguous(), 44_100, 16_000))


@pytest.mark.parametrize(
    ("audio", "rates", "error", "says"),
    [
        (torch.zeros(8, dtype=torch.int16), (8_000, 16_000), TypeError, "audio should be a floating-point"),
        ([0.0], (8_000, 16_000), TypeError, "audio should be a floating-point"),
        (torch.tensor(0.0), (8_000, 16_000), ValueError, r"\[\.\.\., N\]"),
        (torch.zeros(8), (0, 16_000), ValueError, "from_rate"),
        (torch.zeros(8), (8_000, -1), ValueError, "to_rate"),
        (torch.zeros(8), (8_000, 16_000.5), ValueError, "to_rate"),
        (torch.zeros(8), (2**62, 16_000), ValueError, "from_rate should be a whole number of Hz from 1000 to 1000000"),
        (torch.zeros(8), (8_000, 999), ValueError, "to_rate"),
        (torch.zeros(8), (torch.tensor([1, 2]), 16_000), ValueError, "from_rate"),
    ],
)
def test_bad_arguments_are_named(audio, rates, error, says):
    with pytest.raises(error, match=says):
        resample(audio, *rates)
