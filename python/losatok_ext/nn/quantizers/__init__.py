"""Quantizers: latents to discrete codes and back, trained with the model or after it."""

from losatok_ext.nn.quantizers.affine import AffineQuantizer
from losatok_ext.nn.quantizers.base import Quantized, Quantizer
from losatok_ext.nn.quantizers.build import build_quantizer
from losatok_ext.nn.quantizers.config import (
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
    quantizer_config,
)
from losatok_ext.nn.quantizers.convert import from_vector_quantize_pytorch
from losatok_ext.nn.quantizers.finite import FSQ
from losatok_ext.nn.quantizers.grouped import GroupedQuantizer
from losatok_ext.nn.quantizers.lookup_free import LFQ
from losatok_ext.nn.quantizers.residual import ResidualVQ
from losatok_ext.nn.quantizers.residual_scalar import ResidualFSQ, ResidualLFQ
from losatok_ext.nn.quantizers.simple import SimVQ
from losatok_ext.nn.quantizers.vector import VectorQuantizer

__all__ = [
    "FSQ",
    "LFQ",
    "AffineConfig",
    "AffineQuantizer",
    "FSQConfig",
    "GroupedConfig",
    "GroupedQuantizer",
    "LFQConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualFSQ",
    "ResidualFSQConfig",
    "ResidualLFQ",
    "ResidualLFQConfig",
    "ResidualVQ",
    "ResidualVQConfig",
    "SimVQ",
    "SimVQConfig",
    "VQConfig",
    "VectorQuantizer",
    "build_quantizer",
    "from_vector_quantize_pytorch",
    "quantizer_config",
]
