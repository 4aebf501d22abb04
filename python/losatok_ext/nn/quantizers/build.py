"""Quantizers by their configurations."""

from __future__ import annotations

from losatok_ext.nn.quantizers.affine import AffineQuantizer
from losatok_ext.nn.quantizers.base import Quantizer
from losatok_ext.nn.quantizers.config import (
    AffineConfig,
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualVQConfig,
    VQConfig,
)
from losatok_ext.nn.quantizers.finite import FSQ
from losatok_ext.nn.quantizers.lookup_free import LFQ
from losatok_ext.nn.quantizers.residual import ResidualVQ
from losatok_ext.nn.quantizers.vector import VectorQuantizer


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer of ``config`` for latents of ``dim`` features.

    Raises:
        TypeError: ``config`` is not a quantizer configuration of this package.
        ValueError: ``dim`` is not a positive whole number.
    """
    if isinstance(config, ResidualVQConfig):
        return ResidualVQ(config, dim)
    if isinstance(config, VQConfig):
        return VectorQuantizer(config, dim)
    if isinstance(config, FSQConfig):
        return FSQ(config, dim)
    if isinstance(config, LFQConfig):
        return LFQ(config, dim)
    if isinstance(config, AffineConfig):
        return AffineQuantizer(config, dim)
    raise TypeError(
        "config should be a VQConfig, ResidualVQConfig, FSQConfig, LFQConfig or AffineConfig "
        f"(quantizer_config makes one of a dict), got {type(config).__name__}"
    )
