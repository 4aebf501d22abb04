"""The mel front ends: filters, ends of clips, decibels, batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from losatok_ext.audio import stft
from losatok_ext.audio.mel import AcousticMel, MelSpectrogram, SemanticMel, mel_filter_bank

FRONT_ENDS = {"semantic": SemanticMel(512, 64, 160, 120.0, 16000), "acoustic": AcousticMel(1024, 128, 160, 16000)}


def test_filters_are_the_published_ones(data):
    state = load_file(data / "golden" / "golden_a.state.safetensors")
    semantic = state["semantic_encoder.encoder.front_end.0.mel_scale.fb"]
    acoustic = state["dasheng_tokenizer.encoder.front_end.mel_spec.mel_scale.fb"]
    assert torch.equal(mel_filter_bank(512, 64, 16000), semantic)
    assert torch.equal(mel_filter_bank(1024, 128, 16000), acoustic)


def test_filters_are_triangles_on_the_mel_scale():
    bank = mel_filter_bank(2048, 20, 16000, 100.0, 6000.0).double()
    frequencies = torch.linspace(0, 8000, 1025, dtype=torch.float64)
    assert not bank[(frequencies < 100) | (frequencies > 6000)].any()
    peaks = 2595 * torch.log10(1 + frequencies[bank.argmax(0)] / 700)
    steps = peaks.diff()
    assert (steps - steps.mean()).abs().max() < 0.1 * steps.mean()
    # Neighbours add up to 1 between the first and the last peak.
    inside = (frequencies > frequencies[bank[:, 0].argmax()]) & (frequencies < frequencies[bank[:, -1].argmax()])
    torch.testing.assert_close(
        bank[inside].sum(1), torch.ones(int(inside.sum()), dtype=torch.float64), rtol=0, atol=1e-4
    )


def test_a_tone_is_in_its_bin():
    time = torch.arange(16000) / 16000
    mel = MelSpectrogram(1024, 64, 160, 1.0, 16000)
    frames, lengths = mel(torch.sin(2 * math.pi * 1000 * time)[None], torch.tensor([16000]))
    assert frames.shape == (1, 101, 64)
    assert lengths.tolist() == [101]
    loudest = frames[0, 50].argmax()
    assert mel.filters[64, loudest] > 0.3  # 1000 Hz is the 64th of 513 frequencies


@pytest.mark.parametrize("samples", [600, 1600, 16000, 16123])
def test_a_clip_alone_is_a_centred_reflected_stft(samples):
    audio = torch.randn(1, samples)
    mel = MelSpectrogram(512, 64, 160, 2.0, 16000)
    spectrum = torch.stft(
        audio, 512, 160, window=torch.hann_window(512), center=True, pad_mode="reflect", return_complex=True
    )
    expected = spectrum.abs().square().transpose(1, 2) @ mel.filters
    torch.testing.assert_close(mel(audio, torch.tensor([samples]))[0], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.lists(st.integers(0, 3000), min_size=1, max_size=4),
    extra=st.integers(0, 700),
    name=st.sampled_from(sorted(FRONT_ENDS)),
)
def test_a_clip_in_a_batch_is_the_clip_alone(samples, extra, name):
    front_end = FRONT_ENDS[name]
    audio = torch.randn(len(samples), max(samples) + extra)
    lengths = torch.tensor(samples)
    spoiled = torch.where(torch.arange(audio.shape[1]) < lengths[:, None], audio, float("nan"))
    mel, frames = front_end(spoiled, lengths)
    assert frames.tolist() == [n // 160 + 1 if n else 0 for n in samples]
    for row, count in enumerate(samples):
        alone, own = front_end(audio[row : row + 1, :count], torch.tensor([count]))
        assert alone.shape[1] == int(own) == int(frames[row])
        torch.testing.assert_close(mel[row, : int(own)], alone[0], rtol=1e-5, atol=1e-5)


@given(length=st.integers(1, 12), pad=st.integers(1, 40))
def test_reflection_goes_to_and_fro(length, pad):
    clip = torch.arange(float(length))
    batch = torch.full((2, 15), float("nan"))
    batch[0, :length] = clip
    batch[1] = torch.arange(15.0)
    padded = stft.reflect_pad(batch, torch.tensor([length, 15]), pad)
    period = max(2 * (length - 1), 1)
    for place in range(length + 2 * pad):
        within = (place - pad) % period
        expected = 0 if length == 1 else min(within, period - within)
        assert padded[0, place] == expected
    assert not padded[0, length + 2 * pad :].any()


def test_decibels_are_cut_below_the_peak_of_the_clip():
    audio = torch.zeros(2, 4000)
    audio[0, 1000] = 3e4
    audio[1, 1000] = 0.1
    decibels, _ = SemanticMel(512, 64, 160, 60.0, 16000)(audio, torch.tensor([4000, 4000]))
    for clip in decibels:
        assert float(clip.max() - clip.min()) == pytest.approx(60.0, abs=1e-3)
    silent, _ = SemanticMel(512, 64, 160, 60.0, 16000)(torch.zeros(1, 800), torch.tensor([800]))
    assert (silent == -100).all()


def test_long_audio_is_transformed_in_blocks(monkeypatch):
    audio = torch.randn(2, 9000)
    lengths = torch.tensor([9000, 4000])
    at_once = FRONT_ENDS["acoustic"](audio, lengths)[0]
    monkeypatch.setitem(stft.BLOCK_FRAMES, "cpu", 14)
    torch.testing.assert_close(FRONT_ENDS["acoustic"](audio, lengths)[0], at_once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_powers_with_and_without_gradients(power):
    window, lengths = torch.hann_window(512), torch.tensor([4000])
    audio = torch.randn(1, 4000).requires_grad_()
    frames, _ = stft.stft_magnitude(audio, lengths, window, 160, power)
    frames.sum().backward()
    assert torch.isfinite(audio.grad).all()
    assert torch.count_nonzero(audio.grad) > 3900
    plain, _ = stft.stft_magnitude(audio.detach(), lengths, window, 160, power)
    torch.testing.assert_close(plain, frames.detach(), rtol=1e-4, atol=1e-6)


def test_padding_by_a_copy_is_the_reflection_of_each_clip():
    audio = torch.randn(2, 4000)
    window, longer = torch.hann_window(512), torch.cat([audio, torch.full((2, 7), float("nan"))], dim=1)
    whole, counts = stft.stft_magnitude(audio, torch.tensor([4000, 4000]), window, 160, 1.0)
    masked, others = stft.stft_magnitude(longer, torch.tensor([4000, 4000]), window, 160, 1.0)
    assert torch.equal(counts, others)
    torch.testing.assert_close(whole, masked, rtol=1e-5, atol=1e-6)


def test_front_ends_stay_in_float32():
    audio, lengths = torch.randn(1, 4000), torch.tensor([4000])
    expected, _ = FRONT_ENDS["acoustic"](audio, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(FRONT_ENDS["acoustic"](audio, lengths)[0], expected)
    half = AcousticMel(1024, 128, 160, 16000).bfloat16().half()
    assert torch.equal(half(audio, lengths)[0], expected)
    with torch.device("meta"):
        made = AcousticMel(1024, 128, 160, 16000)
    assert torch.equal(made(audio, lengths)[0], expected)
    assert not FRONT_ENDS["acoustic"].state_dict()
