"""What all conversions need: refusing options by name, and the linear maps."""

from __future__ import annotations

from typing import Any

from torch import nn

from losatok_ext.nn.quantizers.base import Quantizer

Options = tuple[tuple[str, str, object], ...]
"""Options that ours do not have: where their modules keep each, its name, and the value (or values) that are taken."""


def refusal(kind: str, option: str, value: object) -> ValueError:
    """The error for an option that ours do not have."""
    return ValueError(f"{kind} has {option} = {value!r}, which losatok_ext.nn does not have; train without it")


def refuse(module: Any, kind: str, options: Options) -> None:
    """Raise ValueError where an option has not the value that is taken; one that is not there had not come yet."""
    for path, option, taken in options:
        accepted = taken if isinstance(taken, tuple) else (taken,)
        value = module
        for name in path.split("."):
            value = value.get(name, accepted[0]) if isinstance(value, dict) else getattr(value, name, accepted[0])
        if value not in accepted:
            raise refusal(kind, option, value)


def check_code_dim(module: Any, kind: str) -> None:
    """Raise ValueError unless codes have a last dimension just where a token has several."""
    if module.keep_num_codebooks_dim != (module.num_codebooks > 1):
        raise refusal(kind, "keep_num_codebooks_dim", module.keep_num_codebooks_dim)


def inner(module: Any, kind: str) -> int | None:
    """What ``project_in`` maps to, or None without one; raise where it is not a linear map with a bias."""
    if not module.has_projections:
        return None
    if isinstance(module.project_in, nn.Sequential):
        raise refusal(kind, "layernorm_after_project_in", True)
    if not isinstance(module.project_in, nn.Linear):
        raise refusal(kind, "cosine_sim_project_in", True)
    if module.project_in.bias is None:
        raise refusal(kind, "projection_has_bias", False)
    return module.project_in.out_features


def copy_projections(module: Any, result: Quantizer) -> Quantizer:
    """``result`` with the linear maps of ``module``."""
    for theirs, ours in ((module.project_in, result.project_in), (module.project_out, result.project_out)):
        if ours is not None:
            ours.to(theirs.weight)
            ours.load_state_dict(theirs.state_dict())
    return result


def staged(module: Any) -> dict[str, Any]:
    """The fields of :class:`StagedConfig` of a residual quantizer."""
    dropout = bool(module.quantize_dropout)
    return {
        "stages": module.num_quantizers,
        "dropout": float(dropout),
        "min_stages": module.quantize_dropout_cutoff_index + 1 if dropout else 1,
        # A multiple above the number of stages always leaves all of them, as one equal to it does.
        "dropout_multiple_of": min(module.quantize_dropout_multiple_of, module.num_quantizers) if dropout else 1,
        "stage_gradients": True,
    }
