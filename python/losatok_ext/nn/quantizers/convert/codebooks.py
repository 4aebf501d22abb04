"""Quantizers with codebooks of vector-quantize-pytorch as ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from losatok_ext.nn.quantizers.base import Quantizer
from losatok_ext.nn.quantizers.build import build_quantizer
from losatok_ext.nn.quantizers.chain import Chain
from losatok_ext.nn.quantizers.config import ResidualVQConfig, VQConfig
from losatok_ext.nn.quantizers.convert.shared import Options, copy_projections, inner, refusal, refuse, staged

_CODEBOOK_OPTIONS: Options = (
    ("heads", "heads", 1),
    ("channel_last", "channel_last", True),
    ("accept_image_fmap", "accept_image_fmap", False),
    ("accept_3d_fmap", "accept_3d_fmap", False),
    ("freeze_codebook", "freeze_codebook", False),
    ("commitment_use_cross_entropy_loss", "commitment_use_cross_entropy_loss", False),
    ("has_codebook_orthogonal_loss", "orthogonal_reg_weight", False),
    ("has_codebook_diversity_loss", "codebook_diversity_loss_weight", False),
    ("directional_reparam", "directional_reparam", False),
    ("in_place_codebook_optimizer", "in_place_codebook_optimizer", None),
    ("sync_update_v", "sync_update_v", 0.0),
    ("route_gradients_to_input", "route_gradients_to_input", True),
    ("return_zeros_for_masked_padding", "return_zeros_for_masked_padding", True),
    ("_codebook.affine_param", "affine_param", False),
    ("_codebook.vq_bridge", "vq_bridge", None),
    ("_codebook.gumbel_sample.keywords.stochastic", "stochastic_sample_codes", False),
    ("_codebook.gumbel_sample.keywords.straight_through", "straight_through", False),
)
_VECTOR_OPTIONS: Options = (*_CODEBOOK_OPTIONS, ("_codebook.manual_ema_update", "manual_ema_update", False))
_RESIDUAL_OPTIONS: Options = (
    ("accept_image_fmap", "accept_image_fmap", False),
    ("implicit_neural_codebook", "implicit_neural_codebook", False),
    ("diveq", "diveq", False),
    ("quant_grad_frac", "quant_grad_frac", 0.0),
    ("uniform_codebook_size", "codebook_size", True),
    ("beam_size", "beam_size", None),
    ("return_zeros_for_masked_padding", "return_zeros_for_masked_padding", True),
)


def vector(module: Any) -> Quantizer:
    """A ``VectorQuantize``."""
    refuse(module, "VectorQuantize", _VECTOR_OPTIONS)
    options = _codebook_options(module, "VectorQuantize")
    config = VQConfig(**options, codebook_dim=inner(module, "VectorQuantize"))
    result = build_quantizer(config, module.dim)
    copy_projections(module, result)
    _copy_codebooks([module._codebook], result)
    return result


def residual(module: Any) -> Quantizer:
    """A ``ResidualVQ``."""
    refuse(module, "ResidualVQ", _RESIDUAL_OPTIONS)
    for layer in module.layers:  # a shared codebook is updated by hand, once per step
        refuse(layer, "ResidualVQ", _CODEBOOK_OPTIONS if module.shared_codebook else _VECTOR_OPTIONS)
    first = module.layers[0]
    if len({bool(layer._codebook.initted) for layer in module.layers}) > 1:
        raise ValueError(
            "ResidualVQ has stages that have not yet started from k-means beside others that have; "
            "train it for a step without quantize_dropout first"
        )
    options = _codebook_options(first, "ResidualVQ")
    if options.pop("cosine"):
        raise refusal("ResidualVQ", "use_cosine_sim", True)
    config = ResidualVQConfig(
        **options,
        codebook_dim=inner(module, "ResidualVQ"),
        **staged(module),
        shared=module.shared_codebook,
    )
    dim = module.project_in.in_features if module.has_projections else module.codebook_dim
    result = build_quantizer(config, dim)
    copy_projections(module, result)
    books = [layer._codebook for layer in module.layers]
    _copy_codebooks(books[:1] if module.shared_codebook else books, result)
    return result


def _codebook_options(module: Any, kind: str) -> dict[str, Any]:
    """The options of a ``VectorQuantize`` as fields of :class:`VQConfig`."""
    book = module._codebook
    if not (module.learnable_codebook or book.ema_update):
        raise refusal(kind, "ema_update", False)
    threshold, reset = float(book.threshold_ema_dead_code), float(book.reset_cluster_size)
    if reset < threshold:
        raise refusal(kind, "reset_cluster_size", reset)
    return {
        "codebook_size": module.codebook_size,
        "codebook": "learned" if module.learnable_codebook else "ema",
        "decay": float(book.decay),
        "epsilon": float(book.eps),
        "gradient": "rotation" if module.rotation_trick else "straight_through",
        "cosine": bool(module.use_cosine_sim),
        "commitment_weight": float(module.commitment_weight),
        "codebook_weight": float(module.commitment_weight),  # theirs is one loss with both gradients
        "kmeans": not bool(book.initted),
        "kmeans_iterations": book.kmeans_iters,
        "dead_below": threshold,
        "revived_at": reset,
        "usage_unit": "frames",
    }


def _copy_codebooks(books: list[Any], result: Quantizer) -> None:
    assert isinstance(result, Chain)

    def stacked(name: str) -> Tensor:
        return torch.cat([getattr(book, name).detach() for book in books])

    ours = result.codebooks
    ours.to(books[0].embed)
    ours.codes.copy_(stacked("embed"))
    ours.usage.copy_(stacked("cluster_size"))
    if ours.sums is not None:
        ours.sums.copy_(stacked("embed_avg"))
