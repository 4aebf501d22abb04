"""Modules on the fused ops."""

from losatok_ext.nn.attention import Attention, TransformerBlock
from losatok_ext.nn.bottleneck import Bottleneck, Projection
from losatok_ext.nn.convnext import ConvNeXtBackbone, ConvNeXtBlock
from losatok_ext.nn.dit_attention import CrossAttention, SelfAttention
from losatok_ext.nn.dit_block import DiTBlock, DiTBlockConfig
from losatok_ext.nn.feed_forward import FeedForward
from losatok_ext.nn.istft import ISTFTHead
from losatok_ext.nn.losses import MultiScaleMelLoss, kl_divergence, masked_mse
from losatok_ext.nn.modulation import ModulatedNorm, Modulation
from losatok_ext.nn.quantizers import (
    FSQ,
    LFQ,
    AffineConfig,
    AffineQuantizer,
    FSQConfig,
    GroupedConfig,
    GroupedQuantizer,
    LFQConfig,
    Quantized,
    Quantizer,
    QuantizerConfig,
    ResidualFSQ,
    ResidualFSQConfig,
    ResidualLFQ,
    ResidualLFQConfig,
    ResidualVQ,
    ResidualVQConfig,
    SimVQ,
    SimVQConfig,
    VectorQuantizer,
    VQConfig,
    build_quantizer,
    from_vector_quantize_pytorch,
    quantizer_config,
)
from losatok_ext.nn.rotary import RotaryEmbedding

__all__ = [
    "FSQ",
    "LFQ",
    "AffineConfig",
    "AffineQuantizer",
    "Attention",
    "Bottleneck",
    "ConvNeXtBackbone",
    "ConvNeXtBlock",
    "CrossAttention",
    "DiTBlock",
    "DiTBlockConfig",
    "FSQConfig",
    "FeedForward",
    "GroupedConfig",
    "GroupedQuantizer",
    "ISTFTHead",
    "LFQConfig",
    "ModulatedNorm",
    "Modulation",
    "MultiScaleMelLoss",
    "Projection",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualFSQ",
    "ResidualFSQConfig",
    "ResidualLFQ",
    "ResidualLFQConfig",
    "ResidualVQ",
    "ResidualVQConfig",
    "RotaryEmbedding",
    "SelfAttention",
    "SimVQ",
    "SimVQConfig",
    "TransformerBlock",
    "VQConfig",
    "VectorQuantizer",
    "build_quantizer",
    "from_vector_quantize_pytorch",
    "kl_divergence",
    "masked_mse",
    "quantizer_config",
]
