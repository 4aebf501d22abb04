"""``losatok demo``: the whole path on the bundled recordings - tokenize, train, generate, edit - in a few minutes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from losatok_ext.audio.files import AudioInfo, read_audio_with_info, write_audio
from losatok_ext.audio.plots import plot_reconstruction
from losatok_ext.audio.samples import sample_folder
from losatok_ext.cli.common import check_folder, pick_device
from losatok_ext.cli.edit import edit
from losatok_ext.cli.generate import generate
from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.progress import TrainingProgress
from losatok_ext.errors import UserError
from losatok_ext.files import atomic_path
from losatok_ext.formats.latent_files import SUFFIX, load_latents, save_latents
from losatok_ext.jobs.tokenize import decode_clip, encode_clip, encode_files
from losatok_ext.models import LoSATok
from losatok_ext.pretrained import DEFAULT
from losatok_ext.recordings import find_inputs, place_outputs
from losatok_ext.training import read_log, train_generator, train_sembo, train_tokenizer
from losatok_ext.training.config.recipes import demo_generator_recipe, demo_recipe

RECORDING = Path("speech") / "00004.flac"
PROMPT, PROMPT_SECONDS = "a red fox measured the morning train.", 2.8
"""The generated sentence: one of those in the bundled recordings, on which the demo's generator is trained."""


@reads_recordings
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results of the demo.")] = Path("demo"),
    recording: Annotated[
        Path | None,
        typer.Option(help="Recording to reconstruct and to edit.", show_default="one of the bundled clips"),
    ] = None,
    steps_scale: Annotated[
        float,
        typer.Option(min=0.001, max=1000, help="Train for this many times the recipe's steps.", show_default="1"),
    ] = 1.0,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train a tokenizer too, instead of taking the bundled one.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Tokenize and reconstruct with the bundled model, train a small generator on its latents, generate and edit.

    Leaves both models, a latent file, the reconstruction, a generated and an edited clip, and pictures in the folder.
    The same command again goes on where it was stopped.
    """
    check_folder(output)
    data = sample_folder()
    text = _text_of(RECORDING) if recording is None else ""
    recording = recording or data / RECORDING
    device = pick_device(device)
    audio, info = read_audio_with_info(recording, 16000)  # before the training: it may not be readable
    began = time.monotonic()
    trained = _train_tokenizer(data, output, device, steps_scale) if from_scratch else DEFAULT
    typer.echo(f"1/3  {recording.name}: to tokens and back" + ("" if from_scratch else f", by the model {DEFAULT}"))
    model = LoSATok.from_pretrained(trained).to(device).eval()
    model.save_pretrained(output / "model")
    summary = _reconstruct(model, audio, info, output)
    typer.echo("2/3  the generator: a diffusion transformer on the tokens of all recordings")
    latents = _encode_all(model, data, output / "latents")
    with TrainingProgress() as progress:
        made = train_generator(
            latents,
            output / "generator",
            demo_generator_recipe(output / "model", device=device, scale=steps_scale),
            on_start=progress.on_start,
            on_step=progress.on_step,
        )
    typer.echo(f"3/3  a clip from the text {PROMPT!r}, and {recording.name} with its middle made anew")
    models: dict[str, Any] = {"generator": made.model, "model": output / "model", "device": device}
    clip, new = output / "generated.wav", output / "edited.wav"
    generate(clip, PROMPT_SECONDS, PROMPT, plot=clip.with_suffix(".png"), overwrite=True, **models)
    middle = f"{0.4 * info.seconds:.2f}:{0.65 * info.seconds:.2f}"
    edit(recording, new, span=[middle], text=text, plot=new.with_suffix(".png"), overwrite=True, **models)
    flows = [entry["flow_matching"] for entry in read_log(output / "generator")]
    typer.echo(
        f"\ndone in {(time.monotonic() - began) / 60:.1f} minutes; flow matching {flows[0]:.2f} at first, "
        f"{_mean(flows[-20:]):.2f} at last\n"
        f"  {output / 'model'}, {made.model}: the models, for --model and --generator\n"
        f"{summary}"
        f"  {clip}, {clip.with_suffix('.png')}: the generated clip\n"
        f"  {new}, {new.with_suffix('.png')}: the recording, made anew from second {middle.replace(':', ' to ')}\n\n"
        f"next: losatok reconstruct YOUR.wav -o out.wav --plot out.png --model {output / 'model'}\n"
        f"      losatok edit YOUR.wav --span 1:2 -o out.wav --plot out.png --model {output / 'model'} "
        f"--generator {made.model}"
    )


def _train_tokenizer(data: Path, output: Path, device: str, scale: float) -> Path:
    """Train both stages of a small tokenizer on the recordings, and return its model folder."""
    sembo, tokenizer = demo_recipe(output / "sembo" / "model", device=device, scale=scale)
    typer.echo("     the semantic bottleneck: the features of the frozen teacher in few dimensions")
    with TrainingProgress() as progress:
        train_sembo(data, output / "sembo", sembo, on_start=progress.on_start, on_step=progress.on_step)
    typer.echo("     the tokenizer: acoustic encoder, latent and decoder")
    with TrainingProgress() as progress:
        result = train_tokenizer(
            data, output / "tokenizer", tokenizer, on_start=progress.on_start, on_step=progress.on_step
        )
    mels = [entry["mel"] for entry in read_log(output / "tokenizer")]
    typer.echo(f"     mel loss {mels[0]:.2f} at first, {min(mels[-5:]):.2f} at last")
    return result.model


def _reconstruct(model: LoSATok, audio: Tensor, info: AudioInfo, output: Path) -> str:
    """Encode, store, decode and draw the recording; returns the lines about it for the summary."""
    made = {name: output / f"recording.{name}" for name in ("losatok", "wav", "png")}
    save_latents(made["losatok"], encode_clip(model, audio, info))
    latents = load_latents(made["losatok"], model.fingerprint())  # decode what was stored
    decoded = decode_clip(model, latents)
    write_audio(made["wav"], decoded, model.sample_rate)
    header = latents.header
    title = f"{info.path.name}: {header.tokens} tokens of {header.latent_dim} dimensions at {header.frame_rate:g} Hz"
    plot_reconstruction(made["png"], audio, decoded, model.sample_rate, latents.mu, header.frame_rate, title)
    return (
        f"  {made['losatok']}: {header.seconds:.2f} s of audio as {header.tokens} x {header.latent_dim} numbers\n"
        f"  {made['wav']}, {made['png']}: the reconstruction, the mel of both, and the latent\n"
    )


def _encode_all(model: LoSATok, data: Path, folder: Path) -> Path:
    """Write latent files of the bundled recordings and a manifest with their texts, and return its path."""
    sources = find_inputs([data], (".flac",)).sources
    outputs = place_outputs(sources, folder, SUFFIX, (".flac",))
    failures = encode_files(model, sources, outputs).failures
    if failures:
        raise UserError(failures[0].message)
    lines = []
    for values in _manifest():
        path = Path(values["path"]).with_suffix(SUFFIX).as_posix()
        lines.append(json.dumps({key: values[key] for key in ("text", "labels") if key in values} | {"path": path}))
    with atomic_path(folder / "manifest.jsonl") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "manifest.jsonl"


def _manifest() -> list[dict]:
    lines = (sample_folder() / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _text_of(recording: Path) -> str:
    return next(values["text"] for values in _manifest() if values["path"] == recording.as_posix())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
