"""What the configurations of all models share: presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from losatok_ext.configuration import Configuration
from losatok_ext.errors import ConfigError

C = TypeVar("C", bound="StoredConfig")


@dataclass(frozen=True)
class StoredConfig(Configuration):
    """Base of the configurations that are stored with a model."""

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
