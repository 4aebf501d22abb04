"""Modules on the fused ops."""

from losatok_ext.nn.attention import Attention, TransformerBlock
from losatok_ext.nn.bottleneck import Bottleneck, Projection
from losatok_ext.nn.convnext import ConvNeXtBackbone, ConvNeXtBlock
from losatok_ext.nn.istft import ISTFTHead

__all__ = [
    "Attention",
    "Bottleneck",
    "ConvNeXtBackbone",
    "ConvNeXtBlock",
    "ISTFTHead",
    "Projection",
    "TransformerBlock",
]
