"""``losatok encode``: recordings to latent files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import RecordingsArgument
from losatok_ext.cli.files_to_files import FilesOptions, run_over_files
from losatok_ext.cli.options import reads_recordings, with_shared_options


@reads_recordings
@with_shared_options
def encode(
    ctx: typer.Context,
    inputs: RecordingsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the .losatok files.", show_default=False)],
    *,
    files: FilesOptions,
    store: Annotated[
        str | None,
        typer.Option(
            help="How to store latents: float32, float16, int8, int4, or codes of the model's quantizer.",
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
            help="For each file keep the fewest dimensions that restore its semantic features with at most this error "
            "(mean of 1 - cosine); for a model with nested latents.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Encode audio files to latent files (.losatok), in the same tree of folders.

    WAV, FLAC, Ogg, MP3 and other formats of libsndfile; any sample rate, any number of channels. Files that cannot be
    used do not stop the others: they are named at the end, and the exit code is 2.

    A latent file that exists is kept where it is undamaged and of the same recording, model and options. It is written
    again where the recording has changed or the file is damaged. With another model or other options, and where it is
    another kind of file, the recording counts as failed; --overwrite writes it again.
    """
    from losatok_ext.audio.files import READABLE_SUFFIXES
    from losatok_ext.formats.latent_files import SUFFIX
    from losatok_ext.formats.latent_storage import StoreOptions
    from losatok_ext.jobs.tokenize import encode_files

    how = StoreOptions(store, logvar, dims, target_error)
    run_over_files(
        files,
        inputs,
        output,
        lambda model, sources, outputs, on_source: encode_files(
            model, sources, outputs, how, overwrite=files.overwrite, on_source=on_source, debug=ctx.obj["debug"]
        ),
        verbs=("encoding", "encoded"),
        suffix=SUFFIX,
        takes=READABLE_SUFFIXES,
        kind="audio",
    )
