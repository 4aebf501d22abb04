"""Quantizers by their configurations."""

from __future__ import annotations

from losatok_ext.nn.quantizers.affine import AffineQuantizer
from losatok_ext.nn.quantizers.base import Quantizer
from losatok_ext.nn.quantizers.config import (
    CONFIGS,
    AffineConfig,
    FSQConfig,
    GroupedConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualFSQConfig,
    ResidualLFQConfig,
    ResidualVQConfig,
    SimVQConfig,
    VQConfig,
)
from losatok_ext.nn.quantizers.finite import FSQ
from losatok_ext.nn.quantizers.grouped import GroupedQuantizer
from losatok_ext.nn.quantizers.lookup_free import LFQ
from losatok_ext.nn.quantizers.residual import ResidualVQ
from losatok_ext.nn.quantizers.residual_scalar import ResidualFSQ, ResidualLFQ
from losatok_ext.nn.quantizers.simple import SimVQ
from losatok_ext.nn.quantizers.vector import VectorQuantizer


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer of ``config`` for latents of ``dim`` features.

    Raises:
        TypeError: ``config`` is not a quantizer configuration of this package.
        ValueError: ``dim`` is not a positive whole number.
        ConfigError: latents of ``dim`` features cannot be quantized so.
    """
    if isinstance(config, GroupedConfig):
        config.check_dim(dim)
        groups = [build_quantizer(config.each, dim // config.groups) for _ in range(config.groups)]
        return GroupedQuantizer(config, dim, groups)
    if isinstance(config, ResidualVQConfig):
        return ResidualVQ(config, dim)
    if isinstance(config, SimVQConfig):
        return SimVQ(config, dim)
    if isinstance(config, VQConfig):
        return VectorQuantizer(config, dim)
    if isinstance(config, ResidualFSQConfig):
        return ResidualFSQ(config, dim)
    if isinstance(config, ResidualLFQConfig):
        return ResidualLFQ(config, dim)
    if isinstance(config, FSQConfig):
        return FSQ(config, dim)
    if isinstance(config, LFQConfig):
        return LFQ(config, dim)
    if isinstance(config, AffineConfig):
        return AffineQuantizer(config, dim)
    raise TypeError(
        f"config should be one of {', '.join(kind.__name__ for kind in CONFIGS.values())} "
        f"(quantizer_config makes one of a dict), got {type(config).__name__}"
    )
