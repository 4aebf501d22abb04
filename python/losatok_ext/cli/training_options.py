"""Command-line options that set keys of a training configuration. Type, default and help line are the key's own."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from losatok_ext.configuration import merge, setting
from losatok_ext.training import TrainConfig

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help='Folder of audio files (searched through), JSONL manifest of {"path": ...} lines, or shards (.tar).',
        show_default=False,
    ),
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of configuration keys.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="KEY=VALUE, such as optimizer.lr=1e-3 or data.crop_seconds=2; may be given more than once.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class ConfigOption:
    """An option that sets one key of :class:`TrainConfig`."""

    key: str
    """Such as ``optimizer.lr``."""
    flags: tuple[str, ...] = ()
    """How it is written; empty: two dashes and the last part of the key."""
    unset: str = ""
    """What ``--help`` shows as the default where the key's default is null."""
    help: str = ""
    """The help line; empty: the first sentence of the key's documentation."""
    envvar: str | None = None
    """Environment variable that sets it too."""
    read: Callable[[Any], dict[str, Any]] | None = None
    """Nested keys and values that the option's value stands for; None: the value of the key."""

    @property
    def name(self) -> str:
        """Name of the command's parameter."""
        return self._flags[0].partition("/")[0].lstrip("-").replace("-", "_")

    @property
    def _flags(self) -> tuple[str, ...]:
        if self.flags:
            return self.flags
        flag = self.key.rpartition(".")[2].replace("_", "-")
        boolean = setting(TrainConfig, self.key).kind is bool
        return (f"--{flag}/--no-{flag}",) if boolean else (f"--{flag}",)

    def parameter(self) -> inspect.Parameter:
        """The parameter that Typer makes the option of; None where it was not given."""
        key = setting(TrainConfig, self.key)
        choices = typing.get_args(key.kind) if typing.get_origin(key.kind) is Literal else ()
        default = self.unset if key.default is None else str(key.default)
        if isinstance(key.default, bool):
            default = "yes" if key.default else "no"
        option = typer.Option(
            *self._flags,
            help=self.help or key.summary,
            show_default=default or False,
            envvar=self.envvar,
            metavar="|".join(choices) or None,
        )
        kind: Any = str if choices else key.kind
        annotation = Annotated[kind | None, option]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def values(self, value: Any) -> dict[str, Any]:
        """Nested keys and values of a configuration that ``value`` stands for."""
        if self.read is not None:
            return self.read(value)
        for part in reversed(self.key.split(".")):
            value = {part: value}
        return value


def configured(*options: ConfigOption) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command ``(data, output, config)``: its configuration comes from ``--config``, ``options``, ``--set``.

    The decorated function has the signature that Typer reads: the command's own parameters but ``config``, then those.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(config: Path | None, assignments: list[str] | None, **given: Any) -> None:
            values: dict[str, Any] = {}
            for option in options:
                if (value := given.pop(option.name)) is not None:
                    values = merge(values, option.values(value))
            command(config=TrainConfig.load(config, values, assignments or []), **given)

        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "config"]
        for name, annotation in (("config", Config), ("assignments", Set)):
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
        parameters += [option.parameter() for option in options]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
