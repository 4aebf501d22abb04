"""The generator's configuration: presets and their sizes, JSON, and what it refuses."""

import json

import pytest
import torch

from losatok_ext.errors import ConfigError
from losatok_ext.models import DiT, DiTConfig


@pytest.mark.parametrize(
    ("name", "millions", "text"), [("tiny", 6.60, 0.43), ("base", 105.17, 19.05), ("wide", 793.69, 19.05)]
)
def test_presets_have_the_sizes_that_the_documents_name(name, millions, text):
    with torch.device("meta"):
        model = DiT(DiTConfig.preset(name))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.005)
    assert sum(p.numel() for p in model.text_encoder.parameters()) / 1e6 == pytest.approx(text, abs=0.005)


def test_presets_and_overrides():
    assert DiTConfig() == DiTConfig.preset("base")
    tiny = DiTConfig.preset("tiny", aligned_dim=7)
    assert (tiny.latent_dim, tiny.aligned_dim) == (64, 7)
    assert DiTConfig.preset("wide").latent_dim == 1280
    with pytest.raises(ConfigError, match="no preset 'huge'; it is one of base, tiny, wide"):
        DiTConfig.preset("huge")
    with pytest.raises(ConfigError, match="layers is not a key; did you mean text_layers\\?"):
        DiTConfig.preset("tiny", layers=3)


@pytest.mark.parametrize("name", ["base", "tiny", "wide"])
def test_json_round_trip(name):
    config = DiTConfig.preset(name, tokenizer="0123456789abcdef", mlp_ratio=3)
    assert DiTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) != hash(DiTConfig.preset(name))


@pytest.mark.parametrize(("depth", "skips"), [(1, 0), (2, 0), (3, 1), (4, 1), (12, 5), (13, 6)])
def test_long_skips_join_the_first_block_with_the_last(depth, skips):
    config = DiTConfig(depth=depth)
    assert config.skips == skips
    assert [config.block(index).skip for index in range(depth)] == [False] * (depth - skips) + [True] * skips
    assert DiTConfig(depth=depth, long_skip=False).skips == 0


def test_rotary_embedding_turns_an_even_share():
    assert DiTConfig().rotary_dim == 64
    assert DiTConfig(rotary=0.5).rotary_dim == 32
    assert DiTConfig(rotary=0.3).rotary_dim == 18
    assert DiTConfig(rotary=0).rotary_dim == 0


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"depth": 0}, "depth should be a whole number within 1..512, got 0"),
        ({"depth": 2**20}, r"depth should be a whole number within 1\.\.512, got 1048576"),
        ({"depth": 2.0}, "depth should be a whole number"),
        ({"depth": True}, "depth"),
        ({"width": "512"}, "width"),
        ({"heads": 7}, r"heads should be a divisor of width \(512\), got 7"),
        ({"activation": "relu"}, "activation should be one of 'gelu', "),
        ({"gate": "2-g"}, r"gate should be one of 'g', '1-g', 'tanh\(1-g\)'"),
        ({"modulation": "none"}, "modulation should be one of 'block', 'shared'"),
        ({"modulation_rank": 4}, "modulation should be 'shared' with modulation_rank"),
        ({"rotary": 1.5}, r"rotary should be a number within 0\.\.1"),
        ({"rotary": float("nan")}, "rotary should be a number"),
        ({"time_features": 7}, "time_features should be a whole number within 2..65536 that is even"),
        ({"text_encoder": "t5"}, "text_encoder should be 'bytes', 'none' or 'hf:NAME_OR_PATH', got 't5'"),
        ({"text_encoder": "hf:"}, "text_encoder"),
        ({"text_dim": 100}, "text_dim should be a multiple of 32"),
        ({"text_layers": 0}, "text_layers should be above 0 for the 'bytes' encoder"),
        ({"long_skip": 1}, "long_skip should be true or false"),
        ({"tokenizer": 3}, "tokenizer should be text or null"),
        ({"mlp_ratio": -1}, "mlp_ratio"),
    ],
)
def test_what_does_not_fit_is_named(values, match):
    with pytest.raises(ConfigError, match=match):
        DiTConfig.from_dict(values)
