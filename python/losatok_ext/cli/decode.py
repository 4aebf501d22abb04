"""``losatok decode``: latent files to audio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    OverwriteOption,
    check_folder,
    load_model,
    progress_bar,
    report,
    require_model,
)
from losatok_ext.errors import UserError


def decode(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IN", help="Latent files, folders (searched through) or patterns.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the audio files.", show_default=False)],
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    overwrite: OverwriteOption = False,
    format: Annotated[str, typer.Option(help="Of the audio files: wav, flac, ogg or mp3.")] = "wav",
    force: Annotated[bool, typer.Option("--force", help="Decode latents of another model too.")] = False,
) -> None:
    """Decode latent files (.losatok) to audio of the length that was encoded, at the model's sample rate.

    Latents of another model are refused. A file that cannot be used is named at the end (exit code 2) and does not stop
    the others.
    """
    model = require_model(model)
    check_folder(output)
    from losatok_ext.audio.files import WRITABLE
    from losatok_ext.formats.latent_files import SUFFIX
    from losatok_ext.jobs.tokenize import Summary, decode_files
    from losatok_ext.recordings import find_inputs, place_outputs

    suffix = "." + format.lower().removeprefix(".")
    if suffix not in WRITABLE:
        raise UserError(f"--format is {format!r}; it takes {', '.join(name[1:] for name in WRITABLE)}")
    found = find_inputs(inputs, (SUFFIX,), "latent")
    outputs = place_outputs(found.sources, output, suffix, (SUFFIX,))
    summary = Summary()
    if found.sources:
        tokenizer = load_model(model, device, dtype)
        with progress_bar("decoding", len(outputs)) as progress:
            summary = decode_files(
                tokenizer,
                found.sources,
                outputs,
                overwrite=overwrite,
                force=force,
                progress=progress,
                debug=ctx.obj["debug"],
            )
    report(summary, "decoded", output, found.failures)
