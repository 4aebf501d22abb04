"""Configurations from several places, of which later ones win."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from losatok_ext.configuration.base import Configuration
from losatok_ext.configuration.values import MisfitError
from losatok_ext.errors import ConfigError

C = TypeVar("C", bound=Configuration)


def from_layers(cls: type[C], base: Mapping[str, Any], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> C:
    """The configuration of ``base`` and ``layers`` together; of a key that stands in several, the last one counts.

    Args:
        cls: what to make.
        base: values to begin with.
        layers: (source, values): a name for error messages, and nested mappings.

    Raises:
        ConfigError: a key or value that does not fit; the message begins with the source of the key.
    """
    values: Mapping[str, Any] = base
    for _, layer in layers:
        values = merge(values, layer)
    try:
        return cls.from_dict(values)
    except MisfitError as misfit:
        raise ConfigError(f"{_source(misfit.path, layers)}: {misfit}") from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over`` replacing its own.

    Mappings on both sides are merged key by key, unless ``kind`` differs: the keys of another kind mean something else.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, below.get("kind")):
            value = merge(below, value)
        merged[key] = value
    return merged


def _source(path: str, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The last of ``layers`` that has the key ``path``, else the nearest group around it; else the last one."""
    parts = re.sub(r"\[\d+\]", "", path).split(".")
    for length in range(len(parts), 0, -1):
        for source, layer in reversed(layers):
            if _holds(layer, parts[:length]):
                return source
    filled = [source for source, layer in layers if layer]
    return filled[-1] if filled else "config"


def _holds(values: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
