"""The files of a model folder: ``config.json`` and ``model.safetensors``, never pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from losatok_ext.errors import CheckpointError
from losatok_ext.files import atomic_path, checksum
from losatok_ext.models.storage import precision
from losatok_ext.models.storage.folders import (
    CHECKSUM,
    CONFIG_FILE,
    NEXT_FILE,
    WEIGHTS_FILE,
    ModelFolder,
    configuration_file,
)
from losatok_ext.models.storage.stored_config import StoredConfig

M = TypeVar("M", bound=nn.Module)

STATISTICS = (".codebooks.usage", ".codebooks.sums")
"""Ends of the names of tensors that codebooks learn from. No code depends on them."""


class Storable(Protocol):
    """A model that can be saved."""

    @property
    def config(self) -> Any:
        """Its configuration, a :class:`StoredConfig`."""

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights by name."""


def save(
    model: Storable, folder: str | os.PathLike[str], model_type: str, extra: Mapping[str, Any] | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder``, which is made if it does not exist.

    A process that is killed in between leaves the model that was there before, or the new one.

    Args:
        model: its configuration and weights are written.
        folder: where to write.
        model_type: a key of :data:`~losatok_ext.models.storage.folders.MODEL_TYPES`.
        extra: more entries of ``config.json``, beside ``model_type`` and ``config``.
    """
    folder = Path(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if configuration_file(folder).name == NEXT_FILE:  # an earlier process did not come to its last step
        (folder / NEXT_FILE).replace(folder / CONFIG_FILE)
    with atomic_path(folder / WEIGHTS_FILE) as path:
        # One entry only: safetensors writes several in a varying order, and equal models would have different files.
        save_file(weights, path, metadata={"format": "pt"})
        values = {"model_type": model_type, "config": model.config.to_dict(), **(extra or {})}
        with atomic_path(folder / NEXT_FILE) as following:
            following.write_text(json.dumps({**values, CHECKSUM: checksum(path)}, indent=2) + "\n")
    (folder / NEXT_FILE).replace(folder / CONFIG_FILE)


def read_weights(folder: ModelFolder) -> dict[str, Tensor]:
    """The weights of an opened model folder by name, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, not a safetensors file, or not the one that was saved.
    """
    state = read_safetensors(folder.weights)
    expected = folder.values.get(CHECKSUM)
    if expected is not None and checksum(folder.weights) != expected:
        raise CheckpointError(
            f"{folder.weights} is damaged: its content is not what was saved with {CONFIG_FILE}; copy it again, or "
            f"remove {CHECKSUM!r} from {CONFIG_FILE} if the weights were changed on purpose"
        )
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated or not a safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path or copy the file there")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error


def load(cls: type[M], folder: ModelFolder, kind: type[StoredConfig]) -> M:
    """The model in ``folder``, in eval mode on the CPU.

    Args:
        cls: class of the model, which is built from its configuration.
        folder: what :func:`~losatok_ext.models.storage.folders.open_folder` gave.
        kind: class of the configuration.

    Raises:
        CheckpointError: a file is missing, unreadable or damaged, or the weights do not fit (:func:`check_weights`).
    """
    return build(cls, folder.config(kind), read_weights(folder), str(folder.weights))


def build(cls: type[M], config: StoredConfig, state: Mapping[str, Tensor], source: str) -> M:
    """A model of ``config`` with the weights ``state``, in eval mode.

    Args:
        cls: class of the model.
        config: its configuration.
        state: its weights by name; not copied.
        source: where they are from, for messages.

    Raises:
        CheckpointError: the weights do not fit (:func:`check_weights`).
    """
    with torch.device("meta"):  # draws no random weights, which would be overwritten
        model = cls(config)  # type: ignore[call-arg,arg-type]
        precision.expect_int8(model, state, source)
    check_weights(model, state, source)
    model.load_state_dict(dict(state), assign=True)
    return model.eval()


def check_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Check that ``state`` has exactly the tensors of ``module``, in their shapes, and that every value is finite.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape, or holds NaN or infinity; ``source`` and
            the tensor are named.
    """
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise CheckpointError(f"{source} lacks the tensor {name}; it is incomplete or of another model")
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: the tensor {name} has shape {list(state[name].shape)}, "
                f"but the configuration makes it {list(tensor.shape)}; use the configuration it was trained with"
            )
        if not _is_finite(state[name]):
            raise CheckpointError(
                f"{source}: the tensor {name} holds NaN or infinity; the model was damaged or its training diverged: "
                "copy it again, or use an earlier state of it"
            )
    left_over = [name for name in state if name not in expected]
    if left_over:
        raise CheckpointError(
            f"{source} has {len(left_over)} tensors that this model does not, {left_over[0]} first; "
            "use the configuration it was trained with"
        )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # NaN is passed on by both, and infinity is one of them. One pass without a copy: 25 times as fast as isfinite().
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def digest(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """16 hex digits that name a configuration and its weights.

    Hashed are ``values``, the int8 tensors of ``state``, and its floating-point tensors rounded to bfloat16, without
    the statistics that codebooks learn from.
    """
    hashed = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8)
    for name in sorted(state):
        integers = state[name].dtype == torch.int8
        if (integers or state[name].is_floating_point()) and not name.endswith(STATISTICS):
            dtype = torch.int8 if integers else torch.bfloat16
            rounded = state[name].detach().to(device="cpu", dtype=dtype).contiguous()
            hashed.update(name.encode())
            hashed.update(
                rounded.view(torch.uint8).numpy().data
                if rounded.dim()
                else bytes(rounded.view(1).view(torch.uint8).tolist())
            )
    return hashed.hexdigest()
