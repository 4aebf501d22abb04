"""``losatok reconstruct``: a recording, encoded and decoded again, as audio and as a picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import (
    AudioOutputOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    OverwriteFileOption,
    check_outputs,
    load_model,
    require_model,
)
from losatok_ext.cli.options import reads_recordings
from losatok_ext.errors import UserError
from losatok_ext.text import printable


@reads_recordings
def reconstruct(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Audio file.", show_default=False)],
    output: AudioOutputOption,
    model: ModelOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture to write (.png, .pdf, .svg): mels and latent.", show_default=False)
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    overwrite: OverwriteFileOption = False,
) -> None:
    """Encode an audio file and decode it again; --plot draws both and the latent."""
    model = require_model(model)
    from losatok_ext.audio.files import check_writable, read_audio_with_info, write_audio
    from losatok_ext.audio.plots import PICTURES, plot_reconstruction

    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise UserError(f"--plot {plot} ends in none of {', '.join(PICTURES)}")
    check_outputs(source, output, plot, overwrite=overwrite)
    tokenizer = load_model(model, device, dtype)
    check_writable(output, tokenizer.sample_rate)
    from losatok_ext.jobs.tokenize import decode_clip, encode_clip

    audio, info = read_audio_with_info(source, tokenizer.sample_rate)
    start = time.perf_counter()
    latents = encode_clip(tokenizer, audio, info)
    between = time.perf_counter()
    decoded = decode_clip(tokenizer, latents)
    end = time.perf_counter()
    write_audio(output, decoded, tokenizer.sample_rate)
    header = latents.header
    print(
        f"{printable(str(output))}: {header.seconds:.2f} s, {header.tokens} tokens of {header.latent_dim} dimensions "
        f"(encoded in {between - start:.2f} s, decoded in {end - between:.2f} s)"
    )
    if plot is not None:
        title = f"{source.name}: {header.seconds:.2f} s, model {header.fingerprint}"
        plot_reconstruction(plot, audio, decoded, tokenizer.sample_rate, latents.mu, header.frame_rate, title)
        print(f"{printable(str(plot))}: mel of input and reconstruction, latent")
