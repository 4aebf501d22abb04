"""``losatok profile``: where encoding or decoding a file spends its time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from losatok_ext.cli.common import DeviceOption, DtypeOption, ModelOption, load_model, require_model

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok

app = typer.Typer(help="Time the stages of encoding or decoding a file, beside the machine's matrix ceiling.")

_Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="OUT.json",
        help="Also write a trace of one run (Perfetto, chrome://tracing).",
        show_default=False,
    ),
]
_Repeats = Annotated[int, typer.Option(min=1, help="Runs; the fastest is shown.")]


@app.command()
def encode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording.", show_default=False)],
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    trace: _Trace = None,
    repeats: _Repeats = 3,
) -> None:
    """Time the stages of encoding a recording."""
    folder = require_model(model)
    from losatok_ext.audio.files import read_audio_with_info

    tokenizer = load_model(folder, device, dtype)
    audio, info = read_audio_with_info(file, tokenizer.sample_rate)
    _report(tokenizer, lambda: tokenizer.encode(audio), info.seconds, repeats, trace)


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A latent file (.losatok).", show_default=False)],
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    trace: _Trace = None,
    repeats: _Repeats = 3,
) -> None:
    """Time the stages of decoding a latent file."""
    folder = require_model(model)
    from losatok_ext.formats.latent_files import load_latents
    from losatok_ext.jobs.tokenize import decoder_input

    tokenizer = load_model(folder, device, dtype)
    latents = load_latents(file, tokenizer.fingerprint())
    z = decoder_input(tokenizer, latents)
    _report(tokenizer, lambda: tokenizer.decode(z), latents.header.seconds, repeats, trace)


def _report(model: LoSATok, run: Callable[[], object], audio_seconds: float, repeats: int, trace: Path | None) -> None:
    from losatok_ext.evaluation.tasks.profiling import profile
    from losatok_ext.files import atomic_path

    found = profile(model, run, repeats)
    print(found.table())
    speed = audio_seconds / max(found.seconds, 1e-9)
    print(f"{audio_seconds:.2f} s of audio in {found.seconds:.3f} s, {speed:.1f}x real time")
    if trace is not None:
        import torch

        with torch.profiler.profile() as recorded:
            run()
        with atomic_path(trace) as path:
            recorded.export_chrome_trace(str(path))
        print(f"trace of one run in {trace}")
