"""A model in a lower precision, with what does not bear it kept in float32.

Kept: the mel front ends with their batch norm, the position embeddings, the last linear maps of the encoder, so that
latents are float32, the quantizer of them, and the decoder's inverse STFT with the linear layer before it, whose phases
make many turns. Statistics of norms, softmax and sums are taken in float32 by the ops themselves, whatever the dtype of
the weights.

``"bfloat16"`` rounds all other weights. ``"int8"`` does too, but for the linear layers of the transformer and of the
ConvNeXt blocks, 98 % of the published model: their weights become int8 with a float32 scale for each output, while what
they are multiplied with stays bfloat16. Activations are never int8: a scale for each tensor would make a clip's tokens
depend on its batch, and one for each frame gains nothing (see docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from losatok_ext.errors import CheckpointError, UserError
from losatok_ext.nn.linear import Int8Linear, Linear

if TYPE_CHECKING:
    from losatok_ext.models.tokenizer.stored_tokenizer import StoredTokenizer

M = TypeVar("M", bound="StoredTokenizer")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}

KEPT = (
    "semantic_encoder.batch_norm.",
    "semantic_encoder.time_position",
    "semantic_encoder.frequency_position",
    "fc_a.",
    "fc_mu.",
    "fc_logvar.",
    "quantizer.",
    "decoder.head.",
)
"""The parameters that stay in float32, by how their names begin."""

_WEIGHT, _SCALE = ".weight", ".scale"


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """``"float32"``, ``"bfloat16"`` or ``"int8"``, or the torch.dtype itself, as a torch.dtype.

    Raises:
        ValueError: another one.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"dtype should be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    assert found is not None
    return found


def floats_of(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of the weights that are not int8 in a model of ``dtype``: bfloat16 for int8, else ``dtype`` itself.

    Raises:
        ValueError: another than :data:`DTYPES`.
    """
    found = dtype_of(dtype)
    return torch.bfloat16 if found == torch.int8 else found


def dtype_name(model: nn.Module) -> str:
    """Which of :data:`DTYPES` ``model`` is in: the lowest that any of its weights has."""
    found = {parameter.dtype for parameter in model.parameters()}
    return next(name for name in reversed(DTYPES) if DTYPES[name] in found)


def cast(model: M, dtype: torch.dtype) -> M:
    """``model`` itself with its weights in ``dtype``, those of :data:`KEPT` in float32.

    An int8 model keeps the name of the one it was made from (:meth:`LoSATok.fingerprint`). What came out of int8 again
    has lost what int8 does not hold.
    """
    integers = dtype == torch.int8
    origin = model.fingerprint() if integers else None
    for name, module in list(model.named_modules()):
        if integers and isinstance(module, Linear) and not f"{name}.".startswith(KEPT):
            model.set_submodule(name, Int8Linear.from_linear(module))
        elif not integers and isinstance(module, Int8Linear):
            model.set_submodule(name, module.to_linear(dtype))
    rest = floats_of(dtype)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if name.startswith(KEPT) else rest)
    model.made_from = None if origin is None else (origin, model.weights_digest())
    return model


def expect(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Give ``model`` an :class:`Int8Linear` wherever the weights ``state`` are int8.

    Raises:
        CheckpointError: int8 weights where the model has no linear layer that takes them; ``source`` is named.
    """
    modules = dict(model.named_modules())
    for name, tensor in state.items():
        owner = name.removesuffix(_WEIGHT)
        if tensor.dtype != torch.int8:
            continue
        layer = modules.get(owner)
        if not isinstance(layer, Linear) or owner == name:
            raise CheckpointError(f"{source}: the tensor {name} is int8, which this model does not take there")
        model.set_submodule(owner, Int8Linear(layer.in_features, layer.out_features, layer.bias is not None))


def widened(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights ``state`` without int8: what they stand for, in float32, and no scales."""
    result = {name: tensor for name, tensor in state.items() if not name.endswith(_SCALE)}
    for name, tensor in state.items():
        if tensor.dtype == torch.int8:
            result[name] = tensor * state[name.removesuffix(_WEIGHT) + _SCALE][:, None]
    return result


def require_trainable(name: str, module: nn.Module) -> None:
    """Raise UserError where ``module``, a part of a model, has int8 weights, which no gradient can change."""
    if any(isinstance(part, Int8Linear) for part in module.modules()):
        raise UserError(f"{name} of this model is int8, which cannot be trained; train the model it was made from")
