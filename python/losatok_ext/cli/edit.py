"""``losatok edit``: parts of a recording generated anew, all else kept."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from losatok_ext.cli.common import AudioOutputOption
from losatok_ext.cli.options import reads_recordings, with_shared_options
from losatok_ext.cli.sampling import MAX_SECONDS, SamplingOptions, two_numbers
from losatok_ext.errors import UserError
from losatok_ext.text import printable

if TYPE_CHECKING:
    from torch import Tensor

    from losatok_ext.formats.latent_files import LatentFile
    from losatok_ext.generation.edit_plan import EditPlan
    from losatok_ext.models import LoSATok


@reads_recordings
@with_shared_options
def edit(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Audio file, or latent file.", show_default=False)],
    output: AudioOutputOption,
    span: Annotated[
        list[str] | None,
        typer.Option(metavar="START:STOP", help="Seconds to generate anew; may be repeated.", show_default=False),
    ] = None,
    insert: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AT:SECONDS",
            help="New seconds to insert at a time; may be repeated.",
            show_default=False,
        ),
    ] = None,
    continue_to: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Continue the recording to this length.", show_default=False),
    ] = None,
    text: Annotated[str, typer.Option(help="Text for the complete edited clip.", show_default="no text")] = "",
    keep: Annotated[
        str | None,
        typer.Option(
            help="What is kept outside the edit: recording (the samples of the recording, faded into the generated "
            "ones) or decoded (the audio that its tokens decode to).",
            show_default="recording; decoded for a latent file",
        ),
    ] = None,
    *,
    sampling: SamplingOptions,
    plot: Annotated[
        Path | None, typer.Option(help="Picture to write (.png, .pdf, .svg): before and after.", show_default=False)
    ] = None,
) -> None:
    """Generate parts of a recording anew, insert new seconds or continue it, and keep the rest bit for bit.

    All times are times of the original recording, in seconds.
    """
    if keep not in (None, "recording", "decoded"):
        raise UserError(f"--keep takes recording or decoded, got {keep!r}")
    spans = [two_numbers("--span", value, "START:STOP in seconds such as 1.2:2.0") for value in span or []]
    inserts = [two_numbers("--insert", value, "AT:SECONDS such as 1.5:0.8") for value in insert or []]
    if not spans and not inserts and continue_to is None:
        raise UserError("nothing to edit: give --span START:STOP, --insert AT:SECONDS or --continue-to SECONDS")
    config = sampling.check(text, source, output, plot)
    from losatok_ext.audio.files import write_audio

    generator, tokenizer = sampling.load(output)
    from losatok_ext.cli.sampling_progress import SamplingProgress
    from losatok_ext.generation import edit as edit_latents
    from losatok_ext.generation.splice import splice

    latents, before, kept = _read(source, tokenizer, keep)
    mu = latents.mu
    if mu is None:
        raise UserError(f"{source} holds codes; encode the recording with --store float32 or float16")
    where = _where(latents, spans, inserts, continue_to)
    begin = time.perf_counter()
    with SamplingProgress("editing") as progress:
        edited = edit_latents(
            generator,
            mu,
            text=text,
            config=config,
            seed=sampling.seed,
            fingerprint=latents.header.fingerprint,
            on_step=progress.on_step,
            **where,
        )
    took = time.perf_counter() - begin
    after = splice(tokenizer, edited.plan, edited.latents[0], before, kept)
    rate, size = tokenizer.sample_rate, tokenizer.samples_per_token
    if continue_to is not None:
        after = after[: round(continue_to * rate) + size * sum(count for _, count in where["insertions"])]
    write_audio(output, after, rate)
    new = int(edited.plan.generated.sum()) * size / rate
    name = printable(str(output))
    print(f"{name}: {len(after) / rate:.2f} s, {new:.2f} s of it generated (in {took:.2f} s), the rest kept")
    if plot is not None:
        from losatok_ext.audio.generation_plots import plot_edit

        generated = [(r.start * size / rate, r.stop * size / rate) for r in edited.plan.runs() if r.source is None]
        placed, missing = _place(edited.plan, before, len(after), size)
        title = f"{source.name}: {text or 'no text'} ({sampling.summary()})"
        gaps = [(start / rate, stop / rate) for start, stop in missing]
        plot_edit(plot, placed, after, rate, edited.latents[0].float(), generated, gaps, tokenizer.frame_rate, title)
        print(f"{printable(str(plot))}: before and after, latent")


def _read(source: Path, tokenizer: LoSATok, keep: str | None) -> tuple[LatentFile, Tensor, str]:
    """The clip's latents, its waveform, and what that is.

    Raises:
        UserError: a file that cannot be used, or a latent file of which the recording is to be kept.
    """
    from losatok_ext.audio.files import read_audio_with_info
    from losatok_ext.formats.latent_files import SUFFIX, load_latents
    from losatok_ext.jobs.tokenize import decode_clip, encode_clip

    if source.suffix.lower() == SUFFIX:
        if keep == "recording":
            raise UserError(f"--keep recording: {source} is a latent file and holds no recording; leave --keep out")
        latents = load_latents(source, tokenizer.fingerprint())
        return latents, decode_clip(tokenizer, latents), "decoded"
    audio, info = read_audio_with_info(source, tokenizer.sample_rate)
    latents = encode_clip(tokenizer, audio, info)
    if latents.header.tokens == 0:
        raise UserError(f"{source} is too short to edit: it has no token ({latents.header.seconds:.3f} s)")
    if keep == "decoded":
        return latents, decode_clip(tokenizer, latents), keep
    return latents, audio, "recording"


def _where(
    latents: LatentFile, spans: list[tuple[float, float]], inserts: list[tuple[float, float]], continue_to: float | None
) -> dict:
    """The arguments of an edit in tokens.

    Raises:
        UserError: a time outside the recording, or a span that ends before it begins.
    """
    from losatok_ext.generation.edit_plan import seconds_to_tokens

    header = latents.header
    length, rate = header.seconds, header.frame_rate
    where: dict = {"spans": [], "insertions": []}
    for start, stop in spans:
        if start >= stop:
            raise UserError(f"--span {start:g}:{stop:g} ends before it begins; give START:STOP in seconds")
        if start < 0 or stop > length + 5e-3:
            raise UserError(
                f"--span {start:g}:{stop:g} does not lie within the recording, which has {length:.2f} s; use "
                "--continue-to for what comes after"
            )
        first, last = seconds_to_tokens(start, stop, rate)
        where["spans"].append((min(first, header.tokens - 1), min(last, header.tokens)))
    for at, seconds in inserts:
        if not 0 <= at <= length:
            raise UserError(f"--insert {at:g}:{seconds:g}: the recording has no {at:g} s, it is {length:.2f} s long")
        if not 0 < seconds <= MAX_SECONDS:
            raise UserError(
                f"--insert {at:g}:{seconds:g}: the seconds to insert should be more than 0 and at most {MAX_SECONDS:g}"
            )
        where["insertions"].append((min(round(at * rate), header.tokens), max(round(seconds * rate), 1)))
    if continue_to is not None:
        if not (math.isfinite(continue_to) and continue_to > length):
            raise UserError(
                f"--continue-to {continue_to:g} lies within the recording, which has {length:.2f} s; give a later time"
            )
        if continue_to > length + MAX_SECONDS:
            raise UserError(
                f"--continue-to {continue_to:g} adds more than {MAX_SECONDS:g} s; continue in several steps"
            )
        if header.samples < header.tokens * header.samples_per_token:
            # The last token ends with silence after the recording, which should not stay before the new sound.
            where["spans"].append((header.tokens - 1, header.tokens))
        where["continue_to"] = max(math.ceil(continue_to * rate - 1e-6), header.tokens + 1)
    return where


def _place(plan: EditPlan, before: Tensor, samples: int, size: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """``before`` where its parts stand after the edit, silence where there was nothing, and where that is."""
    import torch

    place = torch.full((len(plan.source),), -1)
    # What replaces a span stands in its place: the tokens of the clip as it was follow each other, but for what is new.
    old = 0
    for run in plan.runs():
        if run.source is not None:
            place[run.start : run.stop] = torch.arange(run.source, run.source + run.stop - run.start)
            old = run.source + run.stop - run.start
            continue
        following = next((r.source for r in plan.runs() if r.start == run.stop and r.source is not None), plan.tokens)
        count = min(following - old, run.stop - run.start)
        place[run.start : run.start + count] = torch.arange(old, old + count)
    padded = torch.cat([before, before.new_zeros(plan.tokens * size - len(before))]).view(-1, size)
    placed = torch.where((place >= 0)[:, None], padded[place.clamp(min=0)], 0.0).flatten()[:samples]
    missing = (place < 0).nonzero().flatten().tolist()
    gaps: list[tuple[int, int]] = []
    for token in missing:
        if gaps and gaps[-1][1] == token * size:
            gaps[-1] = (gaps[-1][0], (token + 1) * size)
        else:
            gaps.append((token * size, (token + 1) * size))
    return placed, gaps
