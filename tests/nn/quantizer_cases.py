"""What every quantizer is tested on."""

import torch

from losatok_ext.nn import (
    AffineConfig,
    FSQConfig,
    GroupedConfig,
    LFQConfig,
    ResidualFSQConfig,
    ResidualLFQConfig,
    ResidualVQConfig,
    SimVQConfig,
    VQConfig,
)

DIM = 8
CONFIGS = {
    "vq": VQConfig(codebook_size=32, gradient="straight_through"),
    "vq-rotation-projected": VQConfig(codebook_size=24, codebook_dim=5),
    "vq-cosine": VQConfig(codebook_size=16, cosine=True),
    "vq-learned": VQConfig(codebook_size=16, codebook="learned", kmeans=False),
    "vq-learned-cosine": VQConfig(codebook_size=16, codebook="learned", cosine=True),
    "rvq": ResidualVQConfig(codebook_size=16, stages=3),
    "rvq-dropout": ResidualVQConfig(codebook_size=16, stages=4, dropout=0.7, min_stages=2, codebook_dim=6),
    "rvq-shared": ResidualVQConfig(codebook_size=16, stages=3, shared=True),
    "rvq-stages": ResidualVQConfig(codebook_size=16, stages=2, stage_gradients=True, codebook="learned"),
    "rvq-grouped": GroupedConfig(
        4, ResidualVQConfig(codebook_size=8, stages=3, codebook_dim=3, dropout=0.6, dropout_multiple_of=2)
    ),
    "simvq": SimVQConfig(codebook_size=32),
    "simvq-stages": SimVQConfig(
        codebook_size=16, stages=3, codebook_dim=6, frozen_dim=4, dropout=0.5, gradient="straight_through"
    ),
    "vq-directional": VQConfig(codebook_size=16, codebook="learned", gradient="directional"),
    "rvq-directional": ResidualVQConfig(
        codebook_size=16, stages=3, codebook="learned", gradient="directional", shared=True, dropout=0.5
    ),
    "vq-grouped": GroupedConfig(2, VQConfig(codebook_size=16)),
    "fsq": FSQConfig(),
    "fsq-two": FSQConfig(levels=(3, 4, 5, 2), num_codebooks=2),
    "rfsq": ResidualFSQConfig(levels=(4, 3, 5), stages=3, dropout=0.5, stage_gradients=True),
    "rfsq-wide": ResidualFSQConfig(levels=(5,) * DIM, stages=2),
    "lfq": LFQConfig(bits=8),
    "lfq-two": LFQConfig(bits=5, num_codebooks=2, entropy_group=3),
    "rlfq": ResidualLFQConfig(bits=5, stages=3, dropout=0.7, dropout_multiple_of=2, stage_gradients=True),
    "rlfq-wide": ResidualLFQConfig(bits=DIM, stages=2, scale=0.5),
    "affine": AffineConfig(),
    "affine-time": AffineConfig(bits=4, dim=1),
}


def batch(clips=3, time=20, dim=DIM, seed=0, dtype=torch.float32):
    """Latents that lie around a few centres, as those that are worth a codebook do."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, dim, generator=generator)
    chosen = torch.randint(12, (clips, time), generator=generator)
    return (centres[chosen] + 0.3 * torch.randn(clips, time, dim, generator=generator)).to(dtype)


def spoiled(x, lengths):
    """``x`` with NaN and infinity past the lengths."""
    bad = torch.where(torch.arange(x.shape[-1]) % 2 == 0, torch.nan, torch.inf).to(x.dtype)
    return torch.where((torch.arange(x.shape[1]) < lengths[:, None])[..., None], x, bad)


def total(result):
    """A loss that asks for every gradient there is."""
    weights = torch.linspace(-1, 1, result.quantized.shape[-1], dtype=result.quantized.dtype)
    return (result.quantized * weights).sum() + sum(result.losses.values())


def in_our_order(codes):
    """Codes of groups of vector-quantize-pytorch, [G, B, T, Q], as ours."""
    return codes.permute(1, 2, 3, 0).flatten(2)
