"""``losatok profile``: where encoding or decoding a file spends its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from losatok_ext.cli.common import DeviceOption, DtypeOption, ModelOption, OverwriteOption, load_model, require_model
from losatok_ext.cli.options import reads_recordings, with_shared_options
from losatok_ext.cli.reports import OptionalReportOption, finish
from losatok_ext.evaluation.reporting.writing import report_places
from losatok_ext.evaluation.tasks.profiling import profile
from losatok_ext.evaluation.tasks.profiling_report import profiling_report

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok

app = typer.Typer(help="Time the stages of encoding or decoding a file, and compare with the machine's ceiling.")

_Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="OUT.json",
        help="Also write a trace of one run (Perfetto, chrome://tracing).",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class ProfileOptions:
    """What both commands take."""

    output: OptionalReportOption = None
    model: ModelOption = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = None
    trace: _Trace = None
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the fastest is shown.")] = 3
    overwrite: OverwriteOption = False


@app.command()
@reads_recordings
@with_shared_options
def encode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording.", show_default=False)],
    *,
    options: ProfileOptions,
) -> None:
    """Time the stages of encoding a recording. With -o, writes profile.json, .md, .html and .png."""

    def prepare(tokenizer: LoSATok) -> tuple[Callable[[], object], float]:
        from losatok_ext.audio.files import read_audio_with_info

        audio, info = read_audio_with_info(file, tokenizer.sample_rate)
        return lambda: tokenizer.encode(audio), info.seconds

    _profile("Encoding", file, prepare, options)


@app.command()
@with_shared_options
def decode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A latent file (.losatok).", show_default=False)],
    *,
    options: ProfileOptions,
) -> None:
    """Time the stages of decoding a latent file. With -o, writes profile.json, .md, .html and .png."""

    def prepare(tokenizer: LoSATok) -> tuple[Callable[[], object], float]:
        from losatok_ext.formats.latent_files import load_latents
        from losatok_ext.jobs.tokenize import decoder_input

        latents = load_latents(file, tokenizer.fingerprint())
        z = decoder_input(tokenizer, latents)
        return lambda: tokenizer.decode(z), latents.header.seconds

    _profile("Decoding", file, prepare, options)


def _profile(
    title: str,
    file: Path,
    prepare: Callable[[LoSATok], tuple[Callable[[], object], float]],
    options: ProfileOptions,
) -> None:
    """Profile what ``prepare`` returns for the model: a call, and its seconds of audio."""
    folder = require_model(options.model)
    places = None if options.output is None else report_places(options.output, "profile", options.overwrite)
    tokenizer = load_model(folder, options.device, options.dtype)
    run, audio_seconds = prepare(tokenizer)
    found = profile(tokenizer, run, options.repeats)
    if options.trace is not None:
        _write_trace(run, options.trace)
    facts = {"model": tokenizer.fingerprint(), "file": file.name, "device": str(tokenizer.device)}
    finish(profiling_report(found, f"{title}: time by stage", facts, audio_seconds), places)
    if options.trace is not None:
        print(f"trace of one run in {options.trace}")


def _write_trace(run: Callable[[], object], path: Path) -> None:
    import torch

    from losatok_ext.files import atomic_path

    with torch.profiler.profile() as recorded:
        run()
    with atomic_path(path) as temporary:
        recorded.export_chrome_trace(str(temporary))
