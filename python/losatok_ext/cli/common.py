"""What the commands share: their options, loading a model, progress, and the summary of a job over many files."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from losatok_ext.errors import UserError
from losatok_ext.pretrained import DEFAULT, names, resolve
from losatok_ext.text import printable

if TYPE_CHECKING:
    from losatok_ext.jobs.tokenize import JobSummary, OnSource
    from losatok_ext.models import LoSATok
    from losatok_ext.recordings.find import Failure, Source

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        envvar="LOSATOK_MODEL",
        help="Tokenizer: a model folder, the folder of its run, or the name of a bundled model.",
        show_default=f"{DEFAULT}, which is bundled",
    ),
]
GeneratorOption = Annotated[
    Path | None,
    typer.Option(
        "--generator",
        "-g",
        envvar="LOSATOK_GENERATOR",
        help="Generator: a model folder, or the folder of its run (`losatok train generator`).",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Compute in float32, bfloat16 or int8; as the model was saved if left out.", show_default=False
    ),
]
AudioOutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Audio file to write (.wav, .flac, .ogg, .mp3).", show_default=False)
]
RecordingsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IN",
        help="Audio files, folders (searched through), patterns or manifests (.jsonl).",
        show_default=False,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Write again what exists; otherwise it is kept or refused.")
]
OverwriteFileOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace output files that exist; otherwise they are refused.")
]


def require_model(model: Path | None) -> Path:
    """The folder that holds the tokenizer ``model``. Commands call this before they read anything else.

    Args:
        model: a model folder, the folder of a run, or the name of a bundled model; None: the bundled default.

    Raises:
        UserError: it does not exist; the message says how to get a model.
        CheckpointError: it holds no model, or a model of another type.
    """
    folder = resolve(model or DEFAULT)
    if not folder.exists():
        raise UserError(
            f"the model folder {folder} does not exist; check --model, leave it out for the bundled model "
            f"({', '.join(names())}), train one with `losatok train`, or make one from a published checkpoint with "
            "`losatok convert CHECKPOINT -o DIR`"
        )
    from losatok_ext.models.storage.folders import TOKENIZER, open_folder

    return open_folder(folder, TOKENIZER).path


def require_generator(folder: Path | None) -> Path:
    """The folder that holds the generator ``folder``. Commands call this before they read anything else.

    Args:
        folder: a model folder, or the folder of a run.

    Raises:
        UserError: it is None or does not exist; the message says how to get a generator.
        CheckpointError: it holds no model, or a model of another type.
    """
    cure = (
        "pass --generator DIR or set LOSATOK_GENERATOR; `make demo` (or `losatok demo`) makes a small one in "
        "demo/generator/model, and `losatok train generator` trains one"
    )
    if folder is None:
        raise UserError(f"no generator: {cure}")
    if not folder.exists():
        raise UserError(f"the generator folder {folder} does not exist; {cure}")
    from losatok_ext.models.storage.folders import GENERATOR, open_folder

    return open_folder(folder, GENERATOR).path


def check_outputs(source: Path | None, *outputs: Path | None, overwrite: bool) -> None:
    """Check the output files of a command before it does any work.

    Raises:
        UserError: an output is the input, a folder, or the same file as another output, or it exists and ``overwrite``
            is False.
    """
    seen: dict[str, Path] = {} if source is None else {os.path.realpath(source): source}
    for path in filter(None, outputs):
        other = seen.setdefault(os.path.realpath(path), path)
        if other is source:
            raise UserError(f"{path} is the input and would be overwritten; choose another name")
        if other is not path:
            raise UserError(f"{path} would be written twice; choose another name for one of them")
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file in it")
        if os.path.lexists(path) and not overwrite:
            raise UserError(f"{path} exists; pass --overwrite or choose another name")


def load_model(folder: Path, device: str, dtype: str | None = None) -> LoSATok:
    """The tokenizer in ``folder``, in eval mode.

    Args:
        folder: what :func:`require_model` gave.
        device: ``--device``.
        dtype: ``--dtype``; None: as it was saved.

    Raises:
        CheckpointError: the folder holds no usable tokenizer.
        UserError: there is no such device or dtype.
    """
    chosen = pick_device(device)
    check_dtype(dtype)
    from losatok_ext.models import LoSATok

    return LoSATok.from_pretrained(folder, device=chosen, dtype=dtype).eval()


def check_dtype(dtype: str | None) -> None:
    """Raise UserError unless a model can be loaded in ``dtype``."""
    if dtype is None:
        return
    from losatok_ext.models.storage.precision import DTYPES

    if dtype not in DTYPES:
        names = list(DTYPES)
        raise UserError(f"--dtype is {dtype!r}; it takes {', '.join(names[:-1])} or {names[-1]}")


def pick_device(name: str) -> str:
    """The torch device of a ``--device`` option: ``auto`` is a GPU where torch sees one, else the CPU.

    Raises:
        UserError: no such kind of device, or torch does not see it.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not index.isdecimal())):
        raise UserError(f"--device is {name!r}; it takes auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if torch.version.cuda is None:
            raise UserError(
                "--device cuda: this torch was built without CUDA; install a CUDA build of torch, or pass --device cpu"
            )
        if not torch.cuda.is_available() or int(index or 0) >= count:
            raise UserError(
                f"--device {name}: torch sees {count} GPUs; "
                "check the driver and CUDA_VISIBLE_DEVICES, or pass --device cpu"
            )
    return name


def check_folder(folder: Path) -> None:
    """Raise UserError when the output folder cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"-o {folder} is a file; give the name of a folder")


def check_model_output(folder: Path, overwrite: bool) -> None:
    """Raise UserError when a model cannot be written to ``folder``: it is a file, or has a model already."""
    check_folder(folder)
    if (folder / "config.json").exists() and not overwrite:
        raise UserError(f"{folder} holds a model already; pass --overwrite or another folder")


@contextmanager
def progress_bar(title: str, count: int) -> Iterator[OnSource]:
    """Yield what to call after each source. Shows a bar on a terminal for more than one file, else nothing."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import TextColumn

    from losatok_ext.cli.bars import make_bar

    with make_bar(Console(stderr=True), TextColumn("{task.fields[name]}"), show=count > 1) as bar:
        task = bar.add_task(title, total=count, name="")

        def advance(source: Source) -> None:
            bar.update(task, advance=1, name=escape(printable(source.path.name)))

        yield advance


@contextmanager
def stage_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what to call with a stage, how much of it is done and how much there is; shows a bar on a terminal."""
    from rich.console import Console
    from rich.progress import TaskID

    from losatok_ext.cli.bars import make_bar

    with make_bar(Console(stderr=True), percent=True) as bar:
        tasks: dict[str, TaskID] = {}

        def say(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for before in tasks.values():
                    bar.update(before, visible=False)
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield say


def report(summary: JobSummary, verb: str, folder: Path, before: Sequence[Failure] = ()) -> None:
    """Print what a job did, failures on stderr, and end with exit code 2 when anything failed."""
    failures = [*before, *summary.failures]
    for failure in failures:
        print(f"losatok: {printable(failure.message)}", file=sys.stderr)
    parts = []
    if summary.written:
        speed = summary.audio_seconds / max(summary.wall_seconds, 1e-9)
        again = "; ".join(
            f"{count} of them again, since {why}" for why, count in Counter(summary.again.values()).items()
        )
        parts.append(
            f"{count_files(len(summary.written))} {verb} into {printable(str(folder))} "
            f"({summary.audio_seconds:.1f} s of audio in {summary.wall_seconds:.1f} s, {speed:.1f}x real time)"
            + (f", {again}" if again else "")
            + (f", {len(summary.damaged)} of them from damaged recordings" if summary.damaged else "")
        )
    if summary.kept:
        parts.append(f"{count_files(len(summary.kept))} kept as they were (--overwrite writes them again)")
    if failures:
        parts.append(f"{count_files(len(failures))} failed")
    print("; ".join(parts) or f"nothing {verb}")
    if failures:
        raise typer.Exit(2)


def count_files(count: int) -> str:
    """``1 file``, ``2 files`` and so on."""
    return f"{count} file" if count == 1 else f"{count} files"
