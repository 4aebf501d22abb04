"""The models that a run begins with: read from ``init`` in float32, or new ones of a preset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.generator.generator import Generator
from losatok_ext.models.storage.folders import GENERATOR, TOKENIZER, open_folder
from losatok_ext.training.config.train import TrainConfig

M = TypeVar("M", LoSATok, Generator)

_OTHER_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""Floating-point dtypes besides float32, by their names in safetensors files."""


def starting_config(config: TrainConfig) -> LoSATokConfig:
    """The configuration of the model that :func:`starting_model` builds.

    Raises:
        ConfigError: ``model`` holds a key or value that does not fit.
        CheckpointError: ``init`` cannot be read.
    """
    if config.init is not None:
        return open_folder(config.init, TOKENIZER).config(LoSATokConfig)
    try:
        return LoSATokConfig.preset(config.preset or "base", **config.model)
    except ConfigError as error:
        raise ConfigError(f"model: {error}") from None


def starting_model(config: TrainConfig) -> tuple[LoSATok, tuple[str, ...]]:
    """The model of ``init``, or a new one of the preset, whose random weights ``seed`` decides.

    Returns:
        (model with float32 weights, notes for the user as of :func:`read_in_float32`).

    Raises:
        ConfigError: ``model`` holds a key or value that does not fit, or the weights of ``init`` are int8.
        CheckpointError: ``init`` cannot be read.
    """
    if config.init is not None:
        return read_in_float32(LoSATok, config.init, "init")
    model_config = starting_config(config)
    torch.manual_seed(config.seed)
    return LoSATok(model_config), ()


def read_in_float32(kind: type[M], init: str | Path, key: str) -> tuple[M, tuple[str, ...]]:
    """The model in a folder with all its weights in float32, whatever dtype they are stored in.

    An optimizer step is often smaller than the spacing of float16 or bfloat16 numbers around a weight, so that it would
    be lost; and few processors compute in float16. The forward pass is made cheaper by ``precision: bfloat16``, which
    leaves the weights in float32.

    Args:
        kind: ``LoSATok`` or ``Generator``.
        init: a model folder, the folder of a run, or the name of a bundled model.
        key: the configuration key that named the folder, for messages.

    Returns:
        (model in eval mode on the CPU, notes for the user: one sentence where the weights were stored in another dtype
        than float32, else none).

    Raises:
        ConfigError: the weights are int8.
        CheckpointError: the folder cannot be read.
    """
    folder = open_folder(init, TOKENIZER if issubclass(kind, LoSATok) else GENERATOR)
    model = kind.from_pretrained(init)
    stored = stored_dtypes(folder.weights)
    check_not_int8(stored, f"{key} {init}")
    return model.to(torch.float32), notes_of_widening(stored, f"{key} {init}", "trained in float32")


def stored_dtypes(path: Path) -> set[str]:
    """The dtypes of the tensors in a safetensors file, as the format names them: ``F32``, ``F16``, ``BF16``, ``I8``."""
    with safe_open(path, "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is not a mapping)


def check_not_int8(stored: Iterable[str], source: str) -> None:
    """Raise ConfigError where ``I8`` is among the dtypes of stored weights; ``source`` begins the message."""
    if "I8" in stored:
        raise ConfigError(
            f"{source}: its weights are int8, which cannot be trained; give the model that the int8 one was made from"
        )


def notes_of_widening(stored: Iterable[str], source: str, use: str) -> tuple[str, ...]:
    """One sentence that says in which dtypes weights are stored; none where all of them are float32.

    Args:
        stored: as of :func:`stored_dtypes`; integers (counters) are left out.
        source: what was read; the sentence begins with it.
        use: what is done with the weights, such as ``"trained in float32"``.
    """
    names = [name for key, name in _OTHER_FLOATS.items() if key in stored]
    return (f"{source}: weights stored as {' and '.join(names)}, {use}",) if names else ()
