"""Model folders: which folder a path or a name means, and which type of model it holds.

Every command, ``--init`` and every ``from_pretrained`` opens its folder with :func:`open_folder`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from losatok_ext.configuration import read_json
from losatok_ext.errors import CheckpointError, ConfigError
from losatok_ext.files import checksum
from losatok_ext.models.storage.stored_config import StoredConfig
from losatok_ext.pretrained import resolve

C = TypeVar("C", bound=StoredConfig)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
NEXT_FILE = "config.next.json"
"""The configuration of a model that is being saved; see :func:`configuration_file`."""
CHECKSUM = "weights_crc32"
"""The entry of ``config.json`` with the CRC-32 of ``model.safetensors``. Models of 0.1 have none."""
MODEL = "model"
"""Name of the model folder inside the folder of a run: ``OUTPUT/model``."""
RUN_FILE = Path("checkpoints") / "run.json"
"""The file that a run writes before its first step, and by which its folder is known."""

TOKENIZER, GENERATOR, DIT = "losatok", "losatok-generator", "losatok-dit"


class ModelType(NamedTuple):
    """What error messages say about models of one type."""

    name: str
    """With its article: ``"a tokenizer"``."""
    taken_by: str
    """What takes a folder of this type."""


MODEL_TYPES = {
    TOKENIZER: ModelType("a tokenizer", "--model (LoSATok.from_pretrained)"),
    GENERATOR: ModelType("a generator", "--generator (Generator.from_pretrained)"),
    DIT: ModelType("the network of a generator", "DiT.from_pretrained"),
}
"""The known values of ``model_type`` in ``config.json``."""


@dataclass(frozen=True)
class ModelFolder:
    """An opened model folder: ``config.json`` was read and names a known type."""

    path: Path
    """The folder that holds ``config.json`` and ``model.safetensors``."""
    model_type: str
    """A key of :data:`MODEL_TYPES`."""
    values: Mapping[str, Any]
    """What ``config.json`` holds."""

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.path / WEIGHTS_FILE

    def config(self, kind: type[C]) -> C:
        """The model's configuration, as a ``kind``.

        Raises:
            CheckpointError: a key or a value that ``kind`` does not take.
        """
        try:
            return kind.from_dict(self.values["config"])
        except ConfigError as error:
            raise CheckpointError(f"{self.path / CONFIG_FILE}: {error}") from error


def configuration_file(folder: Path) -> Path:
    """The file that describes the weights in ``folder``: ``config.json``, or :data:`NEXT_FILE`.

    A model is saved in three steps: its configuration goes to :data:`NEXT_FILE`, its weights take their name, then the
    configuration does. Where a process was killed after the second step, the new weights are described by
    :data:`NEXT_FILE`. Its checksum tells: so the folder holds the old model or the new one at any moment.
    """
    following = folder / NEXT_FILE
    try:
        values = read_json(following)
        expected = values.get(CHECKSUM) if isinstance(values, dict) else None
        return following if checksum(folder / WEIGHTS_FILE) == expected else folder / CONFIG_FILE
    except (ConfigError, OSError):  # nearly always: there is no such file
        return folder / CONFIG_FILE


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether :func:`open_folder` is the way to read ``path``: it is a model folder, or the folder of a run.

    False for folders of other projects' models, which have a ``config.json`` too.
    """
    folder = find_folder(path)
    try:
        values = read_json(configuration_file(folder))
    except ConfigError:
        return (folder / RUN_FILE).is_file()
    return isinstance(values, dict) and values.get("model_type") in MODEL_TYPES


def find_folder(path: str | os.PathLike[str]) -> Path:
    """The model folder that ``path`` means, without reading it.

    Args:
        path: a model folder; the folder of a run, which holds the model folder ``model``; or the name of a bundled
            model, where no such folder exists.
    """
    folder = resolve(path)
    inside = folder / MODEL
    return inside if inside.is_dir() and not (folder / CONFIG_FILE).is_file() else folder


def open_folder(path: str | os.PathLike[str], model_type: str | None = None) -> ModelFolder:
    """Find the model folder that ``path`` means, and read its ``config.json``.

    Args:
        path: see :func:`find_folder`.
        model_type: the type of model that is needed, a key of :data:`MODEL_TYPES`; None: any.

    Raises:
        CheckpointError: the folder does not exist or holds no model, ``config.json`` cannot be read, or the model is of
            another type. The message names the folder and says what to pass instead.
    """
    folder = find_folder(path)
    file = configuration_file(folder)
    if not file.is_file():
        if (folder / RUN_FILE).is_file():
            raise CheckpointError(
                f"{folder} is the folder of a run that has not written its model yet; give the `losatok train` command "
                "again to finish the run"
            )
        missing = f"it has no {CONFIG_FILE}" if folder.exists() else "it does not exist"
        raise CheckpointError(
            f"{folder} is no model folder: {missing}; pass the folder that save_pretrained or `losatok train` wrote"
        )
    try:
        values = read_json(file)
    except ConfigError as error:
        raise CheckpointError(f"{error}; save the model again") from error
    found = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(found, str) or found not in MODEL_TYPES or "config" not in values:
        raise CheckpointError(
            f"{file} does not describe a model of losatok_ext (model_type is {found!r}); `losatok convert` reads "
            "published checkpoints"
        )
    if model_type not in (None, found):
        there, needed = MODEL_TYPES[found], MODEL_TYPES[str(model_type)]
        raise CheckpointError(
            f"{folder} holds {there.name}, and {needed.name} is needed here; {there.taken_by} takes this folder"
        )
    return ModelFolder(folder, found, values)
