"""Where a run puts things: ``OUTPUT/model`` is the model, beside ``OUTPUT/checkpoints`` and ``OUTPUT/log.jsonl``."""

from __future__ import annotations

from pathlib import Path

from losatok_ext.pretrained import resolve

MODEL = "model"


def model_folder(path: str | Path) -> Path:
    """The model folder meant by ``path``: the one in it when it is the folder of a run, the bundled model of that name,
    else ``path`` itself."""
    path = resolve(path)
    inside = path / MODEL
    return inside if inside.is_dir() else path
