"""The part of a model that is in a run's checkpoints, and the part that never changes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from losatok_ext.errors import CheckpointError
from losatok_ext.training.engine.checkpoint import Checkpoint


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that take no gradient, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}


def changing_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training may change: parameters that take gradients, and the (few, small) buffers."""
    frozen = frozen_state(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_changing(model: nn.Module, checkpoint: Checkpoint, part: str) -> None:
    """Load the tensors that :func:`changing_state` returned into ``model``.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    found = checkpoint.tensors.get(part, {})
    for name, value in changing_state(model).items():
        there = found.get(name)
        if there is None or there.shape != value.shape:
            shape = "is missing" if there is None else f"has shape {list(there.shape)}"
            raise CheckpointError(f"{checkpoint.path}: {name} {shape}, the {part} wants {list(value.shape)}")
    model.load_state_dict(found, strict=False)


def load_frozen(model: nn.Module, frozen: Mapping[str, Tensor], where: str) -> None:
    """Load the parameters that :func:`frozen_state` returned into ``model``.

    Raises:
        CheckpointError: a parameter is missing or has another shape.
    """
    for name, parameter in frozen_state(model).items():
        if name not in frozen or frozen[name].shape != parameter.shape:
            raise CheckpointError(f"{where}: {name} is missing or has another shape; start in another folder")
        parameter.copy_(frozen[name])
