"""Models in a lower precision: which dtypes there are, and how a model's weights change from one to another.

``"bfloat16"`` rounds the weights to bfloat16. ``"int8"`` does too, except for those of the linear layers
(:class:`losatok_ext.nn.linear.Linear`): they become int8, with a float32 scale for each output. Activations are never
int8: one scale for each tensor would make a clip's tokens depend on its batch, and one scale for each frame gains
nothing (see docs/speed.md).

A model names the weights that have to stay in float32 (for the tokenizer see
:data:`losatok_ext.models.tokenizer.stored_tokenizer.KEPT_IN_FLOAT32`). The statistics of norms, softmax and sums are
computed in float32 by the ops, whatever the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from losatok_ext.errors import CheckpointError, UserError
from losatok_ext.nn.linear import Int8Linear, Linear

M = TypeVar("M", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}

_WEIGHT, _SCALE = ".weight", ".scale"


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """``"float32"``, ``"bfloat16"`` or ``"int8"``, or the torch.dtype itself, as a torch.dtype.

    Raises:
        ValueError: another dtype.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"dtype should be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    assert found is not None
    return found


def floats_of(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of those weights of a model in ``dtype`` that are not int8: bfloat16 for int8, else ``dtype`` itself.

    Raises:
        ValueError: a dtype that is not in :data:`DTYPES`.
    """
    found = dtype_of(dtype)
    return torch.bfloat16 if found == torch.int8 else found


def dtype_name(model: nn.Module) -> str:
    """The smallest dtype of the model's weights, by name, such as ``"float32"``."""
    smallest = min({parameter.dtype for parameter in model.parameters()}, key=lambda dtype: dtype.itemsize)
    return str(smallest).removeprefix("torch.")


def cast(model: M, dtype: torch.dtype, kept: tuple[str, ...]) -> M:
    """Change the weights of ``model`` to ``dtype``, in place.

    A model that was int8 does not get back what int8 has rounded away.

    Args:
        model: changed and returned.
        dtype: one of :data:`DTYPES`.
        kept: the parameters whose names begin with one of these are float32 in any precision.
    """
    integers = dtype == torch.int8
    for name, module in list(model.named_modules()):
        if integers and isinstance(module, Linear) and not f"{name}.".startswith(kept):
            model.set_submodule(name, Int8Linear.from_linear(module))
        elif not integers and isinstance(module, Int8Linear):
            model.set_submodule(name, module.to_linear(dtype))
    rest = floats_of(dtype)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if name.startswith(kept) else rest)
    return model


def expect_int8(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Replace the linear layers of ``model`` whose weights in ``state`` are int8 by :class:`Int8Linear`.

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
    """The weights ``state`` with each int8 tensor multiplied by its scale, as float32; the scales are left out."""
    result = {name: tensor for name, tensor in state.items() if not name.endswith(_SCALE)}
    for name, tensor in state.items():
        if tensor.dtype == torch.int8:
            result[name] = tensor * state[name.removesuffix(_WEIGHT) + _SCALE][:, None]
    return result


def require_trainable(name: str, module: nn.Module) -> None:
    """Check that no weight of ``module`` is int8, which no gradient can change.

    Args:
        name: of the part of the model, for the message.
        module: the part.

    Raises:
        UserError: it has int8 weights.
    """
    if any(isinstance(part, Int8Linear) for part in module.modules()):
        raise UserError(f"{name} of this model is int8, which cannot be trained; train the model it was made from")
