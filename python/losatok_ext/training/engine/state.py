"""The part of a model that a run's checkpoints hold, and the part that never changes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from losatok_ext.errors import CheckpointError
from losatok_ext.training.engine.checkpoint import Checkpoint


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that take no gradient, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}


def changing_state(model: nn.Module) -> dict[str, Tensor]:
    """What training may change: the parameters that take gradients, and the model's buffers (few and small)."""
    frozen = frozen_state(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_changing(model: nn.Module, checkpoint: Checkpoint, part: str) -> None:
    """Put what :func:`changing_state` gave back into ``model``.

    Raises:
        CheckpointError: it does not fit.
    """
    found = checkpoint.tensors.get(part, {})
    for name, value in changing_state(model).items():
        there = found.get(name)
        if there is None or there.shape != value.shape:
            shape = "is missing" if there is None else f"has shape {list(there.shape)}"
            raise CheckpointError(f"{checkpoint.path}: {name} {shape}, the {part} wants {list(value.shape)}")
    model.load_state_dict(found, strict=False)


def load_frozen(model: nn.Module, frozen: Mapping[str, Tensor], where: str) -> None:
    """Put what :func:`frozen_state` gave back into ``model``.

    Raises:
        CheckpointError: it does not fit.
    """
    for name, parameter in frozen_state(model).items():
        if name not in frozen or frozen[name].shape != parameter.shape:
            raise CheckpointError(f"{where}: {name} is missing or has another shape; start in another folder")
        parameter.copy_(frozen[name])
