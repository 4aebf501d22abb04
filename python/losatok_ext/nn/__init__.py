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
from losatok_ext.nn.rotary import RotaryEmbedding

__all__ = [
    "Attention",
    "Bottleneck",
    "ConvNeXtBackbone",
    "ConvNeXtBlock",
    "CrossAttention",
    "DiTBlock",
    "DiTBlockConfig",
    "FeedForward",
    "ISTFTHead",
    "ModulatedNorm",
    "Modulation",
    "MultiScaleMelLoss",
    "Projection",
    "RotaryEmbedding",
    "SelfAttention",
    "TransformerBlock",
    "kl_divergence",
    "masked_mse",
]
