"""Checkpoints of a run: written completely or not at all, in safetensors and JSON; the newest few are kept.

``checkpoints/step-XXXXXXXX/`` holds ``model.safetensors`` (what training changes), ``optimizer.safetensors``,
``ema.safetensors``, ``critic.safetensors`` and ``critic_optimizer.safetensors`` where the run has them, and
``state.json``. ``checkpoints/frozen.safetensors`` holds the weights that do not train, once; ``checkpoints/run.json``
holds the run's configuration and data. A run can go on from that folder alone. Each of these folders has a
``digests.json`` with a hash of each file, which is compared before a run goes on: it finds damage, not an attack.
Runs of 0.1 have none, and are read without.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
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
from losatok_ext.files import LOCK, atomic_path, digest, locked_folder

DIGESTS = "digests.json"
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read: tensors by file (``model``, ``optimizer``, ...) and name, and the JSON ``state``."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointStore:
    """The folder ``checkpoints`` of a run. While a ``with`` block is open no other process can train there.

    Args:
        output: the run's folder.
        keep: the number of checkpoints to keep.

    Raises:
        TrainingError: on entering: the folder cannot be made, or another process trains there.
        UserError: on entering: filelock is not installed.
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
        """Write the checkpoint of ``step`` under a temporary name, flush it and rename it; then remove the oldest ones.

        Raises:
            TrainingError: it cannot be written (a full disk); the earlier checkpoints are intact.
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
            digests = {file.name: digest(file) for file in sorted(temporary.iterdir())}
            (temporary / DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")
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
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
        path.rename(temporary / path.name)  # renamed first, so that a crash leaves no half checkpoint under its name
        shutil.rmtree(temporary)

    def latest(self, previous: bool = False) -> Checkpoint | None:
        """The newest checkpoint, or with ``previous`` the one before it; None where there is no checkpoint.

        Raises:
            CheckpointError: it is damaged, a file is missing, or there is none before the newest.
        """
        steps = self._steps()
        if not steps:
            return None
        if previous and len(steps) == 1:
            raise CheckpointError(f"{self.root}: there is no checkpoint before that of step {steps[0][0]}")
        step, path = steps[-2 if previous else -1]
        older = [number for number, _ in steps if number < step]
        if not older:
            cure = "there is none before it: start in another folder"
        elif previous:
            cure = f"the one before it is of step {older[-1]}: remove the two newer folders to go on from there"
        else:
            cure = f"--from previous (in Python resume='previous') goes on from the one before it, of step {older[-1]}"
        try:
            _compare(path, {"model.safetensors", "optimizer.safetensors", "state.json", *_digests(path)})
            tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            missing = [name for name in _STATE if not isinstance(state, dict) or name not in state]
            if missing:
                raise ValueError(f"state.json has no {missing[0]!r}")
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: the checkpoint is damaged ({error}); {cure}") from None
        return Checkpoint(path, step, tensors, state)

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps than ``step``."""
        for number, path in self._steps():
            if number > step:
                self._remove(path)

    def write_run(self, facts: Mapping[str, Any], frozen: Mapping[str, Tensor]) -> None:
        """Write ``facts`` (to ``run.json``) and the weights that do not train, before the first step."""
        try:
            with atomic_path(self.root / "frozen.safetensors") as temporary:
                save_file({n: t.detach().cpu().contiguous() for n, t in frozen.items()}, temporary)
            with atomic_path(self.root / "run.json") as temporary:
                temporary.write_text(json.dumps(facts, indent=2), encoding="utf-8")
            digests = {name: digest(self.root / name) for name in ("frozen.safetensors", "run.json")}
            with atomic_path(self.root / DIGESTS) as temporary:
                temporary.write_text(json.dumps(digests, indent=1), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{self.root}: cannot be written ({error}); make room, then start again") from None

    def read_run(self) -> dict[str, Any]:
        """The facts that :meth:`write_run` wrote: ``"stage"``, ``"config"``, ``"model"``, ``"corpus"`` and others.

        Raises:
            CheckpointError: they are damaged.
        """
        try:
            _compare(self.root, ("run.json",))
            facts = json.loads((self.root / "run.json").read_text(encoding="utf-8"))
            missing = [name for name in _FACTS if not isinstance(facts, dict) or name not in facts]
            if missing:
                raise ValueError(f"it has no {missing[0]!r}")
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{self.root / 'run.json'}: the run is damaged ({error}); start in another folder"
            ) from None
        return facts

    def read_frozen(self) -> dict[str, Tensor]:
        """The weights that do not train, as :meth:`write_run` wrote them.

        Raises:
            CheckpointError: they cannot be read.
        """
        path = self.root / "frozen.safetensors"
        try:
            _compare(self.root, (path.name,))
            return load_file(path)
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); start in another folder") from None


_FACTS = ("stage", "config", "model", "corpus")
_STATE = ("step", "skipped", "skipped_in_a_row", "ema_updates")


def _digests(folder: Path) -> dict[str, str]:
    """The digests in ``folder`` by name of the file; none where there is no file of them.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    if not (folder / DIGESTS).exists():
        return {}
    digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    if not isinstance(digests, dict):
        raise ValueError(f"{DIGESTS} holds no digests")
    return digests


def _compare(folder: Path, names: Iterable[str]) -> None:
    """Compare the files ``names`` in ``folder`` with its digests, where it has any.

    Raises:
        ValueError: a file is missing, or has another content than was written.
        OSError: a file cannot be read.
    """
    digests = _digests(folder)
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if name in digests and digest(folder / name) != digests[name]:
            raise ValueError(f"the content of {name} is not what was written")


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
    """Set the global random generators to a state of :func:`capture_random` (that of CUDA where both have one)."""
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    name, position, has_gauss, cached = values["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


@contextmanager
def keep_random(device: torch.device) -> Iterator[None]:
    """Restore the state of the global random generators at the end."""
    tensors, values = capture_random(device)
    try:
        yield
    finally:
        restore_random(tensors, values, device)
