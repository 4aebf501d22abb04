"""``losatok convert``: a published checkpoint, or a model folder in another precision, to a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from losatok_ext.cli.common import OverwriteOption, check_dtype, check_model_output, load_model, require_model
from losatok_ext.configuration import read_json
from losatok_ext.errors import ConfigError, UserError

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Published weights (.safetensors, .pth, .pt, .bin or a folder), or a model folder.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.", show_default=False)],
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON file: the published configuration, or a model folder's config.json.",
            show_default="the published model",
        ),
    ] = None,
    hidden_dim: Annotated[int, typer.Option(help="Hidden width of the semantic bottleneck.", min=1)] = 512,
    frame_rate: Annotated[int, typer.Option(help="Tokens per second, 25 or 50.", min=1)] = 25,
    semantic_encoder: Annotated[
        Path | None,
        typer.Option(
            help="MiDashengLM weights (file or folder), where the semantic encoder is kept apart.", show_default=False
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Of the weights to write: float32, bfloat16 or int8.", show_default="as they are"),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert a published LoSATok checkpoint to a model folder (config.json and model.safetensors).

    A model folder, the folder of a run, or a bundled model is converted to another --dtype. Nothing is downloaded, and
    no pickled code is run.
    """
    check_dtype(dtype)
    check_model_output(output, overwrite)
    from losatok_ext.models.storage.folders import is_model

    if is_model(checkpoint):
        if config is not None or semantic_encoder is not None:
            raise UserError(
                f"--config and --semantic-encoder go with a published checkpoint; {checkpoint} holds a model"
            )
        folder = require_model(checkpoint)
        if folder.resolve() == output.resolve():
            raise UserError(f"{output} is the model to convert; choose another folder")
        model = load_model(folder, "cpu", dtype)
    else:
        model = _from_published(checkpoint, config, hidden_dim, frame_rate, semantic_encoder, dtype)
    model.save_pretrained(output)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{output}: model {model.fingerprint()}, {weights / 1e6:.1f} M weights, "
        f"{model.config.latent_dim} dimensions at {model.frame_rate} Hz"
    )


def _from_published(
    checkpoint: Path,
    config: Path | None,
    hidden_dim: int,
    frame_rate: int,
    semantic_encoder: Path | None,
    dtype: str | None,
) -> LoSATok:
    values = None if config is None else _read_config(config)
    from losatok_ext.models import LoSATok, LoSATokConfig

    settings = LoSATokConfig.from_dict(values["config"]) if values is not None and "model_type" in values else values
    model = LoSATok.from_reference_checkpoint(
        checkpoint, settings, hidden_dim=hidden_dim, frame_rate=frame_rate, semantic_encoder=semantic_encoder
    )
    return model if dtype is None else model.cast(dtype)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(f"--config {path} does not exist; check the name")
    values = read_json(path)
    if not isinstance(values, dict) or ("model_type" in values and not isinstance(values.get("config"), dict)):
        raise ConfigError(f"--config {path} should hold a JSON object of configuration keys")
    return values
