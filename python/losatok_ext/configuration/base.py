"""The base of all configurations: a frozen dataclass that checks its fields, and goes to a mapping and back."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from losatok_ext.configuration.values import MisfitError, convert, show
from losatok_ext.errors import ConfigError

C = TypeVar("C", bound="Configuration")


@dataclass(frozen=True)
class Configuration:
    """Base of the frozen dataclasses that configure something.

    Each field takes what its annotation says (:func:`losatok_ext.configuration.values.convert`). Subclasses override
    ``_check_fit`` for what several fields have to fulfil together.

    Raises:
        ConfigError: a value that does not fit; the message has the field's name, what it takes, and the value.
    """

    def __post_init__(self) -> None:
        for name, annotation in field_kinds(type(self)).items():
            try:
                object.__setattr__(self, name, convert(getattr(self, name), annotation))
            except MisfitError as misfit:
                raise misfit.under(name) from None
        self._check_fit()

    def _check_fit(self) -> None:
        """Raise ConfigError (by ``_require``) where values do not fit together."""

    def _require(self, holds: bool, name: str, should: str) -> None:
        """Raise ConfigError, "``name`` should be ``should``, got" its value, unless ``holds``."""
        if not holds:
            raise MisfitError(name, f"should be {should}, got {show(export(getattr(self, name)))}")

    @classmethod
    def variants(cls) -> Mapping[str, type[Any]]:
        """The subclasses that the key ``kind`` of a mapping chooses from; empty: a mapping describes this class."""
        return {}

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any], source: str = "") -> C:
        """The configuration that ``values`` describe; fields that are left out take their defaults.

        Args:
            values: what :meth:`to_dict` gave, or part of it. Nested configurations are nested mappings.
            source: begins the error messages (the name of a file).

        Raises:
            ConfigError: an unknown key (with those that resemble it), or a value that does not fit.
        """
        try:
            return cls._from_dict(values)
        except MisfitError as misfit:
            if source:
                raise ConfigError(f"{source}: {misfit}") from None
            raise

    @classmethod
    def _from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        if not isinstance(values, Mapping):
            raise MisfitError("", f"should be a mapping of keys to values, got {show(values)}")
        chosen: type[C] = cls
        if variants := cls.variants():
            kind = values.get("kind")
            if not isinstance(kind, str) or kind not in variants:
                raise MisfitError("kind", f"should be one of {', '.join(map(repr, variants))}, got {show(kind)}")
            chosen, values = variants[kind], {key: value for key, value in values.items() if key != "kind"}
        known = field_kinds(chosen)
        for key in values:
            if key not in known:
                near = _resembling(str(key), chosen)
                raise MisfitError(str(key)[:100], "is not a key", near or list(known), guessed=bool(near))
        return chosen(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, of what JSON and YAML have; :meth:`from_dict` reads them back.

        Nested configurations are mappings, and tuples lists. Of several variants the key ``kind`` says which this is.
        """
        values = {name: export(getattr(self, name)) for name in field_kinds(type(self))}
        return {"kind": self.kind, **values} if self.variants() else values  # type: ignore[attr-defined]


def export(value: Any) -> Any:
    """``value`` of a configuration's field as :meth:`Configuration.to_dict` gives it."""
    if isinstance(value, Configuration):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: export(item) for key, item in value.items()}
    return [export(item) for item in value] if isinstance(value, list | tuple) else value


def field_kinds(cls: type[Configuration]) -> dict[str, Any]:
    """The annotation of each field of ``cls``, in order."""
    return _field_kinds(typing.cast(Any, cls))


@functools.cache
def _field_kinds(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _resembling(key: str, cls: type[Configuration]) -> list[str]:
    """Dotted names of keys of ``cls``, and of the configurations within it, that ``key`` resembles."""
    last = {name: name.rpartition(".")[2] for name in _keys(cls)}
    near = difflib.get_close_matches(key[:100], set(last.values()), n=3, cutoff=0.65)
    return [name for match in near for name in last if last[name] == match]


def _keys(cls: type[Configuration]) -> list[str]:
    names = []
    for name, annotation in field_kinds(cls).items():
        names.append(name)
        if isinstance(annotation, type) and issubclass(annotation, Configuration):
            names += [f"{name}.{below}" for below in _keys(annotation)]
    return names
