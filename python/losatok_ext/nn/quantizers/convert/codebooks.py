"""Quantizers with codebooks of vector-quantize-pytorch as ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from losatok_ext.nn.quantizers.base import Quantizer
from losatok_ext.nn.quantizers.build import build_quantizer
from losatok_ext.nn.quantizers.config import ResidualVQConfig, SimVQConfig, VQConfig
from losatok_ext.nn.quantizers.convert.shared import Options, copy_projections, inner, refusal, refuse, staged
from losatok_ext.nn.quantizers.residual import ResidualVQ
from losatok_ext.nn.quantizers.simple import SimVQ
from losatok_ext.nn.quantizers.vector import VectorQuantizer

_CODEBOOK_OPTIONS: Options = (
    ("heads", "heads", 1),
    ("channel_last", "channel_last", True),
    ("accept_image_fmap", "accept_image_fmap", False),
    ("accept_3d_fmap", "accept_3d_fmap", False),
    ("freeze_codebook", "freeze_codebook", False),
    ("commitment_use_cross_entropy_loss", "commitment_use_cross_entropy_loss", False),
    ("has_codebook_orthogonal_loss", "orthogonal_reg_weight", False),
    ("has_codebook_diversity_loss", "codebook_diversity_loss_weight", False),
    ("in_place_codebook_optimizer", "in_place_codebook_optimizer", None),
    ("sync_update_v", "sync_update_v", 0.0),
    ("return_zeros_for_masked_padding", "return_zeros_for_masked_padding", True),
    ("_codebook.affine_param", "affine_param", False),
    ("_codebook.vq_bridge", "vq_bridge", None),
    ("_codebook.gumbel_sample.keywords.stochastic", "stochastic_sample_codes", False),
    ("_codebook.gumbel_sample.keywords.straight_through", "straight_through", False),
)
_ROUTED: Options = (("route_gradients_to_input", "route_gradients_to_input", True),)
_UPDATED: Options = (("_codebook.manual_ema_update", "manual_ema_update", False),)
_CUT_OFF: Options = (("quant_grad_frac", "quant_grad_frac", 0.0),)
_SIMPLE_OPTIONS: Options = (("channel_first", "channel_first", False),)
_RESIDUAL_OPTIONS: Options = (
    ("accept_image_fmap", "accept_image_fmap", False),
    ("implicit_neural_codebook", "implicit_neural_codebook", False),
    ("uniform_codebook_size", "codebook_size", True),
    ("beam_size", "beam_size", None),
    ("return_zeros_for_masked_padding", "return_zeros_for_masked_padding", True),
)


_NOISE = 5e-3
"""The variance that a ``ResidualVQ`` with ``diveq`` has, without an option for it."""


def vector(module: Any) -> Quantizer:
    """A ``VectorQuantize``."""
    refuse(module, "VectorQuantize", _CODEBOOK_OPTIONS + _ROUTED + _UPDATED)
    options = _codebook_options(module, "VectorQuantize")
    config = VQConfig(**options, codebook_dim=inner(module, "VectorQuantize"))
    result = build_quantizer(config, module.dim)
    copy_projections(module, result)
    _copy_codebooks([module._codebook], result)
    return result


def residual(module: Any) -> Quantizer:
    """A ``ResidualVQ``."""
    # With diveq the stages pass no gradients; the module passes that of their sum. An older library has no diveq.
    directional = bool(getattr(module, "diveq", False))
    refuse(module, "ResidualVQ", _RESIDUAL_OPTIONS + (() if directional else _CUT_OFF))
    layer_options = _CODEBOOK_OPTIONS + (() if directional else _ROUTED)
    for layer in module.layers:  # a shared codebook is updated by hand, once per step
        refuse(layer, "ResidualVQ", layer_options + (() if module.shared_codebook else _UPDATED))
    first = module.layers[0]
    if len({bool(layer._codebook.initted) for layer in module.layers}) > 1:
        raise ValueError(
            "ResidualVQ has stages that have not yet started from k-means beside others that have; "
            "train it for a step without quantize_dropout first"
        )
    options = _codebook_options(first, "ResidualVQ")
    if options.pop("cosine"):
        raise refusal("ResidualVQ", "use_cosine_sim", True)
    options |= {**staged(module), "codebook_dim": inner(module, "ResidualVQ"), "shared": module.shared_codebook}
    if directional:
        options |= {"gradient": "directional", "direction_noise": _NOISE, "stage_gradients": False}
    config = ResidualVQConfig(**options)
    dim = module.project_in.in_features if module.has_projections else module.codebook_dim
    result = build_quantizer(config, dim)
    copy_projections(module, result)
    books = [layer._codebook for layer in module.layers]
    _copy_codebooks(books[:1] if module.shared_codebook else books, result)
    return result


def simple(module: Any) -> Quantizer:
    """A ``SimVQ``."""
    return _mapped(module, [module], "SimVQ", {})


def residual_simple(module: Any) -> Quantizer:
    """A ``ResidualSimVQ``."""
    return _mapped(module, list(module.layers), "ResidualSimVQ", staged(module))


def _mapped(module: Any, layers: list[Any], kind: str, options: dict[str, Any]) -> Quantizer:
    """A ``SimVQ`` for each stage."""
    refuse(module, kind, _SIMPLE_OPTIONS)
    first = layers[0]
    for layer in layers:
        if not isinstance(layer.code_transform, nn.Linear) or layer.code_transform.bias is not None:
            raise refusal(kind, "codebook_transform", layer.code_transform)
    weight, total = first.code_transform.weight, float(first.commitment_weight)
    config = SimVQConfig(
        **options,
        codebook_size=first.codebook_size,
        gradient="rotation" if first.rotation_trick else "straight_through",
        commitment_weight=total * float(first.input_to_quantize_commit_loss_weight),
        codebook_weight=total,
        frozen_dim=weight.shape[1],
    )
    result = SimVQ(config, weight.shape[0])
    result.codebooks.to(weight)
    result.codebooks.frozen.copy_(torch.stack([layer.frozen_codebook for layer in layers]))
    result.codebooks.map.copy_(torch.stack([layer.code_transform.weight for layer in layers]))
    return result


def _codebook_options(module: Any, kind: str) -> dict[str, Any]:
    """The options of a ``VectorQuantize`` as fields of :class:`VQConfig`."""
    book = module._codebook
    if not (module.learnable_codebook or book.ema_update):
        raise refusal(kind, "ema_update", False)
    threshold, reset = float(book.threshold_ema_dead_code), float(book.reset_cluster_size)
    if reset < threshold:
        raise refusal(kind, "reset_cluster_size", reset)
    directional = bool(getattr(module, "directional_reparam", False))
    gradient = "directional" if directional else "rotation" if module.rotation_trick else "straight_through"
    commitment = 0.0 if directional else float(module.commitment_weight)
    return {
        "codebook_size": module.codebook_size,
        "codebook": "learned" if module.learnable_codebook else "ema",
        "decay": float(book.decay),
        "epsilon": float(book.eps),
        "gradient": gradient,
        "direction_noise": float(module.directional_reparam_variance) if directional else _NOISE,
        "cosine": bool(module.use_cosine_sim),
        "commitment_weight": commitment,
        "codebook_weight": commitment,  # theirs is one loss with both gradients
        "kmeans": not bool(book.initted),
        "kmeans_iterations": book.kmeans_iters,
        "dead_below": threshold,
        "revived_at": reset,
        "usage_unit": "frames",
    }


def _copy_codebooks(books: list[Any], result: Quantizer) -> None:
    assert isinstance(result, VectorQuantizer | ResidualVQ)

    def stacked(name: str) -> Tensor:
        return torch.cat([getattr(book, name).detach() for book in books])

    ours = result.codebooks
    ours.to(books[0].embed)
    ours.codes.copy_(stacked("embed"))
    ours.usage.copy_(stacked("cluster_size"))
    if ours.sums is not None:
        ours.sums.copy_(stacked("embed_avg"))
