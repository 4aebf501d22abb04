"""A small generator whose weights make large, varied outputs, and conditions for it."""

import torch

from losatok_ext.models import Conditions, DiT, DiTConfig
from small_models import lively

SMALL = {
    "latent_dim": 8,
    "width": 64,
    "depth": 4,
    "heads": 2,
    "mlp_ratio": 2,
    "text_dim": 32,
    "text_layers": 1,
    "text_bytes": 40,
    "aligned_dim": 5,
    "global_dim": 3,
}


def small_dit(**overrides):
    torch.manual_seed(0)
    return lively(DiT(DiTConfig(**{**SMALL, **overrides})))


def noisy(batch, time, dim=SMALL["latent_dim"], seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, dim, generator=generator), torch.rand(batch, generator=generator)


def all_conditions(batch, time, size=6, config=None, seed=0):
    """Every kind of condition, texts of all lengths up to ``size`` in turn, none dropped."""
    values = SMALL if config is None else config.to_dict()
    generator = torch.Generator().manual_seed(seed)
    return Conditions(
        torch.randn(batch, size, values["text_dim"], generator=generator),
        torch.arange(size, size - batch, -1) % (size + 1),
        torch.randn(batch, time, values["aligned_dim"], generator=generator),
        torch.randn(batch, values["global_dim"], generator=generator),
    )
