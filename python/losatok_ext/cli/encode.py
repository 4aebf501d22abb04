"""``losatok encode``: recordings to latent files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    OverwriteOption,
    RecordingsArgument,
    check_folder,
    load_model,
    progress_bar,
    report,
    require_model,
)


def encode(
    ctx: typer.Context,
    inputs: RecordingsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the .losatok files.", show_default=False)],
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    overwrite: OverwriteOption = False,
    store: Annotated[
        str | None,
        typer.Option(
            help="How: float32, float16, int8, int4, or codes of the model's quantizer.",
            show_default="codes for a model with a quantizer, else float32",
        ),
    ] = None,
    logvar: Annotated[bool, typer.Option("--logvar", help="Store the posterior's log variance too.")] = False,
    dims: Annotated[
        int | None,
        typer.Option(help="Dimensions to keep and store, of a model with nested latents.", show_default="all"),
    ] = None,
    target_error: Annotated[
        float | None,
        typer.Option(
            help="Keep of each file the fewest dimensions that restore its semantic features with at most this error "
            "(mean 1 - cosine), of a model with nested latents.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Encode audio files to latent files (.losatok), keeping the tree of a folder.

    WAV, FLAC, Ogg, MP3 and what else libsndfile reads; any sample rate, any number of channels. A file that cannot be
    used is named at the end (exit code 2) and does not stop the others.
    """
    model = require_model(model)
    check_folder(output)
    from losatok_ext.audio.files import READABLE_SUFFIXES
    from losatok_ext.formats.latent_files import SUFFIX
    from losatok_ext.jobs.tokenize import Summary, encode_files
    from losatok_ext.recordings import find_inputs, place_outputs

    found = find_inputs(inputs, READABLE_SUFFIXES)
    outputs = place_outputs(found.sources, output, SUFFIX, READABLE_SUFFIXES)
    summary = Summary()
    if found.sources:
        tokenizer = load_model(model, device, dtype)
        with progress_bar("encoding", len(outputs)) as progress:
            summary = encode_files(
                tokenizer,
                found.sources,
                outputs,
                overwrite=overwrite,
                logvar=logvar,
                storage=store,
                dims=dims,
                target_error=target_error,
                progress=progress,
                debug=ctx.obj["debug"],
            )
    report(summary, "encoded", output, found.failures)
