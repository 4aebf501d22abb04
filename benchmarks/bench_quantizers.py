"""Training steps of the quantizer modules beside vector-quantize-pytorch: the same options, time and peak memory.

A step is forward, with the codebooks learning and dead codes revived, and backward to the latents.
"""

import pytest
import torch

from losatok_ext import nn

peers = pytest.importorskip("vector_quantize_pytorch")

ROWS, FEATURES = 6000, 128
THEIRS = {"threshold_ema_dead_code": 2, "decay": 0.99, "commitment_weight": 0.25}


def step(quantizer, x, weights):
    def run():
        quantized, _, *rest = quantizer(x)  # their FSQ has no losses
        losses = rest[0] if rest else {}
        loss = sum(losses.values()) if isinstance(losses, dict) else losses.sum()
        return torch.autograd.grad((quantized * weights).sum() + loss, x)

    return run


def side_by_side(compare, device, label, theirs, rows=ROWS, features=FEATURES):
    theirs = theirs.to(device).train()
    ours = nn.from_vector_quantize_pytorch(theirs)
    x = torch.randn(1, rows, features, device=device, requires_grad=True)
    weights = torch.randn(1, rows, features, device=device)
    steps = [step(module, x, weights) for module in (ours, theirs)]
    for run in steps:
        run()  # codes that start at random are dead, and revived all at once
    compare(label, steps[0], {"vector-quantize-pytorch": steps[1]}, memory=True)


@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
@pytest.mark.parametrize("codes", [1024, 8192])
def test_vector_quantizer_training(compare, device, codes, gradient):
    theirs = peers.VectorQuantize(dim=FEATURES, codebook_size=codes, rotation_trick=gradient == "rotation", **THEIRS)
    side_by_side(compare, device, f"VectorQuantizer step, {gradient} N={ROWS} K={codes}", theirs)


def test_learned_codebook_training(compare, device):
    theirs = peers.VectorQuantize(
        dim=FEATURES, codebook_size=1024, learnable_codebook=True, ema_update=False, rotation_trick=False, **THEIRS
    )
    side_by_side(compare, device, f"VectorQuantizer step, learned N={ROWS} K=1024", theirs)


def test_residual_training(compare, device):
    theirs = peers.ResidualVQ(dim=FEATURES, codebook_size=1024, num_quantizers=8, **THEIRS)
    side_by_side(compare, device, f"ResidualVQ step N={ROWS} Q=8 K=1024", theirs)


def test_grouped_residual_training(compare, device):
    theirs = peers.GroupedResidualVQ(dim=FEATURES, groups=4, codebook_size=1024, num_quantizers=2, **THEIRS)
    side_by_side(compare, device, f"grouped ResidualVQ step N={ROWS} G=4 Q=2 K=1024", theirs)


def test_lookup_free_training(compare, device):
    side_by_side(compare, device, f"LFQ step N={ROWS} bits=12", peers.LFQ(dim=12, codebook_size=4096), features=12)


def test_finite_levels_training(compare, device):
    side_by_side(compare, device, f"FSQ step N={ROWS}, projected", peers.FSQ([8, 5, 5, 5], dim=FEATURES))


def test_residual_finite_levels_training(compare, device):
    theirs = peers.ResidualFSQ(levels=[8, 5, 5, 5], num_quantizers=4, dim=FEATURES)
    side_by_side(compare, device, f"ResidualFSQ step N={ROWS} Q=4, projected", theirs)


def test_residual_lookup_free_training(compare, device):
    theirs = peers.ResidualLFQ(dim=FEATURES, codebook_size=1024, num_quantizers=4)
    side_by_side(compare, device, f"ResidualLFQ step N={ROWS} Q=4 bits=10, projected", theirs)


def test_mapped_codes_training(compare, device):
    side_by_side(compare, device, f"SimVQ step N={ROWS} K=8192", peers.SimVQ(dim=FEATURES, codebook_size=8192))


def test_directional_training(compare, device):
    theirs = peers.VectorQuantize(
        dim=FEATURES, codebook_size=1024, directional_reparam=True, threshold_ema_dead_code=2, decay=0.99
    )
    side_by_side(compare, device, f"VectorQuantizer step, directional N={ROWS} K=1024", theirs)
