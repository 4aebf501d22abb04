"""From modules of the library vector-quantize-pytorch to ours, trained weights and statistics included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from losatok_ext.nn.quantizers.base import Quantizer
from losatok_ext.nn.quantizers.build import build_quantizer
from losatok_ext.nn.quantizers.chain import Chain
from losatok_ext.nn.quantizers.config import FSQConfig, LFQConfig, ResidualVQConfig, VQConfig

# Options that ours do not have: where their modules keep each, its name, and the value (or values) that are taken.
_CODEBOOK_OPTIONS = (
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
_VECTOR_OPTIONS = (*_CODEBOOK_OPTIONS, ("_codebook.manual_ema_update", "manual_ema_update", False))
_RESIDUAL_OPTIONS = (
    ("accept_image_fmap", "accept_image_fmap", False),
    ("implicit_neural_codebook", "implicit_neural_codebook", False),
    ("diveq", "diveq", False),
    ("quant_grad_frac", "quant_grad_frac", 0.0),
    ("quantize_dropout_multiple_of", "quantize_dropout_multiple_of", 1),
    ("uniform_codebook_size", "codebook_size", True),
    ("beam_size", "beam_size", None),
    ("return_zeros_for_masked_padding", "return_zeros_for_masked_padding", True),
)
_FINITE_OPTIONS = (
    ("channel_first", "channel_first", False),
    ("return_indices", "return_indices", True),
    ("force_quantization_f32", "force_quantization_f32", True),
    ("preserve_symmetry", "preserve_symmetry", False),
    ("noise_dropout", "noise_dropout", 0.0),
    ("bound_hard_clamp", "bound_hard_clamp", False),
    ("orthogonal_rotation", "orthogonal_rotation", False),
)
_LOOKUP_FREE_OPTIONS = (
    ("channel_first", "channel_first", (None, False)),
    ("soft_clamp_input_value", "soft_clamp_input_value", None),
    ("spherical", "spherical", False),
    ("orthogonal_rotation", "orthogonal_rotation", False),
    ("frac_per_sample_entropy", "frac_per_sample_entropy", 1.0),
    ("experimental_softplus_entropy_loss", "experimental_softplus_entropy_loss", False),
    ("force_quantization_f32", "force_quantization_f32", True),
)


def from_vector_quantize_pytorch(module: nn.Module) -> Quantizer:
    """Our quantizer with the options, weights and statistics of one of vector-quantize-pytorch.

    It chooses the same codes (but for equal distances), decodes them alike, and goes on training alike: gradients,
    moving means and the losses' values. Two things are drawn in another way: rows for a start and for revived codes,
    and which stages quantizer dropout leaves out, which theirs draws once per batch and ours per clip. With a mask,
    theirs takes the commitment loss before ``project_in`` and the normalization of ``use_cosine_sim``; ours takes it
    behind them, as both do without one.

    Args:
        module: a ``VectorQuantize``, ``ResidualVQ``, ``FSQ`` or ``LFQ`` of that library (held against version 1.32).

    Returns:
        A copy that shares no memory with ``module``, on its device and in its mode (training or eval).

    Raises:
        TypeError: a module of another class.
        ValueError: an option that ours does not have; the message names it.
    """
    for kind in type(module).__mro__:
        if kind.__module__.split(".")[0] == "vector_quantize_pytorch" and kind.__name__ in _CONVERTERS:
            with torch.no_grad():
                result = _CONVERTERS[kind.__name__](module)
            return result.train(module.training)
    raise TypeError(
        f"module should be one of {', '.join(_CONVERTERS)} of vector_quantize_pytorch, "
        f"got {type(module).__module__}.{type(module).__name__}"
    )


def _vector(module: Any) -> Quantizer:
    _refuse(module, "VectorQuantize", _VECTOR_OPTIONS)
    options = _codebook_options(module, "VectorQuantize")
    config = VQConfig(**options, codebook_dim=_inner(module, "VectorQuantize"))
    result = build_quantizer(config, module.dim)
    _copy_projections(module, result)
    _copy_codebooks([module._codebook], result)
    return result


def _residual(module: Any) -> Quantizer:
    _refuse(module, "ResidualVQ", _RESIDUAL_OPTIONS)
    for layer in module.layers:  # a shared codebook is updated by hand, once per step
        _refuse(layer, "ResidualVQ", _CODEBOOK_OPTIONS if module.shared_codebook else _VECTOR_OPTIONS)
    first = module.layers[0]
    if len({bool(layer._codebook.initted) for layer in module.layers}) > 1:
        raise ValueError(
            "ResidualVQ has stages that have not yet started from k-means beside others that have; "
            "train it for a step without quantize_dropout first"
        )
    options = _codebook_options(first, "ResidualVQ")
    if options.pop("cosine"):
        raise _refusal("ResidualVQ", "use_cosine_sim", True)
    config = ResidualVQConfig(
        **options,
        codebook_dim=_inner(module, "ResidualVQ"),
        stages=module.num_quantizers,
        shared=module.shared_codebook,
        dropout=float(module.quantize_dropout),
        min_stages=module.quantize_dropout_cutoff_index + 1 if module.quantize_dropout else 1,
        stage_gradients=True,
    )
    dim = module.project_in.in_features if module.has_projections else module.codebook_dim
    result = build_quantizer(config, dim)
    _copy_projections(module, result)
    books = [layer._codebook for layer in module.layers]
    _copy_codebooks(books[:1] if module.shared_codebook else books, result)
    return result


def _finite(module: Any) -> Quantizer:
    _refuse(module, "FSQ", _FINITE_OPTIONS)
    _check_code_dim(module, "FSQ")
    _inner(module, "FSQ")
    config = FSQConfig(levels=tuple(module._levels.tolist()), num_codebooks=module.num_codebooks)
    return _copy_projections(module, build_quantizer(config, module.dim).to(module._levels.device))


def _lookup_free(module: Any) -> Quantizer:
    _refuse(module, "LFQ", _LOOKUP_FREE_OPTIONS)
    _check_code_dim(module, "LFQ")
    inner = _inner(module, "LFQ")
    if inner == module.dim:
        raise _refusal("LFQ", "has_projections", True)
    if not isinstance(module.activation, nn.Identity):
        raise _refusal("LFQ", "straight_through_activation", module.activation)
    config = LFQConfig(
        bits=module.codebook_dim,
        num_codebooks=module.num_codebooks,
        scale=float(module.codebook_scale),
        commitment_weight=float(module.commitment_loss_weight),
        entropy_weight=float(module.entropy_loss_weight),
        diversity=float(module.diversity_gamma),
        entropy_group=min(module.codebook_dim, 24),
    )
    return _copy_projections(module, build_quantizer(config, module.dim).to(module.zero.device))


_CONVERTERS: dict[str, Callable[[Any], Quantizer]] = {
    "VectorQuantize": _vector,
    "ResidualVQ": _residual,
    "FSQ": _finite,
    "LFQ": _lookup_free,
}


def _refusal(kind: str, option: str, value: object) -> ValueError:
    return ValueError(f"{kind} has {option} = {value!r}, which losatok_ext.nn does not have; train without it")


def _refuse(module: Any, kind: str, options: tuple[tuple[str, str, object], ...]) -> None:
    """Raise ValueError where an option has not the value that is taken; one that is not there had not come yet."""
    for path, option, taken in options:
        accepted = taken if isinstance(taken, tuple) else (taken,)
        value = module
        for name in path.split("."):
            value = value.get(name, accepted[0]) if isinstance(value, dict) else getattr(value, name, accepted[0])
        if value not in accepted:
            raise _refusal(kind, option, value)


def _codebook_options(module: Any, kind: str) -> dict[str, Any]:
    """The options of a ``VectorQuantize`` as fields of :class:`VQConfig`."""
    book = module._codebook
    if not (module.learnable_codebook or book.ema_update):
        raise _refusal(kind, "ema_update", False)
    threshold, reset = float(book.threshold_ema_dead_code), float(book.reset_cluster_size)
    if reset < threshold:
        raise _refusal(kind, "reset_cluster_size", reset)
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


def _check_code_dim(module: Any, kind: str) -> None:
    if module.keep_num_codebooks_dim != (module.num_codebooks > 1):
        raise _refusal(kind, "keep_num_codebooks_dim", module.keep_num_codebooks_dim)


def _inner(module: Any, kind: str) -> int | None:
    """What ``project_in`` maps to, or None without one; raise where it is not a linear map with a bias."""
    if not module.has_projections:
        return None
    if isinstance(module.project_in, nn.Sequential):
        raise _refusal(kind, "layernorm_after_project_in", True)
    if not isinstance(module.project_in, nn.Linear):
        raise _refusal(kind, "cosine_sim_project_in", True)
    if module.project_in.bias is None:
        raise _refusal(kind, "projection_has_bias", False)
    return module.project_in.out_features


def _copy_projections(module: Any, result: Quantizer) -> Quantizer:
    for theirs, ours in ((module.project_in, result.project_in), (module.project_out, result.project_out)):
        if ours is not None:
            ours.to(theirs.weight)
            ours.load_state_dict(theirs.state_dict())
    return result


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
