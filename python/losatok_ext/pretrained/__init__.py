"""The models that come with the package, by name: no network, no download."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT = "tiny"
"""The model that a command takes when none is named."""
_ROOT = Path(__file__).resolve().parent


def names() -> tuple[str, ...]:
    """Of the models that come with the package."""
    return tuple(sorted(path.name for path in _ROOT.iterdir() if (path / "config.json").is_file()))


def resolve(model: str | os.PathLike[str]) -> Path:
    """The folder that ``model`` means: itself where it exists, else that of the bundled model of this name."""
    path = Path(model)
    bundled = _ROOT / path
    return bundled if not path.exists() and path.as_posix() in names() else path


def is_bundled(folder: Path) -> bool:
    """Whether ``folder`` is that of a bundled model, whose weights are stored in half precision to be small."""
    return folder.parent == _ROOT
