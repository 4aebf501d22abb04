"""The state of a run on disk: written whole or not at all, safetensors and JSON only, the newest few kept.

``checkpoints/step-XXXXXXXX/`` holds ``model.safetensors`` (what training changes), ``optimizer.safetensors``,
``ema.safetensors``, ``critic.safetensors`` and ``critic_optimizer.safetensors`` where there are such, and
``state.json``. ``checkpoints/frozen.safetensors`` holds the weights that training leaves
alone, once; ``checkpoints/run.json`` says what the run was told. A run can go on from that folder alone.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from losatok_ext.errors import CheckpointError, TrainingError
from losatok_ext.files import LOCK, atomic_path, locked_folder

_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What was read: tensors by file (``model``, ``optimizer``, ...) and name, and the JSON ``state``."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointStore:
    """The folder ``checkpoints`` of a run. While a ``with`` block is open no other process can train there.

    Args:
        output: the run's folder.
        keep: so many checkpoints are kept.

    Raises:
        TrainingError: (on entering) the folder cannot be made, or another process trains there.
    """

    def __init__(self, output: Path, keep: int) -> None:
        self.root = output / "checkpoints"
        self.keep = keep
        self._lock = ExitStack()

    def __enter__(self) -> CheckpointStore:
        output = self.root.parent
        in_use = TrainingError(
            f"{output}: another process is training in this folder; wait for it, or choose another folder"
        )
        try:
            self._lock.enter_context(locked_folder(self.root, in_use))
        except OSError as error:
            raise TrainingError(f"{output}: cannot write the run's folder: {error.strerror}") from None
        for leftover in self.root.glob(".tmp-*"):
            shutil.rmtree(leftover)
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            if [path.name for path in self.root.iterdir()] == [LOCK]:  # the run did not begin: leave no trace
                shutil.rmtree(self.root)
                if not any(self.root.parent.iterdir()):
                    self.root.parent.rmdir()

    def _steps(self) -> list[tuple[int, Path]]:
        found = ((_STEP.fullmatch(p.name), p) for p in self.root.iterdir()) if self.root.is_dir() else ()
        return sorted((int(match[1]), path) for match, path in found if match)

    def write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of ``step`` under a temporary name, flush, rename; then remove those beyond ``keep``.

        Raises:
            TrainingError: it cannot be written (a full disk); those before it are intact.
        """
        size = sum(t.numel() * t.element_size() for named in tensors.values() for t in named.values())
        try:
            return self._write(step, tensors, state)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            kept = self._steps()
            before = f"the one of step {kept[-1][0]} is intact" if kept else "there is none before it"
            raise TrainingError(
                f"{self.root}: the checkpoint of step {step} cannot be written ({reason}); {before}; it takes "
                f"{size / 1e6:.0f} MB: make room, then the same command again goes on"
            ) from None

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        path = self.root / f"step-{step:08d}"
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
        try:
            for part, named in tensors.items():
                save_file(
                    {n: t.detach().cpu().contiguous() for n, t in named.items()}, temporary / f"{part}.safetensors"
                )
            (temporary / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
            for file in temporary.iterdir():
                _flush(file)
            _flush(temporary)
            temporary.chmod(0o755)
            if path.exists():
                self._remove(path)
            temporary.rename(path)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)
        _flush(self.root)
        for _, old in self._steps()[: -self.keep]:
            self._remove(old)
        return path

    def _remove(self, path: Path) -> None:
        doomed = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
        path.rename(
            doomed / path.name
        )  # first out of sight, so that a crash leaves no half checkpoint under a real name
        shutil.rmtree(doomed)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None.

        Raises:
            CheckpointError: it cannot be read.
        """
        steps = self._steps()
        if not steps:
            return None
        step, path = steps[-1]
        try:
            tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise CheckpointError(
                f"{path}: the checkpoint cannot be read ({error}); remove that folder to go on from the one before"
            ) from None
        return Checkpoint(path, step, tensors, state)

    def write_run(self, facts: Mapping[str, Any], frozen: Mapping[str, Tensor]) -> None:
        """Write what the run was told (``run.json``) and the weights that it leaves alone, before the first step."""
        try:
            with atomic_path(self.root / "frozen.safetensors") as temporary:
                save_file({n: t.detach().cpu().contiguous() for n, t in frozen.items()}, temporary)
            with atomic_path(self.root / "run.json") as temporary:
                temporary.write_text(json.dumps(facts, indent=2), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{self.root}: cannot be written ({error}); make room, then start again") from None

    def read_run(self) -> dict[str, Any]:
        """What :meth:`write_run` was given.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            return json.loads((self.root / "run.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise CheckpointError(
                f"{self.root / 'run.json'}: cannot be read ({error}); start in another folder"
            ) from None

    def read_frozen(self) -> dict[str, Tensor]:
        """The weights that training leaves alone.

        Raises:
            CheckpointError: they cannot be read.
        """
        path = self.root / "frozen.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); start in another folder") from None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def capture_random(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of Python's, NumPy's and torch's global random generators: tensors and JSON values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors, {
        "python": [version, list(words), gauss],
        "numpy": [name, int(position), int(has_gauss), float(cached)],
    }


def restore_random(tensors: Mapping[str, Tensor], values: Mapping[str, Any], device: torch.device) -> None:
    """Set the global random generators to what :func:`capture_random` returned (CUDA's, where both sides have one)."""
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    name, position, has_gauss, cached = values["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


@contextmanager
def keep_random(device: torch.device) -> Iterator[None]:
    """Leave the caller's global random generators as they were found."""
    tensors, values = capture_random(device)
    try:
        yield
    finally:
        restore_random(tensors, values, device)
