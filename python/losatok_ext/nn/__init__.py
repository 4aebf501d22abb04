"""Modules on the fused ops."""

from losatok_ext.nn.attention import Attention, TransformerBlock
from losatok_ext.nn.bottleneck import Bottleneck, Projection
from losatok_ext.nn.convnext import ConvNeXtBackbone, ConvNeXtBlock
from losatok_ext.nn.istft import ISTFTHead
from losatok_ext.nn.losses import MultiScaleMelLoss, kl_divergence, masked_mse

__all__ = [
    "Attention",
    "Bottleneck",
    "ConvNeXtBackbone",
    "ConvNeXtBlock",
    "ISTFTHead",
    "MultiScaleMelLoss",
    "Projection",
    "TransformerBlock",
    "kl_divergence",
    "masked_mse",
]
