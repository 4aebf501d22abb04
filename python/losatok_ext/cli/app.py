"""The ``losatok`` application: its commands, and how their errors are shown."""

from __future__ import annotations

import io
import itertools
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

import losatok_ext
from losatok_ext.cli.convert import convert
from losatok_ext.cli.decode import decode
from losatok_ext.cli.edit import edit
from losatok_ext.cli.encode import encode
from losatok_ext.cli.fit_quantizer import fit_quantizer
from losatok_ext.cli.generate import generate
from losatok_ext.cli.info import info
from losatok_ext.cli.reconstruct import reconstruct
from losatok_ext.errors import UserError, is_out_of_memory
from losatok_ext.text import printable

# Commands whose modules import torch: name -> module, attribute, and the line for --help, which does not import them.
_HEAVY = {
    "train": ("losatok_ext.cli.train", "app", "Train a model: a `teacher`, `sembo`, `tokenizer`, then a `generator`."),
    "shard": ("losatok_ext.cli.shard", "shard", "Pack recordings into WebDataset shards to train on."),
    "precompute": (
        "losatok_ext.cli.precompute",
        "app",
        "Run a frozen network once: teacher `features` or `latents` into shards to train on.",
    ),
    "evaluate": (
        "losatok_ext.cli.evaluate",
        "app",
        "Measure a model: `reconstruction`, `probe`, `generation`, `storage`, `precision`.",
    ),
    "analyze": ("losatok_ext.cli.analyze", "analyze", "Effective rank of features, and what reductions keep of them."),
    "profile": ("losatok_ext.cli.profile", "app", "Time the stages of encoding or decoding a file."),
    "demo": ("losatok_ext.cli.demo", "demo", "Reconstruct, generate and edit the bundled recordings."),
}

# Packages that an installation may lack, and the extra that brings them.
_EXTRAS = {
    "rich": "cli",
    "yaml": "cli",
    "matplotlib": "cli",
    "jinja2": "cli",
    "soundfile": "audio",
    "soxr": "audio",
    "tensorboard": "train",
    "webdataset": "train",
    "braceexpand": "train",
}

# Typer's usage errors derive from click's, which newer releases of typer carry inside themselves.
_ClickException: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


class _Group(TyperGroup):
    """Imports a heavy command when it is called, not when it is listed."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in _HEAVY:
            module, attribute, summary = _HEAVY[args[0]]
            command = getattr(import_module(module), attribute)
            host = typer.Typer(add_completion=False)
            host.callback()(lambda: None)  # keeps a host of one command a group
            if isinstance(command, typer.Typer):
                host.add_typer(command, name=args[0])
            else:
                host.command(args[0], help=command.__doc__ or summary)(command)
            self.commands[args[0]] = cast("TyperGroup", get_command(host)).commands[args[0]]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"losatok {losatok_ext.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (may stand anywhere on the line).")] = False,
) -> None:
    """Turn audio into low-dimensional latents and back."""
    ctx.obj = {"debug": debug}
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


for _command in (encode, decode, reconstruct, generate, edit, info, convert, fit_quantizer):
    app.command(_command.__name__.replace("_", "-"))(_command)
for _name, (_, _, _summary) in _HEAVY.items():
    app.command(_name, help=_summary)(lambda: None)  # takes the place in --help; resolve_command puts in the real one


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code; see :func:`losatok_ext.cli.main`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be valid text
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    options = ["--debug"] if debug else []
    arguments = options + [a for a in arguments[:end] if a != "--debug"] + arguments[end:]
    try:
        _check_output(arguments)
        code = get_command(app).main(args=arguments, prog_name="losatok", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except _ClickException as error:
        path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "losatok"
        message = " ".join(error.format_message().split())
        if message:  # it is empty for a group without a command, whose help was printed
            print(f"{path}: {printable(message.rstrip('.'))}; see {path} --help", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0]) if isinstance(error, ModuleNotFoundError) else None
        if extra is not None and isinstance(error, ModuleNotFoundError):
            error = UserError(f"this needs {error.name}, which is not installed: pip install 'losatok-ext[{extra}]'")
        if is_out_of_memory(error):
            first = " ".join(str(error).split()).partition(". ")[0][:200]
            error = UserError(
                f"memory is not enough ({first}); use shorter recordings or smaller batches, or a smaller model"
            )
        if debug:
            traceback.print_exc()
        elif _is_for_the_user(error):
            print(f"losatok: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        else:
            first = " ".join(str(error).split()).partition(". ")[0][:300]
            print(
                f"losatok: a defect: {type(error).__name__}: {printable(first)} (--debug shows where)", file=sys.stderr
            )
        return 2 if _is_for_the_user(error) else 1


def _check_output(arguments: list[str]) -> None:
    """Raise UserError where ``-o`` is given an empty name, which would otherwise stand for the current folder."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        if argument == "--":
            return
        if argument == "--output=" or (argument in ("-o", "--output") and following == ""):
            raise UserError("-o is empty; give the name of a file or folder, or . for the current folder")


def _is_for_the_user(error: Exception) -> bool:
    """Whether the message of ``error`` says all that the user needs."""
    dispatch = sys.modules.get("losatok_ext.ops.dispatch")  # only what was imported can have raised
    unavailable = (dispatch.BackendUnavailableError,) if dispatch is not None else ()
    return isinstance(error, (UserError, OSError, *unavailable))
