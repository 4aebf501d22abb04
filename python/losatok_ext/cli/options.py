"""Options that several commands share, written once: a dataclass whose fields become options of a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

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
