"""The configuration: presets, JSON, and what it refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATokConfig


def test_the_default_is_the_published_model():
    config = LoSATokConfig()
    assert config == LoSATokConfig.preset("base")
    assert (config.embed_dim, config.depth, config.num_heads, config.head_dim) == (1280, 32, 16, 80)
    assert (config.latent_dim, config.bottleneck_dim) == (128, 512)
    assert (config.samples_per_token, config.acoustic_patch, config.upsample_tokens) == (640, 4, 2)


def test_presets_and_overrides():
    tiny = LoSATokConfig.preset("tiny", latent_dim=16)
    assert tiny.latent_dim == 16
    assert tiny.head_dim == 80
    with pytest.raises(ConfigError, match="no preset 'huge'; it is one of base, tiny"):
        LoSATokConfig.preset("huge")
    with pytest.raises(ConfigError, match="layers is not a key; the keys here are sample_rate, "):
        LoSATokConfig.preset("tiny", layers=3)


@pytest.mark.parametrize("name", ["base", "tiny"])
def test_json_round_trip(name):
    config = LoSATokConfig.preset(name)
    assert LoSATokConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(LoSATokConfig.preset(name))


def test_the_published_dict():
    values = {"embed_dim": 48, "num_heads": 4, "decoder_dim": 16, "decoder_intermediate_size": 96}
    config = LoSATokConfig.from_published({**values, "patch_stride_time": 2, "upsample_tokens": 1}, 24, frame_rate=50)
    assert (config.latent_dim, config.decoder_hidden, config.bottleneck_dim) == (16, 96, 24)
    assert (config.acoustic_patch, config.semantic_upsampling, config.upsample_tokens) == (2, 2, 1)
    with pytest.raises(ConfigError, match=r"patch_stride_time is 4 .* frame_rate=50"):
        LoSATokConfig.from_published({**values, "patch_stride_time": 4}, 24, frame_rate=50)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"depth": 0}, "depth should be a whole number within 1..512, got 0"),
        ({"depth": 2**20}, r"depth should be a whole number within 1\.\.512, got 1048576"),
        ({"semantic_mels": 2**20}, "semantic_mels should be a whole number within"),
        ({"mel_loss_windows": [4] * 99}, "mel_loss_windows should be a list of 1 to 16 values"),
        ({"depth": 2.0}, "depth"),
        ({"depth": True}, "depth"),
        ({"depth": "4"}, "depth"),
        ({"top_db": "loud"}, "top_db should be a number"),
        ({"kl_clamp": -1}, "kl_clamp"),
        ({"num_heads": 7}, r"num_heads should be a divisor of embed_dim \(1280\), got 7"),
        ({"frame_rate": 30}, "frame_rate should be 25, 50 or 100 tokens per second, got 30"),
        ({"istft_hop": 500}, "istft_hop"),
        ({"istft_n_fft": 1300}, "istft_n_fft should be a multiple of istft_hop"),
        ({"chunk_frames": 1010}, "chunk_frames should be a whole number within .* that is a multiple of 4"),
        ({"mel_loss_windows": [512]}, r"mel_loss_bins should be as long as mel_loss_windows \(1\)"),
        ({"mel_loss_windows": 512}, "mel_loss_windows should be a list"),
        ({"semantic_n_fft": 511}, "semantic_n_fft should be a whole number within .* that is even"),
    ],
)
def test_what_does_not_fit_is_named(values, match):
    with pytest.raises(ConfigError, match=match):
        LoSATokConfig.from_dict(values)


def test_not_a_mapping():
    with pytest.raises(ConfigError, match="mapping"):
        LoSATokConfig.from_dict(["depth", 3])


@given(samples=st.integers(0, 200_000), rate=st.sampled_from([25, 50]))
def test_tokens_cover_a_clip(samples, rate):
    config = LoSATokConfig(frame_rate=rate, istft_n_fft=1280, istft_hop=320)
    covered = config.covering_samples(samples)
    assert samples <= covered < samples + 640
    assert config.token_count(covered) * config.samples_per_token >= samples
    assert config.token_count(samples) * config.samples_per_token <= samples + 160
