"""The models that come with the package, by name. They need no network."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT = "tiny"
"""The model that commands use if none is given."""
_ROOT = Path(__file__).resolve().parent


def names() -> tuple[str, ...]:
    """The names of the models that come with the package."""
    return tuple(sorted(path.name for path in _ROOT.iterdir() if (path / "config.json").is_file()))


def resolve(model: str | os.PathLike[str]) -> Path:
    """``model`` itself if this folder exists, else the folder of the bundled model of that name."""
    path = Path(model)
    bundled = _ROOT / path
    return bundled if not path.exists() and path.as_posix() in names() else path


def is_bundled(folder: Path) -> bool:
    """Whether ``folder`` is that of a bundled model. Bundled weights are stored in float16, to be small."""
    return folder.parent == _ROOT
