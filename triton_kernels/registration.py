"""Registers the raw ops as ``torch.ops.losatok_triton.*``, with the schemas and the fake implementations of the native
ops.

They are registered for CUDA tensors, and for CPU tensors for Triton's interpreter; without it a CPU tensor raises
BackendUnavailableError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import losatok_ext.ops.bottleneck
import losatok_ext.ops.dit_attention
import losatok_ext.ops.gated_residual
import losatok_ext.ops.layer_norm_modulate
import losatok_ext.ops.quantize
import losatok_ext.ops.quantize_scalar
import losatok_ext.ops.time_relation
import losatok_ext.ops.vocoder  # noqa: F401 - all fill the table of fake implementations
from losatok_ext.ops.fakes import register_triton_fake
from losatok_ext.triton_kernels import (
    bottleneck,
    depthwise_conv_norm,
    dit_attention,
    gated_residual,
    layer_norm_modulate,
    normalized_reconstruction_loss,
    polar_istft,
    quantize,
    quantize_scalar,
    time_relation,
)

SCHEMAS: dict[str, tuple[str, Callable[..., Any]]] = {
    "bottleneck_project_forward": (
        "(Tensor x, Tensor weight_in, Tensor? bias_in, Tensor weight_out, Tensor? bias_out, "
        "str activation, bool keep_hidden) -> (Tensor z, Tensor hidden)",
        bottleneck.bottleneck_project_forward,
    ),
    "bottleneck_project_backward": (
        "(Tensor grad, Tensor x, Tensor hidden, Tensor weight_in, Tensor weight_out, "
        "str activation, bool need_x, bool need_parameters) -> "
        "(Tensor grad_x, Tensor grad_weight_in, Tensor grad_bias_in, Tensor grad_weight_out, Tensor grad_bias_out)",
        bottleneck.bottleneck_project_backward,
    ),
    "normalized_reconstruction_loss_forward": (
        "(Tensor z, Tensor target, Tensor weight_in, Tensor? bias_in, "
        "Tensor weight_out, Tensor? bias_out, Tensor? lengths, str activation, bool need_grad) -> "
        "(Tensor loss, Tensor grad_z, Tensor grad_weight_in, Tensor grad_bias_in, Tensor grad_weight_out, "
        "Tensor grad_bias_out)",
        normalized_reconstruction_loss.normalized_reconstruction_loss_forward,
    ),
    "time_relation_forward": (
        "(Tensor low, Tensor high, Tensor? lengths, int window, str algorithm, "
        "Tensor? high_energy, bool need_grad) -> (Tensor loss, Tensor grad_low)",
        time_relation.time_relation_forward,
    ),
    "gram_energy_forward": (
        "(Tensor high, Tensor? lengths, int window) -> Tensor",
        time_relation.gram_energy_forward,
    ),
    "vq_nearest_forward": (
        "(Tensor x, Tensor codebook, Tensor? lengths, str precision) -> (Tensor indices, Tensor squared_distance)",
        quantize.vq_nearest_forward,
    ),
    "vq_nearest_backward": (
        "(Tensor grad, Tensor x, Tensor codebook, Tensor indices, bool need_x, bool need_codebook) -> "
        "(Tensor grad_x, Tensor grad_codebook)",
        quantize.vq_nearest_backward,
    ),
    "rvq_encode_forward": (
        "(Tensor x, Tensor codebooks, Tensor? lengths, str precision) -> (Tensor codes, Tensor quantized)",
        quantize.rvq_encode_forward,
    ),
    "rvq_decode_forward": ("(Tensor codes, Tensor codebooks) -> Tensor quantized", quantize.rvq_decode_forward),
    "rvq_decode_backward": (
        "(Tensor grad, Tensor codes, Tensor codebooks) -> Tensor grad_codebooks",
        quantize.rvq_decode_backward,
    ),
    "fsq_quantize_forward": (
        "(Tensor x, int[] levels, Tensor? lengths) -> (Tensor quantized, Tensor indices)",
        quantize_scalar.fsq_quantize_forward,
    ),
    "fsq_quantize_backward": (
        "(Tensor grad, Tensor x, int[] levels, Tensor? lengths) -> Tensor grad_x",
        quantize_scalar.fsq_quantize_backward,
    ),
    "fsq_dequantize_forward": (
        "(Tensor indices, int[] levels, ScalarType dtype) -> Tensor",
        quantize_scalar.fsq_dequantize_forward,
    ),
    "affine_quantize_forward": (
        "(Tensor x, int bits) -> (Tensor packed, Tensor scale, Tensor offset)",
        quantize_scalar.affine_quantize_forward,
    ),
    "affine_dequantize_forward": (
        "(Tensor packed, Tensor scale, Tensor offset, int bits, SymInt size, ScalarType dtype) -> Tensor",
        quantize_scalar.affine_dequantize_forward,
    ),
    "layer_norm_modulate_forward": (
        "(Tensor x, Tensor shift, Tensor scale, float eps) -> (Tensor y, Tensor mean, Tensor rstd)",
        layer_norm_modulate.layer_norm_modulate_forward,
    ),
    "layer_norm_modulate_backward": (
        "(Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor rstd, bool per_frame_shift) -> "
        "(Tensor grad_x, Tensor grad_shift, Tensor grad_scale)",
        layer_norm_modulate.layer_norm_modulate_backward,
    ),
    "gated_residual_forward": (
        "(Tensor x, Tensor branch, Tensor gate) -> Tensor",
        gated_residual.gated_residual_forward,
    ),
    "gated_residual_backward": (
        "(Tensor grad, Tensor branch, Tensor gate) -> (Tensor grad_branch, Tensor grad_gate)",
        gated_residual.gated_residual_backward,
    ),
    "dit_attention_forward": (
        "(Tensor q, Tensor k, Tensor v, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, "
        "Tensor? lengths, Tensor? key_lengths, str norm, float eps, bool interleaved) -> (Tensor out, Tensor lse)",
        dit_attention.dit_attention_forward,
    ),
    "dit_attention_backward": (
        "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, "
        "Tensor? lengths, Tensor? key_lengths, Tensor out, Tensor lse, str norm, float eps, bool interleaved) -> "
        "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_q_weight, Tensor grad_k_weight)",
        dit_attention.dit_attention_backward,
    ),
    "polar_istft_forward": (
        "(Tensor head, Tensor window, int hop, Tensor? lengths) -> Tensor waveform",
        polar_istft.polar_istft_forward,
    ),
    "polar_istft_backward": (
        "(Tensor grad, Tensor head, Tensor window, int hop, Tensor? lengths) -> Tensor grad_head",
        polar_istft.polar_istft_backward,
    ),
    "depthwise_conv_norm_forward": (
        "(Tensor x, Tensor conv_weight, Tensor? conv_bias, Tensor? norm_weight, Tensor? norm_bias, float eps, "
        "Tensor? lengths) -> Tensor y",
        depthwise_conv_norm.depthwise_conv_norm_forward,
    ),
    "depthwise_conv_norm_backward": (
        "(Tensor grad, Tensor x, Tensor conv_weight, Tensor? conv_bias, Tensor? norm_weight, float eps, "
        "Tensor? lengths, bool need_x, bool need_parameters) -> (Tensor grad_x, Tensor grad_conv_weight, "
        "Tensor grad_conv_bias, Tensor grad_norm_weight, Tensor grad_norm_bias)",
        depthwise_conv_norm.depthwise_conv_norm_backward,
    ),
}
"""Schema and implementation of each raw op; the schemas are those of csrc/registration.cpp."""

library = torch.library.Library("losatok_triton", "DEF")
"""Holds the registrations: they go when it is collected."""

for _name, (_schema, _function) in SCHEMAS.items():
    library.define(_name + _schema)
    for _key in ("CUDA", "CPU"):
        library.impl(_name, _function, _key)
    register_triton_fake(_name)
