"""Quantizers without a codebook of vector-quantize-pytorch as ours."""

from __future__ import annotations

from typing import Any

from torch import nn

from losatok_ext.nn.quantizers.base import Quantizer
from losatok_ext.nn.quantizers.build import build_quantizer
from losatok_ext.nn.quantizers.config import FSQConfig, LFQConfig
from losatok_ext.nn.quantizers.convert.shared import Options, check_code_dim, copy_projections, inner, refusal, refuse

_FINITE_OPTIONS: Options = (
    ("channel_first", "channel_first", False),
    ("return_indices", "return_indices", True),
    ("force_quantization_f32", "force_quantization_f32", True),
    ("preserve_symmetry", "preserve_symmetry", False),
    ("noise_dropout", "noise_dropout", 0.0),
    ("bound_hard_clamp", "bound_hard_clamp", False),
    ("orthogonal_rotation", "orthogonal_rotation", False),
)
_LOOKUP_FREE_OPTIONS: Options = (
    ("channel_first", "channel_first", (None, False)),
    ("soft_clamp_input_value", "soft_clamp_input_value", None),
    ("spherical", "spherical", False),
    ("orthogonal_rotation", "orthogonal_rotation", False),
    ("frac_per_sample_entropy", "frac_per_sample_entropy", 1.0),
    ("experimental_softplus_entropy_loss", "experimental_softplus_entropy_loss", False),
    ("force_quantization_f32", "force_quantization_f32", True),
)


def finite(module: Any) -> Quantizer:
    """An ``FSQ``."""
    refuse(module, "FSQ", _FINITE_OPTIONS)
    check_code_dim(module, "FSQ")
    inner(module, "FSQ")
    config = FSQConfig(levels=tuple(module._levels.tolist()), num_codebooks=module.num_codebooks)
    return copy_projections(module, build_quantizer(config, module.dim).to(module._levels.device))


def lookup_free(module: Any) -> Quantizer:
    """An ``LFQ``."""
    refuse(module, "LFQ", _LOOKUP_FREE_OPTIONS)
    check_code_dim(module, "LFQ")
    width = inner(module, "LFQ")
    if width == module.dim:
        raise refusal("LFQ", "has_projections", True)
    if not isinstance(module.activation, nn.Identity):
        raise refusal("LFQ", "straight_through_activation", module.activation)
    config = LFQConfig(
        bits=module.codebook_dim,
        num_codebooks=module.num_codebooks,
        scale=float(module.codebook_scale),
        commitment_weight=float(module.commitment_loss_weight),
        entropy_weight=float(module.entropy_loss_weight),
        diversity=float(module.diversity_gamma),
        entropy_group=min(module.codebook_dim, 24),
    )
    return copy_projections(module, build_quantizer(config, module.dim).to(module.zero.device))
