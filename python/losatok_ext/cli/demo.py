"""``losatok demo``: the whole path on the bundled recordings - train, tokenize, reconstruct - in a few minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.audio.files import read_audio_with_info, write_audio
from losatok_ext.audio.plots import plot_reconstruction
from losatok_ext.audio.samples import sample_folder
from losatok_ext.cli.common import check_folder, pick_device
from losatok_ext.inference.jobs import decode_clip, encode_clip
from losatok_ext.inference.latent_files import load_latents, save_latents
from losatok_ext.models import LoSATok
from losatok_ext.training import read_log, train_sembo, train_tokenizer
from losatok_ext.training.progress import TrainingProgress
from losatok_ext.training.recipes import demo_recipe

RECORDING = Path("speech") / "00004.flac"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all that the demo makes.")] = Path("demo"),
    recording: Annotated[
        Path | None, typer.Option(help="Recording to reconstruct.", show_default="one of the bundled clips")
    ] = None,
    steps_scale: Annotated[
        float, typer.Option(min=0.001, help="Train for this many times the recipe's steps.", show_default="1")
    ] = 1.0,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train a small model on the bundled recordings, then tokenize and reconstruct one.

    Leaves a model, a latent file, the reconstruction and a picture in the folder. The same command again goes on where
    it was stopped.
    """
    check_folder(output)
    data = sample_folder()
    recording = recording or data / RECORDING
    device = pick_device(device)
    audio, info = read_audio_with_info(recording, 16000)  # a recording that cannot be read is said before the training
    began = time.monotonic()
    sembo, tokenizer = demo_recipe(output / "sembo" / "model", device=device, scale=steps_scale)
    typer.echo("1/3  the semantic bottleneck: what the frozen teacher hears, in few dimensions")
    with TrainingProgress() as progress:
        train_sembo(data, output / "sembo", sembo, on_start=progress.on_start, on_step=progress.on_step)
    typer.echo("2/3  the tokenizer: acoustic encoder, latent and decoder")
    with TrainingProgress() as progress:
        result = train_tokenizer(
            data, output / "tokenizer", tokenizer, on_start=progress.on_start, on_step=progress.on_step
        )
    typer.echo(f"3/3  {recording.name}: to tokens and back")
    model = LoSATok.from_pretrained(result.model).to(device).eval()
    model.save_pretrained(output / "model")
    made = {name: output / f"recording.{name}" for name in ("losatok", "wav", "png")}
    save_latents(made["losatok"], encode_clip(model, audio, info))
    latents = load_latents(made["losatok"], model.fingerprint())  # what is decoded is what was stored
    decoded = decode_clip(model, latents)
    write_audio(made["wav"], decoded, model.sample_rate)
    header = latents.header
    title = f"{recording.name}: {header.tokens} tokens of {header.latent_dim} dimensions at {header.frame_rate:g} Hz"
    plot_reconstruction(made["png"], audio, decoded, model.sample_rate, latents.mu, header.frame_rate, title)
    losses = [entry["mel"] for entry in read_log(output / "tokenizer")]
    typer.echo(
        f"\ndone in {(time.monotonic() - began) / 60:.1f} minutes; mel distance {losses[0]:.2f} at first, "
        f"{min(losses[-5:]):.2f} at last\n"
        f"  {output / 'model'}: the model, for --model of every command\n"
        f"  {made['losatok']}: {header.seconds:.2f} s of audio as {header.tokens} x {header.latent_dim} numbers\n"
        f"  {made['wav']}: the reconstruction\n"
        f"  {made['png']}: the mel of both, and the latent\n\n"
        f"next: losatok reconstruct YOUR.wav -o out.wav --plot out.png --model {output / 'model'}"
    )
