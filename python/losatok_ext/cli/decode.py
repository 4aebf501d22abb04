"""``losatok decode``: latent files to audio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.files_to_files import FilesOptions, run_over_files
from losatok_ext.cli.options import with_shared_options
from losatok_ext.errors import UserError


@with_shared_options
def decode(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN",
            help="Latent files, folders (searched through), patterns or manifests (.jsonl).",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the audio files.", show_default=False)],
    *,
    files: FilesOptions,
    format: Annotated[str, typer.Option(help="Format of the audio files: wav, flac, ogg or mp3.")] = "wav",
    force: Annotated[bool, typer.Option("--force", help="Decode latents of another model too.")] = False,
) -> None:
    """Decode latent files (.losatok) to audio of the length that was encoded, at the model's sample rate.

    Latents of another model are refused. Files that cannot be used do not stop the others: they are named at the end,
    and the exit code is 2.

    An audio file that exists is kept where it is as it was decoded from the same latent file, by the same model. It is
    written again where the latent file has changed. With another model or --dtype, and where it was not decoded here or
    has been changed since, the latent file counts as failed; --overwrite writes it again.
    """
    from losatok_ext.audio.files import WRITABLE
    from losatok_ext.formats.latent_files import SUFFIX
    from losatok_ext.jobs.tokenize import decode_files

    suffix = "." + format.lower().removeprefix(".")
    if suffix not in WRITABLE:
        raise UserError(f"--format is {format!r}; it takes {', '.join(name[1:] for name in WRITABLE)}")
    run_over_files(
        files,
        inputs,
        output,
        lambda model, sources, outputs, on_source: decode_files(
            model,
            sources,
            outputs,
            overwrite=files.overwrite,
            force=force,
            on_source=on_source,
            debug=ctx.obj["debug"],
        ),
        verbs=("decoding", "decoded"),
        suffix=suffix,
        takes=(SUFFIX,),
        kind="latent",
    )
