"""Commands over many files, ``losatok encode`` and ``losatok decode``: their shared options, and how they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from losatok_ext.cli.common import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    OverwriteOption,
    check_folder,
    count_files,
    load_model,
    progress_bar,
    report,
    require_model,
)
from losatok_ext.text import printable

if TYPE_CHECKING:
    from losatok_ext.jobs.tokenize import JobSummary, OnSource
    from losatok_ext.models import LoSATok
    from losatok_ext.recordings import Source


@dataclass(frozen=True)
class FilesOptions:
    """What every such command takes."""

    model: ModelOption = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = None
    overwrite: OverwriteOption = False


Work = Callable[["LoSATok", "Sequence[Source]", Sequence[Path], "OnSource"], "JobSummary"]
"""Model, sources, their outputs, and what to call after each source -> what was done."""


def run_over_files(
    options: FilesOptions,
    names: Sequence[str],
    output: Path,
    work: Work,
    *,
    verbs: tuple[str, str],
    suffix: str,
    takes: Sequence[str],
    kind: str,
) -> None:
    """Find the inputs, place their outputs, load the model, work, and report.

    Args:
        options: of the command.
        names: of the inputs, as on the command line.
        output: folder of the outputs.
        work: the job.
        verbs: what is done to the files and was done to them, such as ``("encoding", "encoded")``.
        suffix: of the outputs.
        takes: suffixes of the inputs.
        kind: what the inputs are called in messages.

    Raises:
        UserError: nothing can be done as the options ask.
        typer.Exit: a file failed (code 2), or the command was stopped from the keyboard (code 130).
    """
    model = require_model(options.model)
    check_folder(output)
    from losatok_ext.jobs.tokenize import JobInterrupted, JobSummary
    from losatok_ext.recordings import find_inputs, place_outputs

    found = find_inputs(names, takes, kind)
    outputs = place_outputs(found.sources, output, suffix, takes)
    summary = JobSummary()
    if found.sources:
        tokenizer = load_model(model, options.device, options.dtype)
        with progress_bar(verbs[0], len(outputs)) as on_source:
            try:
                summary = work(tokenizer, found.sources, outputs, on_source)
            except JobInterrupted as stopped:
                _report_stop(stopped.summary, verbs[1], output, len(outputs))
                raise typer.Exit(130) from None
    report(summary, verbs[1], output, found.failures)


def _report_stop(summary: JobSummary, verb: str, folder: Path, count: int) -> None:
    done = len(summary.written) + len(summary.kept)
    kept = f", {len(summary.kept)} of them before" if summary.kept else ""
    failed = f"; {count_files(len(summary.failures))} failed" if summary.failures else ""
    print(
        f"stopped: {done} of {count_files(count)} {verb} into {printable(str(folder))}{kept}{failed}; "
        "the same command goes on with the rest"
    )
