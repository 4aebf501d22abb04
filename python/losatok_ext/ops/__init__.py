"""Fused ops for low-dimensional audio latents: functions of torch tensors, with gradients where they are defined.

``losatok_ext.info()`` says which implementation of each op runs, and :class:`losatok_ext.use_backend` chooses another.
"""

from losatok_ext.ops.bottleneck import bottleneck_project, normalized_reconstruction_loss
from losatok_ext.ops.dit_attention import dit_attention
from losatok_ext.ops.gated_residual import gated_residual
from losatok_ext.ops.int8_linear import int8_linear
from losatok_ext.ops.layer_norm_modulate import layer_norm_modulate
from losatok_ext.ops.quantize import rvq_decode, rvq_encode, vq_nearest
from losatok_ext.ops.quantize_scalar import affine_dequantize, affine_quantize, fsq_dequantize, fsq_quantize
from losatok_ext.ops.time_relation import gram_energy, time_relation_loss
from losatok_ext.ops.vocoder import depthwise_conv_norm, polar_istft

__all__ = [
    "affine_dequantize",
    "affine_quantize",
    "bottleneck_project",
    "depthwise_conv_norm",
    "dit_attention",
    "fsq_dequantize",
    "fsq_quantize",
    "gated_residual",
    "gram_energy",
    "int8_linear",
    "layer_norm_modulate",
    "normalized_reconstruction_loss",
    "polar_istft",
    "rvq_decode",
    "rvq_encode",
    "time_relation_loss",
    "vq_nearest",
]
