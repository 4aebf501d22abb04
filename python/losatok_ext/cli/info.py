"""``losatok info``: this installation, or what a file or a model folder holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from losatok_ext.errors import AudioFileError

if TYPE_CHECKING:
    from losatok_ext.models import DiT, Generator, LoSATok

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def info(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE...]",
            help="Model folders, folders of runs, published checkpoints, latent files or audio files.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show versions, processor, GPU and which implementation of each op will run; or what files and folders hold."""
    if files:
        facts: list[dict[str, Any]] = [_describe(path) for path in files]
        print(json.dumps(facts, indent=2) if as_json else "\n\n".join(map(_table, facts)))
        return
    from losatok_ext.environment import format_info
    from losatok_ext.environment import info as environment

    installation = environment()
    print(json.dumps(installation, indent=2) if as_json else format_info(installation))


def _describe(path: Path) -> dict[str, Any]:
    from losatok_ext.formats.latent_files import SUFFIX, describe
    from losatok_ext.models.storage.folders import RUN_FILE, is_model

    if (path / RUN_FILE).is_file():
        return _describe_run(path, path / RUN_FILE)
    if is_model(path):
        return _describe_model(path)
    if path.is_dir() or path.suffix.lower() in WEIGHT_SUFFIXES:
        return _describe_published(path)
    if path.suffix.lower() == SUFFIX:
        return describe(path)
    return _describe_audio(path)


def _describe_run(path: Path, file: Path) -> dict[str, Any]:
    from losatok_ext.errors import CheckpointError
    from losatok_ext.models.storage.folders import find_folder

    try:
        stage = json.loads(file.read_text(encoding="utf-8"))["stage"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); it was not written by `losatok train`") from error
    saved = [folder.name.removeprefix("step-") for folder in file.parent.glob("step-*")]
    finished = find_folder(path) != path
    return {
        "path": str(path),
        "format": "run",
        "stage": stage,
        "last_checkpoint": max((int(step) for step in saved if step.isdecimal()), default=None),
        "model": _describe_model(path) if finished else None,
    }


def _describe_model(path: Path) -> dict[str, Any]:
    from losatok_ext.models import DiT, Generator, LoSATok
    from losatok_ext.models.storage.folders import DIT, GENERATOR, TOKENIZER, open_folder
    from losatok_ext.models.storage.precision import dtype_name

    folder = open_folder(path)
    kinds: dict[str, type[LoSATok | Generator | DiT]] = {TOKENIZER: LoSATok, GENERATOR: Generator, DIT: DiT}
    model = kinds[folder.model_type].from_pretrained(folder.path)
    return {
        "path": str(folder.path),
        "format": "model",
        "model_type": folder.model_type,
        **({"fingerprint": model.fingerprint()} if isinstance(model, LoSATok) else {}),
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype_name(model),
        **(_describe_quantizer(model) if isinstance(model, LoSATok) else {}),
        **model.config.to_dict(),
    }


def _describe_quantizer(model: LoSATok) -> dict[str, Any]:
    if model.quantizer is None:
        return {}
    return {
        "quantizer_name": model.quantizer_name,
        "quantizer_fingerprint": model.quantizer_fingerprint(),
        "codes_per_token": len(model.code_sizes),
        "bits_per_second": model.quantizer.bits_per_token * model.frame_rate,
    }


def _describe_published(path: Path) -> dict[str, Any]:
    from losatok_ext.errors import CheckpointError
    from losatok_ext.models.tokenizer import published

    try:
        return {"path": str(path), "format": "published checkpoint", **published.describe(path)}
    except CheckpointError as error:
        if path.is_dir():
            raise CheckpointError(
                f"{path} is neither a model folder, the folder of a run, nor a published checkpoint ({error})"
            ) from error
        raise


def _describe_audio(path: Path) -> dict[str, Any]:
    from losatok_ext.audio.files import audio_info

    try:
        found = audio_info(path)
    except AudioFileError as error:
        raise AudioFileError(
            f"{error} (losatok info takes latent files, audio files, model folders, folders of runs and published "
            "checkpoints)"
        ) from error
    return {
        "path": str(path),
        "format": f"{found.format}, {found.encoding}",
        "sample_rate": found.sample_rate,
        "channels": found.channels,
        "frames": found.frames,
        "seconds": found.seconds,
        "bytes": path.stat().st_size,
    }


def _table(facts: dict[str, Any]) -> str:
    rows = list(_rows(facts))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)


def _rows(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of each fact; a fact within a mapping has the mapping's name before its own."""
    for key, value in facts.items():
        name = prefix + key.replace("_", " ")
        if isinstance(value, dict):
            yield from _rows(value, f"{name}: ")
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value))
        else:
            yield name, f"{value:.6g}" if isinstance(value, float) else str(value)
