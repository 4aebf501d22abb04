"""The values of a configuration's fields: what an annotation takes, and the sentence that says so."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from losatok_ext.errors import ConfigError

MAX_DEPTH = 32
"""Levels of mappings and lists within each other that a value may have."""
MAX_VALUES = 100_000
"""Numbers, words, lists and mappings that a value may hold together."""


class MisfitError(ConfigError):
    """A key or a value that does not fit.

    Args:
        path: dotted name of the key, relative to the configuration that refused it; empty: the configuration itself.
        problem: the rest of the sentence that begins with the path.
        names: keys that the sentence ends with, relative to the same configuration.
        guessed: these keys resemble the one that was written; False: they are all that there are.
    """

    def __init__(self, path: str, problem: str, names: Sequence[str] = (), guessed: bool = False) -> None:
        super().__init__(path, problem, names, guessed)
        self.path, self.problem, self.names, self.guessed = path, problem, tuple(names), guessed

    def under(self, name: str) -> MisfitError:
        """The same of the configuration that holds this one as its field ``name`` (or list that holds it at
        ``[i]``)."""
        return MisfitError(_join(name, self.path), self.problem, [_join(name, n) for n in self.names], self.guessed)

    def __str__(self) -> str:
        sentence = f"{self.path or 'the configuration'} {self.problem}"
        if not self.names:
            return sentence
        if self.guessed:
            return f"{sentence}; did you mean {' or '.join(self.names)}?"
        return f"{sentence}; the keys here are {', '.join(self.names)}"


def _join(name: str, path: str) -> str:
    return f"{name}.{path}" if path and not path.startswith("[") else name + path


@dataclass(frozen=True)
class Range:
    """Bounds of a number: ``Annotated[int, Range(1, 64)]``. ``least`` and ``most`` are allowed, ``above`` and ``below``
    are not."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies within the bounds."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"within {_digits(self.least)}..{_digits(self.most)}"
        words = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        return " and ".join(f"{word} {_digits(bound)}" for word, bound in words.items() if bound is not None)


def _digits(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:.6g}"


@dataclass(frozen=True)
class Multiple:
    """A whole number that ``of`` divides: ``Annotated[int, Multiple(2)]``."""

    of: int

    def holds(self, value: int) -> bool:
        """Whether ``of`` divides ``value``."""
        return value % self.of == 0

    def __str__(self) -> str:
        return "that is even" if self.of == 2 else f"that is a multiple of {self.of}"


@dataclass(frozen=True)
class Length:
    """Number of values in a list: ``Annotated[tuple[int, ...], Length(1, 64)]``."""

    least: int
    most: int

    def holds(self, value: Sequence[Any]) -> bool:
        """Whether ``value`` is neither too short nor too long."""
        return self.least <= len(value) <= self.most

    def __str__(self) -> str:
        return f"of {self.least} to {self.most} values"


Count = Annotated[int, Range(1, 2**31 - 1)]
"""A whole number of at least 1."""
Whole = Annotated[int, Range(0, 2**31 - 1)]
"""A whole number of at least 0."""
Positive = Annotated[float, Range(above=0)]
"""A finite number above 0."""
NonNegative = Annotated[float, Range(least=0)]
"""A finite number of at least 0."""
Share = Annotated[float, Range(0, 1)]
"""A number within 0..1: a share of something, or a probability."""


class _RefusedError(Exception):
    """The value is of another kind than the annotation, or against one of its rules."""


def convert(value: Any, annotation: Any) -> Any:
    """``value`` as a field of ``annotation`` holds it.

    Whole numbers pass for ``float``, lists for tuples, and mappings for configurations. ``bool`` is no number.

    Args:
        value: what was given.
        annotation: ``int``, ``float``, ``str``, ``bool``, ``Literal``, ``tuple``, ``dict``, a dataclass with
            ``from_dict``, ``Any`` (what JSON can hold), one of these ``| None``, or ``Annotated`` with rules.

    Raises:
        MisfitError: the value does not fit; its path is relative to the value.
    """
    try:
        return _convert(value, annotation)
    except _RefusedError:
        raise MisfitError("", f"should be {describe(annotation)}, got {show(value)}") from None


def _convert(value: Any, annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        converted = _convert(value, arguments[0])
        _require(all(rule.holds(converted) for rule in arguments[1:]))
        return converted
    if origin in (typing.Union, types.UnionType):
        (kind,) = (a for a in arguments if a is not type(None))
        return None if value is None else _convert(value, kind)
    if origin is Literal:
        _require(any(type(value) is type(choice) and value == choice for choice in arguments))
        return value
    if origin is tuple:
        return _tuple(value, arguments)
    if origin is dict:
        return _mapping(value, arguments[1])
    if dataclasses.is_dataclass(annotation):
        kind = typing.cast(Any, annotation)
        return value if isinstance(value, kind) else kind.from_dict(value)
    if annotation is Any:
        return plain(value)
    if annotation is float:
        return _number(value)
    _require(isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool)))
    return value


def _require(holds: bool) -> None:
    if not holds:
        raise _RefusedError


def _number(value: Any) -> float:
    _require(isinstance(value, int | float) and not isinstance(value, bool))
    try:
        number = float(value)
    except OverflowError:
        raise _RefusedError from None
    _require(math.isfinite(number))
    return number


def _tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    _require(isinstance(value, list | tuple))
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    _require(len(value) == len(kinds))
    return tuple(_at(f"[{i}]", item, kind) for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def _mapping(value: Any, kind: Any) -> dict[str, Any]:
    _require(isinstance(value, Mapping) and all(isinstance(key, str) for key in value))
    if kind is Any:
        return plain(value)  # counts the values of the whole mapping together
    return {key: _at(key, item, kind) for key, item in value.items()}


def _at(name: str, value: Any, annotation: Any) -> Any:
    try:
        return convert(value, annotation)
    except MisfitError as misfit:
        raise misfit.under(name) from None


def plain(value: Any) -> Any:
    """A copy of ``value`` of what JSON has: mappings, lists (for tuples too), text, numbers, booleans and None.

    Raises:
        MisfitError: it holds something else, more than :data:`MAX_VALUES` values, or more than :data:`MAX_DEPTH`
            levels, as a list that holds itself does.
    """
    count = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MAX_VALUES:
            raise MisfitError("", f"should hold at most {MAX_VALUES} values together, and holds more")
        if depth > MAX_DEPTH:
            raise MisfitError("", f"should have at most {MAX_DEPTH} levels of mappings and lists, and has more")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str | int) for key in value):
                raise MisfitError("", f"should have text for its keys, got {show(value)}")
            return {key: copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, depth + 1) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise MisfitError("", f"should hold text, numbers, true, false, null, lists and mappings, got {show(value)}")

    return copy(value, 1)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 12


def show(value: Any) -> str:
    """``value`` as an error names it: of bounded length, whatever it holds."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of very many digits"


_KINDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def describe(annotation: Any) -> str:
    """What ``annotation`` takes, in words: ``"a whole number within 1..64 or null"``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        kind, rules = arguments[0], " ".join(map(str, arguments[1:]))
        if typing.get_origin(kind) is tuple:
            return f"a list {rules}, each {describe(typing.get_args(kind)[0])}"
        return f"{'a number' if kind is float else describe(kind)} {rules}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe(a) for a in arguments)
    if origin is Literal:
        return f"{'one of ' if len(arguments) > 1 else ''}{', '.join(map(repr, arguments))}"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: " + ", ".join(map(describe, arguments))
    return _KINDS.get(annotation, "a mapping of keys to values")
