"""What the width of a latent costs the generator: training steps and 20-step sampling, side by side.

``ours`` is the DiT on LoSATok's 128-d latents at width 512; its peers are the same DiT on 1280-d latents at width 512,
and at width 1536, which such latents need to be learned. On a GPU with the 12 blocks of the preset ``base``, on a CPU
with 2 of them and shorter clips: cost grows in proportion to the blocks, and the ratios are nearly those of a block.
Peak memory is what a step holds besides weights, gradients and AdamW's moments; ``state_mib`` in the results is those.
"""

import pytest
import torch

from losatok_ext.generation.generation import generate
from losatok_ext.generation.sampling import SamplerConfig
from losatok_ext.models.generator.dit_config import DiTConfig
from losatok_ext.models.generator.generator import Generator, GeneratorConfig

SIZES = {"ours": (128, 512), "1280-d at 512": (1280, 512), "1280-d at 1536": (1280, 1536)}
"""Latent dimension and width by name."""
TEXT = "the orchestra discovered a distant signal, far away and slowly coming nearer"


def make(latent_dim, width, device):
    torch.manual_seed(0)
    depth = 12 if device == "cuda" else 2
    heads = width // 64
    config = DiTConfig(latent_dim=latent_dim, width=width, depth=depth, heads=heads, aligned_dim=latent_dim + 1)
    return Generator(GeneratorConfig(config, context=True)).to(device)


def clips(device):
    """(clips in a batch, tokens of each) of training."""
    return (32, 250) if device == "cuda" else (2, 125)


def training_step(latent_dim, width, device):
    model = make(latent_dim, width, device).train()
    batch, tokens = clips(device)
    latents = torch.randn(batch, tokens, latent_dim, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model.loss(latents, None, [TEXT] * batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step, sum(16 * p.numel() for p in model.parameters()) / 2**20


def test_training(compare, benchmark, device):
    """One step: loss with context and text, backward, AdamW; float32 on a CPU, bfloat16 autocast on a GPU."""
    batch, tokens = clips(device)
    steps = {name: training_step(*size, device) for name, size in SIZES.items()}
    ours, peers = steps["ours"][0], {name: step for name, (step, _) in steps.items() if name != "ours"}
    depth = 12 if device == "cuda" else 2
    label = f"DiT training step, 128-d at 512, {depth} blocks, {batch} x {tokens} tokens"
    timings = compare(label, ours, peers, dtype=torch.bfloat16 if device == "cuda" else torch.float32, memory=True)
    benchmark.extra_info["clips_per_second"] = {name: round(batch / t.best, 3) for name, t in timings.items()}
    benchmark.extra_info["state_mib"] = {name: round(size, 1) for name, (_, size) in steps.items()}


@pytest.mark.parametrize("seconds", [2.5, 10.0])
def test_sampling(compare, benchmark, device, seconds):
    """20 Euler steps with guidance 3 (both halves in one batch), from text to latents."""
    if device == "cpu" and seconds > 5:
        pytest.skip("ten seconds at width 1536 take minutes on a CPU")
    batch, tokens = (16 if device == "cuda" else 1), int(25 * seconds)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    models = {name: make(*size, device).to(dtype).eval() for name, size in SIZES.items()}
    sampler = SamplerConfig(steps=20)
    calls = {
        name: lambda model=model: generate(model, [tokens] * batch, [TEXT] * batch, sampler)
        for name, model in models.items()
    }
    depth = 12 if device == "cuda" else 2
    label = f"20-step sampling, 128-d at 512, {depth} blocks, {batch} x {tokens} tokens"
    timings = compare(label, calls.pop("ours"), calls, dtype=dtype, memory=True)
    benchmark.extra_info["clips_per_second"] = {name: round(batch / t.best, 3) for name, t in timings.items()}
