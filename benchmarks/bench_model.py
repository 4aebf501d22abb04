"""Encoding and decoding ten seconds, whole models with random weights, beside the published model's computation.

``published`` is benchmarks/published_model.py in float32, as its authors run it, with the same weights; ``published
autocast`` is the same under bfloat16 autocast, ``ours bfloat16`` our own model in it, ``ours compiled`` our transformer
or decoder under ``torch.compile``. The share of the ceiling counts matrix products and convolutions alone, against the
square products of the row's dtype, bfloat16 for int8.

In pieces: ``-k tiny``, ``-k "test_encode and base-int8-1"``; the rows of compiled models are ``-k test_compiled``.
"""

import pytest
import torch

from losatok_ext.evaluation.tasks.precision import in_each_precision
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.storage.precision import DTYPES
from published_model import PublishedLoSATok

SECONDS = 10
PRODUCTS = {"int8": torch.bfloat16}
"""The dtype in which a model of a precision multiplies, where it is another."""


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
    return request.param, config, published.eval().to(device), in_each_precision(ours)


def under_autocast(function, device):
    def run(x):
        with torch.autocast(device, torch.bfloat16):
            return function(x)

    return run


def beside(compare, label, device, models, dtype, function, x, flop, clips):
    """Our model's ``function`` ("encode" or "decode") in ``dtype`` beside its peers."""
    size, _, published, ours = models
    theirs = getattr(published, function)
    peers = {"published": lambda: theirs(x)}
    if dtype == "bfloat16":
        peers["published autocast"] = lambda: under_autocast(theirs, device)(x)
    if dtype == "int8":
        peers["ours bfloat16"] = lambda: getattr(ours["bfloat16"], function)(x)
    large = size == "base" and device == "cpu"
    with torch.no_grad():
        compare(
            f"{label} {size} {dtype} B={clips}",
            lambda: getattr(ours[dtype], function)(x),
            peers,
            clips * flop,
            PRODUCTS.get(dtype) or getattr(torch, dtype),
            memory=True,
            rounds=(2 if clips > 1 else 3) if large else 7,
        )


def latents(config, clips, device):
    return torch.randn(clips, SECONDS * config.frame_rate, config.latent_dim, device=device)


@pytest.mark.parametrize("clips", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode(compare, device, models, dtype, clips):
    config = models[1]
    beside(
        compare, "decode", device, models, dtype, "decode", latents(config, clips, device), decode_flop(config), clips
    )


@pytest.mark.parametrize("clips", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_encode(compare, device, models, dtype, clips):
    config = models[1]
    audio = torch.randn(clips, SECONDS * config.sample_rate, device=device) / 10
    beside(compare, "encode", device, models, dtype, "encode", audio, encode_flop(config), clips)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("part", ["transformer", "decoder"])
def test_compiled(compare, device, models, dtype, part):
    """Each part as one graph, without its surroundings, beside itself compiled."""
    size, config, _, ours = models
    model, products = ours[dtype], PRODUCTS.get(dtype) or getattr(torch, dtype)
    if part == "decoder":
        function, x = model.decoder, latents(config, 1, device).to(model.decoder.upsample_weight.dtype)
    else:
        function = model.semantic_encoder.encode_chunks
        x = torch.randn(1, SECONDS * 25, config.semantic_mels, 4, device=device)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    with torch.no_grad():
        arguments = (x,) if part == "decoder" else (x, None)
        flop = decode_flop(config) if part == "decoder" else encode_flop(config)
        compare(
            f"{part} {size} {dtype} B=1",
            lambda: function(*arguments),
            {"ours compiled": lambda: compiled(*arguments)},
            flop,
            products,
            rounds=3 if size == "base" and device == "cpu" else 7,
        )
    torch.compiler.reset()
