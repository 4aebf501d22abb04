"""What the configurations of all models share: presets, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from losatok_ext.errors import ConfigError

C = TypeVar("C", bound="StoredConfig")


class StoredConfig:
    """Base of the frozen dataclasses that configure a model."""

    @classmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """The fields that differ from the defaults, by name of the preset."""
        raise NotImplementedError

    @classmethod
    def preset(cls: type[C], name: str, **overrides: Any) -> C:
        """A configuration by name.

        Args:
            name: one of :meth:`presets`.
            overrides: fields to change.

        Raises:
            ConfigError: no such preset or field, or a value that does not fit.
        """
        presets = cls.presets()
        if name not in presets:
            raise ConfigError(f"there is no preset {name!r}; it is one of {', '.join(presets)}")
        return cls.from_dict({**presets[name], **overrides})

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """The configuration of ``values`` (what :meth:`to_dict` gave; fields left out take their defaults).

        Raises:
            ConfigError: an unknown key, or a value that does not fit.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"a model configuration should be a mapping of names to values, got {type(values).__name__}"
            )
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        unknown = [str(key) for key in values if key not in known]
        if unknown:
            raise ConfigError(f"unknown key {unknown[0]!r} in the model configuration; known are {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as JSON has them (lists for tuples)."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
