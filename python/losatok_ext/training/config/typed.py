"""Typed configurations: a mapping becomes dataclasses, and every key or value that does not fit is named."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from losatok_ext.errors import ConfigError

T = TypeVar("T")


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def build(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Make the dataclass ``cls`` of ``values``; nested dataclasses of nested mappings. Keys that are absent keep their
    defaults.

    Args:
        source: where the values come from (a file name, ``--set``), to begin messages with.

    Raises:
        ConfigError: an unknown key (with the nearest known ones), a value of the wrong kind, or one that ``cls``
            refuses.
    """
    return _construct(cls, fit(cls, values, source), source)


def fit(cls: type, values: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """``values`` as the dataclass ``cls`` wants them, still as nested mappings: keys and kinds are checked, ranges are
    not.

    Args:
        prefix: dotted name of the group that ``values`` stands for, with its final dot.

    Raises:
        ConfigError: an unknown key (with the nearest known ones) or a value of the wrong kind.
    """
    if not isinstance(values, Mapping):
        group = prefix.rstrip(".") or "the configuration"
        raise ConfigError(f"{source}: {group} should be a mapping of keys to values, got {_show(values)}")
    hints = typing.get_type_hints(cls)
    fitted = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{source}: {prefix}{key} is not a key; {_suggest(str(key), cls, prefix)}")
        fitted[key] = _convert(value, hints[key], prefix + key, source)
    return fitted


def _construct(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    hints = typing.get_type_hints(cls)
    arguments = {
        key: _construct(hints[key], value, source) if dataclasses.is_dataclass(hints[key]) else value
        for key, value in values.items()
    }
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _suggest(key: str, cls: type, prefix: str) -> str:
    known = _keys(cls, prefix)
    last = {name: name.rpartition(".")[2] for name in known}
    near = difflib.get_close_matches(key, set(last.values()), n=3, cutoff=0.65)
    if near:
        return "did you mean " + " or ".join(name for match in near for name in known if last[name] == match) + "?"
    here = typing.get_type_hints(cls)
    return f"the keys here are {', '.join(prefix + name for name in here)}"


def _keys(cls: type, prefix: str) -> list[str]:
    """Dotted names of all keys of ``cls`` and of the groups in it."""
    names = []
    for name, annotation in typing.get_type_hints(cls).items():
        names.append(prefix + name)
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            names += _keys(annotation, f"{prefix}{name}.")
    return names


def _show(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"


def _convert(value: Any, annotation: Any, key: str, source: str) -> Any:
    """``value`` as ``annotation`` wants it; lists pass for tuples, integers and text (YAML's 1e-4) for floats."""
    problem = ConfigError(f"{source}: {key} should be {_describe(annotation)}, got {_show(value)}")
    if dataclasses.is_dataclass(annotation):
        return fit(annotation, value, source, prefix=f"{key}.")  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = [a for a in arguments if a is not type(None)]
        try:
            return _convert(value, inner, key, source)
        except ConfigError:
            raise problem from None
    if origin is typing.Literal:
        if value not in arguments:
            raise problem
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise problem
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(value) != len(arguments):
            raise problem
        return tuple(
            _convert(v, a, f"{key}[{i}]", source) for i, (v, a) in enumerate(zip(value, arguments, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise problem
        return dict(value)
    if annotation is float:
        return _float(value, problem)
    if (annotation is int and isinstance(value, bool)) or not isinstance(value, annotation):
        raise problem
    return value


def _float(value: Any, problem: ConfigError) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise problem
    try:
        number = float(value)
    except ValueError:
        raise problem from None
    if not math.isfinite(number):
        raise problem
    return number


def _describe(annotation: Any) -> str:
    names = {float: "a finite number", int: "an integer", str: "text", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _describe(a) for a in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {_describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: " + ", ".join(_describe(a) for a in arguments)
    return "a mapping of keys to values"


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError("reading YAML needs PyYAML, which is not installed; pip install 'losatok-ext[cli]'") from None
    return yaml


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file ``path``; an empty file is an empty mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds something other than a mapping.
    """
    yaml = _yaml()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the file should hold keys and values such as 'steps: 1000', got {_show(values)}")
    return values


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["a.b=c", ...]`` as nested mappings; values are read as YAML (numbers, true, null, lists, else text).

    Raises:
        ConfigError: an assignment without ``=`` or key, a value that is not YAML, or a key that is both a group
            and a value.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set takes KEY=VALUE such as optimizer.lr=1e-3, got {assignment!r}")
        yaml = _yaml()
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(
                f"--set {assignment}: the value cannot be read; put text with special characters in quotes"
            ) from None
        group = values
        for part in parts[:-1]:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise ConfigError(f"--set {assignment}: {part} was set to a value before, and is no group of keys")
        group[parts[-1]] = value
    return values


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over`` replacing its own; mappings on both sides are merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
