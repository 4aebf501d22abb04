"""What a model says of its quantizer: its name, and how many codes there are at each place of a token."""

from __future__ import annotations

from losatok_ext.nn.quantizers import (
    AffineConfig,
    AffineQuantizer,
    FSQConfig,
    LFQConfig,
    Quantizer,
    ResidualVQConfig,
    VQConfig,
)
from losatok_ext.nn.quantizers.affine import UNSIGNED


def quantizer_name(quantizer: Quantizer) -> str:
    """The kind and sizes, as `losatok fit-quantizer` takes them: ``"rvq 8x1024"``, ``"fsq 8,5,5,5"``."""
    config = quantizer.config
    if isinstance(config, ResidualVQConfig):
        return f"rvq {config.stages}x{config.codebook_size}"
    if isinstance(config, VQConfig):
        return f"vq {config.codebook_size}"
    several = f"{config.num_codebooks}x" if isinstance(config, FSQConfig | LFQConfig) and quantizer.code_dim else ""
    if isinstance(config, FSQConfig):
        return f"fsq {several}{','.join(map(str, config.levels))}"
    if isinstance(config, LFQConfig):
        return f"lfq {several}{config.bits}"
    assert isinstance(config, AffineConfig)
    return f"affine {config.bits}"


def code_sizes(quantizer: Quantizer) -> tuple[int, ...]:
    """How many codes there are at each of the Q places of a token (one where codes have no last dimension)."""
    config = quantizer.config
    if isinstance(config, ResidualVQConfig):
        return (quantizer.codebook_size,) * config.stages
    if isinstance(config, FSQConfig | LFQConfig):
        return (quantizer.codebook_size,) * config.num_codebooks
    if isinstance(quantizer, AffineQuantizer):  # the integers, then scales and offsets as the bits of float32
        return (quantizer.codebook_size,) * quantizer.dim + (UNSIGNED,) * (2 * quantizer.scales)
    return (quantizer.codebook_size,)
