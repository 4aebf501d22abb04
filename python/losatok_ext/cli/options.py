"""Options that several commands share, written once: a dataclass whose fields become options of a command, and how
recordings are read."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from losatok_ext.audio.reading import MAX_MINUTES, reading
from losatok_ext.errors import DamagedAudioWarning
from losatok_ext.text import printable

Result = TypeVar("Result")


def with_shared_options(command: Callable[..., Result]) -> Callable[..., Result]:
    """``command`` with options in place of each parameter whose type is a dataclass.

    The fields of the dataclass, annotated as typer's options are, become keyword parameters. When the command is
    called, by typer or from Python, they are collected into an object of the dataclass.
    """
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    shared: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    annotations: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in shared:
            annotations[name] = hints[name]
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        kinds = get_type_hints(shared[name], include_extras=True)
        for field in dataclasses.fields(shared[name]):
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            annotations[field.name] = kinds[field.name]
            option = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default)
            parameters.append(option.replace(annotation=kinds[field.name]))

    @functools.wraps(command)
    def spread(*args: Any, **values: Any) -> Result:
        for name, kind in shared.items():
            names = [field.name for field in dataclasses.fields(kind) if field.name in values]
            values[name] = kind(**{field: values.pop(field) for field in names})
        return command(*args, **values)

    del spread.__wrapped__  # type: ignore[attr-defined]  # typer reads the signature below, not the command's
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = annotations
    return spread


_READING = {
    "max_minutes": (
        float,
        typer.Option("--max-minutes", help="Longer recordings are refused: decoded audio takes memory."),
        MAX_MINUTES,
    ),
    "strict": (
        bool,
        typer.Option("--strict", help="Refuse damaged recordings; otherwise what is left of them is used."),
        False,
    ),
}


def reads_recordings(command: Callable[..., Result]) -> Callable[..., Result]:
    """``command`` with ``--max-minutes`` and ``--strict``, which hold for every recording that is read while it runs.

    A damaged recording that is used is named in a line on stderr, once.
    """
    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        for name, (kind, option, default) in _READING.items()
    ]

    @functools.wraps(command)
    def run(*args: Any, max_minutes: float = MAX_MINUTES, strict: bool = False, **values: Any) -> Result:
        with reading(max_minutes, strict), _damage_on_stderr():
            return command(*args, **values)

    del run.__wrapped__  # type: ignore[attr-defined]  # typer reads the signature below, not the command's
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {name: p.annotation for name, p in run.__signature__.parameters.items()}  # type: ignore[attr-defined]
    return run


@contextmanager
def _damage_on_stderr() -> Iterator[None]:
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, DamagedAudioWarning):
                print(f"losatok: {printable(str(message))}", file=sys.stderr)
            else:
                show(message, category, *place)

        warnings.simplefilter("default", DamagedAudioWarning)
        warnings.showwarning = tell  # type: ignore[assignment]
        yield
