"""Quantizers without a codebook of vector-quantize-pytorch as ours."""

from __future__ import annotations

from typing import Any

from torch import nn

from losatok_ext.nn.quantizers.base import Quantizer
from losatok_ext.nn.quantizers.build import build_quantizer
from losatok_ext.nn.quantizers.config import FSQConfig, LFQConfig, ResidualFSQConfig, ResidualLFQConfig
from losatok_ext.nn.quantizers.convert.shared import (
    Options,
    check_code_dim,
    copy_projections,
    inner,
    refusal,
    refuse,
    staged,
)

_FINITE_OPTIONS: Options = (
    ("channel_first", "channel_first", False),
    ("return_indices", "return_indices", True),
    ("force_quantization_f32", "force_quantization_f32", True),
    ("preserve_symmetry", "preserve_symmetry", False),
    ("noise_dropout", "noise_dropout", 0.0),
    ("bound_hard_clamp", "bound_hard_clamp", False),
    ("orthogonal_rotation", "orthogonal_rotation", False),
)
_SYMMETRIC_OPTIONS: Options = (
    *(option for option in _FINITE_OPTIONS if option[1] not in ("preserve_symmetry", "bound_hard_clamp")),
    ("bound_hard_clamp", "bound_hard_clamp", True),
    ("num_codebooks", "num_codebooks", 1),
    ("keep_num_codebooks_dim", "keep_num_codebooks_dim", False),
)
_RESIDUAL_FINITE_OPTIONS: Options = (("is_channel_first", "is_channel_first", False),)
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


def residual_finite(module: Any) -> Quantizer:
    """A ``ResidualFSQ``."""
    kind = "ResidualFSQ"
    refuse(module, kind, _RESIDUAL_FINITE_OPTIONS)
    first = module.layers[0]
    for layer in module.layers:
        refuse(layer, kind, _SYMMETRIC_OPTIONS)
    inner(module, kind)
    config = ResidualFSQConfig(levels=tuple(first._levels.tolist()), **staged(module))
    dim = module.project_in.in_features if module.has_projections else len(config.levels)
    return copy_projections(module, build_quantizer(config, dim).to(module.scales.device))


def lookup_free(module: Any) -> Quantizer:
    """An ``LFQ``."""
    check_code_dim(module, "LFQ")
    width = inner(module, "LFQ")
    if width == module.dim:
        raise refusal("LFQ", "has_projections", True)
    config = LFQConfig(**_lookup_free_options(module, "LFQ"), num_codebooks=module.num_codebooks)
    return copy_projections(module, build_quantizer(config, module.dim).to(module.zero.device))


def residual_lookup_free(module: Any) -> Quantizer:
    """A ``ResidualLFQ``."""
    kind = "ResidualLFQ"
    first = module.layers[0]
    options = [_lookup_free_options(layer, kind) for layer in module.layers]
    refuse(first, kind, (("keep_num_codebooks_dim", "keep_num_codebooks_dim", False),))
    inner(module, kind)
    config = ResidualLFQConfig(**options[0], **staged(module))
    dim = module.project_in.in_features if module.has_projections else config.bits
    return copy_projections(module, build_quantizer(config, dim).to(first.zero.device))


def _lookup_free_options(module: Any, kind: str) -> dict[str, Any]:
    """The options of an ``LFQ`` as fields of :class:`LFQConfig`."""
    refuse(module, kind, _LOOKUP_FREE_OPTIONS)
    if not isinstance(module.activation, nn.Identity):
        raise refusal(kind, "straight_through_activation", module.activation)
    return {
        "bits": module.codebook_dim,
        "scale": float(module.codebook_scale),
        "commitment_weight": float(module.commitment_loss_weight),
        "entropy_weight": float(module.entropy_loss_weight),
        "diversity": float(module.diversity_gamma),
        "entropy_group": min(module.codebook_dim, 24),
    }
