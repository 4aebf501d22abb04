"""Encoding and decoding ten seconds, whole models with random weights, beside the published model's computation.

``published`` is benchmarks/published_model.py in float32, as its authors run it, with the same weights; ``published
autocast`` is the same under bfloat16 autocast. The share of the ceiling counts matrix products and convolutions alone,
against the square products of the row's dtype.
"""

import pytest
import torch

from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.precision import cast
from published_model import PublishedLoSATok

SECONDS = 10
DTYPES = [torch.float32, torch.bfloat16]


def name(dtype):
    return str(dtype).removeprefix("torch.")


def encode_flop(config):
    """Of ten seconds: the transformer and both patch embeddings; what is left out is below 1 %."""
    dim, tokens = config.embed_dim, SECONDS * 25
    linear = config.depth * (4 + 2 * config.mlp_ratio) * dim**2
    attention = config.depth * 2 * tokens * dim
    patches = (4 * config.semantic_mels + config.acoustic_patch * config.acoustic_mels) * dim
    return 2 * tokens * (linear + attention + patches)


def decode_flop(config):
    width, frames = config.decoder_dim, SECONDS * config.sample_rate // config.istft_hop
    blocks = config.decoder_depth * 2 * width * config.decoder_hidden
    return 2 * frames * (7 * config.embed_dim * width + blocks + width * (config.istft_n_fft + 2))


@pytest.fixture(scope="module", params=["tiny", "base"])
def models(request, device):
    """The published computation and ours with the same weights, by dtype; packed weights of ours come on top."""
    config = LoSATokConfig.preset(request.param)
    torch.manual_seed(0)
    ours = LoSATok(config).eval().to(device)
    with torch.device("meta"):
        published = PublishedLoSATok(config)
    published.load_state_dict(ours.to_reference_state_dict(), assign=True)
    with torch.device("meta"):
        half = LoSATok(config)
    half.load_state_dict({key: tensor.clone() for key, tensor in ours.state_dict().items()}, assign=True)
    return (
        request.param,
        config,
        published.eval().to(device),
        {
            torch.float32: ours,
            torch.bfloat16: cast(half.eval().to(device), torch.bfloat16),
        },
    )


def under_autocast(function, device):
    def run(x):
        with torch.autocast(device, torch.bfloat16):
            return function(x)

    return run


def beside(compare, label, device, dtype, ours, published, x, flop, size, clips):
    peers = {"published": lambda: published(x)}
    if dtype == torch.bfloat16:
        peers["published autocast"] = lambda: under_autocast(published, device)(x)
    large = size == "base" and device == "cpu"
    with torch.no_grad():
        compare(
            f"{label} {size} {name(dtype)} B={clips}",
            lambda: ours(x),
            peers,
            clips * flop,
            dtype,
            memory=True,
            rounds=(2 if clips > 1 else 3) if large else 7,
        )


@pytest.mark.parametrize("clips", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_decode(compare, device, models, dtype, clips):
    size, config, published, ours = models
    z = torch.randn(clips, SECONDS * config.frame_rate, config.latent_dim, device=device)
    beside(compare, "decode", device, dtype, ours[dtype].decode, published.decode, z, decode_flop(config), size, clips)


@pytest.mark.parametrize("clips", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_encode(compare, device, models, dtype, clips):
    size, config, published, ours = models
    audio = torch.randn(clips, SECONDS * config.sample_rate, device=device) / 10
    beside(
        compare, "encode", device, dtype, ours[dtype].encode, published.encode, audio, encode_flop(config), size, clips
    )
