"""``losatok info``: this installation, or what a file or model folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from losatok_ext.errors import AudioFileError

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok


def info(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="Latent files, audio files or model folders.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show versions, processor, GPU and which implementation of each op will run; or what files hold."""
    if files:
        facts: list[dict[str, Any]] = [_describe(path) for path in files]
        print(json.dumps(facts, indent=2) if as_json else "\n\n".join(map(_table, facts)))
        return
    from losatok_ext.environment import format_info
    from losatok_ext.environment import info as environment

    installation = environment()
    print(json.dumps(installation, indent=2) if as_json else format_info(installation))


def _describe(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return _describe_model(path)
    from losatok_ext.formats.latent_files import SUFFIX, describe

    if path.suffix.lower() == SUFFIX:
        return describe(path)
    from losatok_ext.audio.files import audio_info

    try:
        found = audio_info(path)
    except AudioFileError as error:
        raise AudioFileError(f"{error} (losatok info takes latent files, audio files and model folders)") from error
    return {
        "path": str(path),
        "format": f"{found.format}, {found.encoding}",
        "sample_rate": found.sample_rate,
        "channels": found.channels,
        "frames": found.frames,
        "seconds": found.seconds,
        "bytes": path.stat().st_size,
    }


def _describe_model(folder: Path) -> dict[str, Any]:
    from losatok_ext.models import LoSATok
    from losatok_ext.models.storage.precision import dtype_name

    model = LoSATok.from_pretrained(folder)
    return {
        "path": str(folder),
        "format": "model",
        "fingerprint": model.fingerprint(),
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype_name(model),
        **_describe_quantizer(model),
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


def _table(facts: dict[str, Any]) -> str:
    width = max(map(len, facts)) + 2
    rows = []
    for name, value in facts.items():
        text = (
            ", ".join(map(str, value))
            if isinstance(value, list)
            else f"{value:.6g}"
            if isinstance(value, float)
            else str(value)
        )
        rows.append(f"{name.replace('_', ' '):<{width}}{text}")
    return "\n".join(rows)
