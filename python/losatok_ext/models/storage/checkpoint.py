"""Model folders: ``config.json`` and ``model.safetensors``, never pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from losatok_ext.configuration import read_json
from losatok_ext.errors import CheckpointError, ConfigError
from losatok_ext.files import atomic_path
from losatok_ext.models.storage import precision
from losatok_ext.models.storage.stored_config import StoredConfig
from losatok_ext.models.tokenizer.config import LoSATokConfig

C = TypeVar("C", bound=StoredConfig)
M = TypeVar("M", bound=nn.Module)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MODEL_TYPE = "losatok"
MADE_FROM, ORIGIN = "made_from", ("fingerprint", "weights")
"""In ``config.json`` of an int8 model: whose name it has, and a hash of the weights for which that holds."""
STATISTICS = (".codebooks.usage", ".codebooks.sums")
"""Ends of the names of tensors that codebooks learn from, but that no code depends on."""


class _Stored(Protocol):
    @property
    def config(self) -> Any: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def save(model: _Stored, folder: str | os.PathLike[str], model_type: str = MODEL_TYPE) -> None:
    """Write both files into ``folder``; the weights first, so that a folder with a configuration has them."""
    folder = Path(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(folder / WEIGHTS_FILE) as path:
        # One entry: of several safetensors writes now one first and now another, and equal models would differ.
        save_file(weights, path, metadata={"format": "pt"})
    values = {"model_type": model_type, "config": model.config.to_dict()}
    made_from = getattr(model, "made_from", None)
    if made_from is not None:
        values[MADE_FROM] = dict(zip(ORIGIN, made_from, strict=True))
    with atomic_path(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(values, indent=2) + "\n")


@overload
def read_config(folder: str | os.PathLike[str]) -> LoSATokConfig: ...


@overload
def read_config(folder: str | os.PathLike[str], kind: type[C], model_type: str) -> C: ...


def read_config(
    folder: str | os.PathLike[str], kind: type[StoredConfig] = LoSATokConfig, model_type: str = MODEL_TYPE
) -> StoredConfig:
    """The configuration, a ``kind``, in the folder of a model of ``model_type``.

    Raises:
        CheckpointError: ``config.json`` is missing or is not one of ours.
    """
    values = _read_json(folder, model_type)
    try:
        return kind.from_dict(values["config"])
    except ConfigError as error:
        raise CheckpointError(f"{Path(folder) / CONFIG_FILE}: {error}") from error


def read_made_from(folder: str | os.PathLike[str], model_type: str = MODEL_TYPE) -> tuple[str, str] | None:
    """Fingerprint of the model that the int8 one in ``folder`` was made from, and a hash of the int8 weights.

    Raises:
        CheckpointError: ``config.json`` is missing or is not one of ours.
    """
    found = _read_json(folder, model_type).get(MADE_FROM)
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ORIGIN):
        raise CheckpointError(
            f"{Path(folder) / CONFIG_FILE}: {MADE_FROM} should hold {' and '.join(ORIGIN)}; save the model again"
        )
    return found[ORIGIN[0]], found[ORIGIN[1]]


def _read_json(folder: str | os.PathLike[str], model_type: str) -> dict[str, Any]:
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no model folder: it has no {CONFIG_FILE}; pass the folder that save_pretrained wrote"
        )
    try:
        values = read_json(path)
    except ConfigError as error:
        raise CheckpointError(f"{error}; save the model again") from error
    if not isinstance(values, dict) or values.get("model_type") != model_type or "config" not in values:
        cure = (
            "a published checkpoint is read by from_reference_checkpoint (`losatok convert`)"
            if model_type == MODEL_TYPE
            else "pass the folder that its save_pretrained wrote"
        )
        raise CheckpointError(f"{path} does not describe a {model_type} model; {cure}")
    return values


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file on the CPU.

    Raises:
        CheckpointError: missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path or copy the file there")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error


def load(
    cls: type[M],
    folder: str | os.PathLike[str],
    kind: type[StoredConfig] = LoSATokConfig,
    model_type: str = MODEL_TYPE,
) -> M:
    """The model in ``folder``, in eval mode on the CPU; ``cls`` is built from a configuration of ``kind``."""
    config = read_config(folder, kind, model_type)
    path = Path(folder) / WEIGHTS_FILE
    return build(cls, config, read_safetensors(path), str(path))


def build(cls: type[M], config: StoredConfig, state: Mapping[str, Tensor], source: str) -> M:
    """A model of ``config`` with the weights ``state``, in eval mode.

    Raises:
        CheckpointError: a tensor of ``state`` is missing, left over or of another shape; ``source`` names where it is
            from.
    """
    with torch.device("meta"):  # no random weights only to overwrite them
        model = cls(config)  # type: ignore[call-arg,arg-type]
        precision.expect(model, state, source)
    check_fit({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, state, source)
    model.load_state_dict(dict(state), assign=True)
    return model.eval()


def check_fit(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError unless ``state`` has exactly the tensors ``expected`` (name to shape)."""
    for name, shape in expected.items():
        if name not in state:
            raise CheckpointError(f"{source} lacks the tensor {name}; it is incomplete or of another model")
        if tuple(state[name].shape) != shape:
            raise CheckpointError(
                f"{source}: the tensor {name} has shape {list(state[name].shape)}, "
                f"but the configuration makes it {list(shape)}; use the configuration it was trained with"
            )
    left_over = [name for name in state if name not in expected]
    if left_over:
        raise CheckpointError(
            f"{source} has {len(left_over)} tensors that this model does not, {left_over[0]} first; "
            "use the configuration it was trained with"
        )


def fingerprint(config: LoSATokConfig, state: Mapping[str, Tensor]) -> str:
    """16 hex digits of the configuration and the weights rounded to bfloat16."""
    values = config.to_dict()
    for name in ("chunk_batch", "kl_clamp", "mel_loss_windows", "mel_loss_bins"):
        del values[name]  # of memory and of training; the latents do not depend on them
    return digest(values, state)


def digest(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """16 hex digits of a configuration, of int8 tensors, and of floating-point ones rounded to bfloat16, moving
    statistics left out."""
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
