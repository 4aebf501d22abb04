"""``losatok generate``: audio from text."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import AudioOutputOption
from losatok_ext.cli.options import with_shared_options
from losatok_ext.cli.sampling import MAX_SECONDS, SamplingOptions
from losatok_ext.errors import UserError
from losatok_ext.text import printable


@with_shared_options
def generate(
    output: AudioOutputOption,
    seconds: Annotated[float, typer.Option(help="Length of the clip.", show_default=False)],
    text: Annotated[str, typer.Option(help="What to generate.", show_default="no text")] = "",
    *,
    sampling: SamplingOptions,
    plot: Annotated[
        Path | None, typer.Option(help="Picture to write (.png, .pdf, .svg): mel and latent.", show_default=False)
    ] = None,
) -> None:
    """Generate audio from a text with a trained generator."""
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
        raise UserError(f"--seconds takes a length above 0 and up to {MAX_SECONDS:g}, got {seconds:g}")
    config = sampling.check(text, None, output, plot)
    from losatok_ext.audio.files import write_audio

    generator, tokenizer = sampling.load(output)
    from losatok_ext.cli.sampling_progress import SamplingProgress
    from losatok_ext.generation import generate as generate_latents

    rate = tokenizer.sample_rate
    tokens = max(math.ceil(seconds * tokenizer.frame_rate - 1e-6), 1)
    begin = time.perf_counter()
    with SamplingProgress("generating") as progress:
        latents = generate_latents(generator, [tokens], [text], config, sampling.seed, on_step=progress.on_step)
    took = time.perf_counter() - begin
    audio = tokenizer.decode(latents)[0].float().cpu()[: max(round(seconds * rate), 1)]
    write_audio(output, audio, rate)
    name = printable(str(output))
    print(f"{name}: {len(audio) / rate:.2f} s, {tokens} tokens in {config.steps} steps (generated in {took:.2f} s)")
    if plot is not None:
        from losatok_ext.audio.generation_plots import plot_generated

        title = f"{text or 'no text'} ({sampling.summary()})"
        plot_generated(plot, audio, rate, latents[0].float().cpu(), tokenizer.frame_rate, title)
        print(f"{printable(str(plot))}: waveform, mel, latent")
