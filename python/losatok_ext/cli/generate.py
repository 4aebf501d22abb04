"""``losatok generate``: audio from text."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import AudioOutputOption, DeviceOption, GeneratorOption, ModelOption, check_outputs
from losatok_ext.cli.sampling import (
    CfgIntervalOption,
    CfgOption,
    CfgRescaleOption,
    CudaGraphsOption,
    SamplingDtypeOption,
    ScheduleOption,
    SeedOption,
    SolverOption,
    StepsOption,
    load_both,
    sampler_config,
)
from losatok_ext.errors import UserError

MAX_SECONDS = 600.0
"""Attention over more than ten minutes at once takes hours; a longer piece is continued with `losatok edit`."""


def generate(
    output: AudioOutputOption,
    seconds: Annotated[float, typer.Option(help="Length of the clip.", show_default=False)],
    text: Annotated[str, typer.Option(help="What to generate.", show_default="nothing in particular")] = "",
    generator: GeneratorOption = None,
    model: ModelOption = None,
    steps: StepsOption = 20,
    cfg: CfgOption = 3.0,
    cfg_interval: CfgIntervalOption = "0:1",
    cfg_rescale: CfgRescaleOption = 0.0,
    solver: SolverOption = "euler",
    schedule: ScheduleOption = "uniform",
    seed: SeedOption = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Picture to write (.png, .pdf, .svg): mel and latent.", show_default=False)
    ] = None,
    dtype: SamplingDtypeOption = None,
    device: DeviceOption = "auto",
    cuda_graphs: CudaGraphsOption = False,
) -> None:
    """Generate audio from a text with a trained generator."""
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
        raise UserError(f"--seconds takes a length above 0 and up to {MAX_SECONDS:g}, got {seconds:g}")
    check_outputs(None, output, plot)
    from losatok_ext.audio.files import write_audio
    from losatok_ext.audio.plots import check_picture

    if plot is not None:
        check_picture(plot)
    config = sampler_config(steps, cfg, cfg_interval, cfg_rescale, solver, schedule, cuda_graphs)
    maker, tokenizer = load_both(generator, model, device, dtype, output)
    from losatok_ext.cli.sampling_progress import SamplingProgress
    from losatok_ext.generation.generation import generate as generate_latents

    rate = tokenizer.sample_rate
    tokens = max(math.ceil(seconds * tokenizer.frame_rate - 1e-6), 1)
    begin = time.perf_counter()
    with SamplingProgress("generating") as progress:
        latents = generate_latents(maker, [tokens], [text], config, seed, on_step=progress.on_step)
    took = time.perf_counter() - begin
    audio = tokenizer.decode(latents)[0].float().cpu()[: max(round(seconds * rate), 1)]
    write_audio(output, audio, rate)
    print(f"{output}: {len(audio) / rate:.2f} s, {tokens} tokens in {steps} steps (generated in {took:.2f} s)")
    if plot is not None:
        from losatok_ext.audio.generation_plots import plot_generated

        title = f"{text or 'no text'} (seed {seed}, {steps} {solver} steps, guidance {cfg:g})"
        plot_generated(plot, audio, rate, latents[0].float().cpu(), tokenizer.frame_rate, title)
        print(f"{plot}: waveform, mel, latent")
