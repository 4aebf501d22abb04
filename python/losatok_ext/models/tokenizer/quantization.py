"""Facts about a quantizer: its name, and how many different codes there are at each place of a token."""

from __future__ import annotations

from losatok_ext.nn.quantizers import (
    AffineConfig,
    AffineQuantizer,
    FSQConfig,
    GroupedConfig,
    GroupedQuantizer,
    LFQConfig,
    Quantizer,
    QuantizerConfig,
    ResidualVQConfig,
    SimVQConfig,
    VQConfig,
)
from losatok_ext.nn.quantizers.affine import UNSIGNED
from losatok_ext.nn.quantizers.config import StagedConfig


def quantizer_name(config: QuantizerConfig) -> str:
    """The kind and sizes, as `losatok fit-quantizer` takes them: ``"rvq 8x1024"``, ``"fsq 8,5,5,5"``."""
    if isinstance(config, GroupedConfig):
        return f"{config.groups} groups of {quantizer_name(config.each)}"
    if isinstance(config, ResidualVQConfig):
        return f"rvq {config.stages}x{config.codebook_size}"
    if isinstance(config, SimVQConfig):
        return f"simvq {f'{config.stages}x' if config.stages > 1 else ''}{config.codebook_size}"
    if isinstance(config, VQConfig):
        return f"vq {config.codebook_size}"
    if isinstance(config, FSQConfig | LFQConfig):
        count = config.stages if isinstance(config, StagedConfig) else config.num_codebooks
        codes = f"{count}x" if count > 1 or isinstance(config, StagedConfig) else ""
        sizes = ",".join(map(str, config.levels)) if isinstance(config, FSQConfig) else config.bits
        return f"{config.kind} {codes}{sizes}"
    assert isinstance(config, AffineConfig)
    return f"affine {config.bits}"


def code_sizes(quantizer: Quantizer) -> tuple[int, ...]:
    """The number of different codes at each of the Q places of a token; Q is 1 where codes have no last dimension."""
    config = quantizer.config
    if isinstance(quantizer, GroupedQuantizer):
        return tuple(size for size in code_sizes(quantizer.quantizers[0]) for _ in quantizer.groups)
    if isinstance(config, StagedConfig):
        return (quantizer.codebook_size,) * config.stages
    if isinstance(config, FSQConfig | LFQConfig):
        return (quantizer.codebook_size,) * config.num_codebooks
    if isinstance(quantizer, AffineQuantizer):  # the integers, then scales and offsets as the bits of float32
        return (quantizer.codebook_size,) * quantizer.dim + (UNSIGNED,) * (2 * quantizer.scales)
    return (quantizer.codebook_size,)
