"""Typed configurations of modules and models: frozen dataclasses whose fields check themselves."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from losatok_ext.errors import ConfigError


def require(holds: bool, name: str, should: str, value: object) -> None:
    """Raise ConfigError, ``name`` should be ``should``, unless ``holds``."""
    if not holds:
        raise ConfigError(f"{name} should be {should}, got {value!r}")


def check_kinds(config: Any) -> None:
    """Raise ConfigError unless each field of the dataclass ``config`` is of its kind.

    An ``int`` is a whole number of at least 0, a ``float`` a finite number of at least 0 (whole numbers become one), a
    ``Literal`` one of its words, and ``| None`` also takes None.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value, kind = field.name, getattr(config, field.name), hints[field.name]
        other = ""
        if type(None) in typing.get_args(kind):
            if value is None:
                continue
            kind, other = next(k for k in typing.get_args(kind) if k is not type(None)), " or None"
        if typing.get_origin(kind) is typing.Literal:
            words = typing.get_args(kind)
            require(type(value) is str and value in words, name, f"one of {', '.join(map(repr, words))}{other}", value)
        elif kind is float:
            number = type(value) in (int, float) and math.isfinite(value) and value >= 0
            require(number, name, f"a number of at least 0{other}", value)
            object.__setattr__(config, name, float(value))
        elif kind is int:
            require(type(value) is int and value >= 0, name, f"a whole number of at least 0{other}", value)
        else:
            should = {bool: "True or False", str: "a word"}[kind]
            require(type(value) is kind, name, f"{should}{other}", value)
