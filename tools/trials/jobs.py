"""Commands that write many files, and what they have written when nothing goes wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from losatok_ext.files import digest
from small_models import save_model
from training_runs import MODEL
from trials import material
from trials.commands import Command
from trials.trial import FoundError

_BOOKS = (".losatok-outputs.jsonl", ".lock")
"""Hidden files that belong to an output folder."""


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder.

    Attributes:
        name: of its folder.
        arguments: of ``losatok``, for the folder of inputs and that of outputs.
        whole: patterns of the outputs that are the same after every way to the end.
        before: makes what is in the output folder before the command, if anything.
    """

    name: str
    arguments: Callable[[Path, Path], list[object]]
    whole: tuple[str, ...]
    before: Callable[[Path, Path], None] | None = None


def _train(stage: str, inputs: Path, out: Path) -> list[object]:
    settings = ("steps=8", "batch_size=2", "data.crop_seconds=0.4", "checkpoint.every=1", "device=cpu")
    words: list[object] = ["train", stage, inputs / "clips", "-o", out / "run", "--init", inputs / "model"]
    return words + [word for setting in (*settings, "discriminator.kinds=[]") for word in ("--set", setting)]


def _old_model(inputs: Path, out: Path) -> None:
    shutil.copytree(inputs / "other", out / "model")


JOBS = (
    Job("encode", lambda i, o: ["encode", i / "clips", "-o", o, "-m", i / "model"], ("**/*.losatok",)),
    Job("decode-wav", lambda i, o: ["decode", i / "latents", "-o", o, "-m", i / "model"], ("**/*.wav",)),
    Job(
        "decode-flac",
        lambda i, o: ["decode", i / "latents", "-o", o, "-m", i / "model", "--format", "flac"],
        ("**/*.flac",),
    ),
    Job("shard", lambda i, o: ["shard", i / "clips", o, "--megabytes", "0.2"], ("*.tar", "index.json")),
    Job(
        "precompute",
        lambda i, o: ["precompute", "features", i / "clips", "-o", o, "-t", i / "model", "--megabytes", "0.05"],
        ("*.tar", "index.json"),
    ),
    Job("train-sembo", lambda i, o: _train("sembo", i, o), ("run/model/*",)),
    Job("train-tokenizer", lambda i, o: _train("tokenizer", i, o), ("run/model/*",)),
    Job(
        "convert",
        lambda i, o: ["convert", i / "model", "-o", o / "model", "--overwrite", "--dtype", "bfloat16"],
        ("model/*",),
        _old_model,
    ),
)


def make_inputs(folder: Path) -> Path:
    """What the jobs read: recordings, a model, another model, latents; made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in MODEL.items()}
    save_model(folder / "model", **sizes)
    save_model(folder / "other", seed=1, **sizes)
    material.make_clips(folder / "clips", 24)
    command = Command(["encode", folder / "clips", "-o", folder / "latents", "-m", folder / "model"], folder / "log")
    command.wait().check([0])
    return folder


def outputs(job: Job, folder: Path) -> dict[str, str]:
    """The digests of the job's outputs in ``folder``, by name."""
    found = {path for pattern in job.whole for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): digest(path) for path in sorted(found) if not path.name.startswith(".")}


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders that nobody uses any more."""
    hidden = (path for path in folder.rglob(".*") if path.name not in _BOOKS)
    return sorted(str(path.relative_to(folder)) for path in hidden)


def make_empty(folder: Path) -> Path:
    """``folder`` with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def fresh(job: Job, inputs: Path, folder: Path) -> Path:
    """An output folder for the job, as it is before the command."""
    make_empty(folder)
    if job.before is not None:
        job.before(inputs, folder)
    return folder


def check_partial(job: Job, folder: Path, wholes: Iterable[dict[str, str]], when: str) -> int:
    """The number of outputs that are there.

    Raises:
        FoundError: one of them is not as one of ``wholes`` has it.
    """
    there = outputs(job, folder)
    if job.name == "convert":  # one folder: it is the old one or the new one
        if there not in list(wholes):
            raise FoundError(f"{job.name}, {when}: the model is neither the old nor the new one: {sorted(there)}")
        return len(there)
    for name, value in there.items():
        if all(whole.get(name) != value for whole in wholes):
            raise FoundError(f"{job.name}, {when}: {name} is not whole")
    return len(there)


def check_complete(job: Job, folder: Path, whole: dict[str, str], when: str) -> None:
    """Raise FoundError where the outputs are not those of ``whole``, or where temporary files were left."""
    there = outputs(job, folder)
    if there != whole:
        different = sorted(name for name in {*there, *whole} if there.get(name) != whole.get(name))
        raise FoundError(f"{job.name}, {when}: {len(different)} outputs differ: {', '.join(different[:5])}")
    if left := leftovers(folder):
        raise FoundError(f"{job.name}, {when}: {len(left)} temporary files were left: {', '.join(left[:5])}")
