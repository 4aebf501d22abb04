"""What is known of a configuration's key: its type, its default, and the text that stands under the field."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from losatok_ext.configuration.base import Configuration, field_kinds


@dataclass(frozen=True)
class Setting:
    """One key of a configuration."""

    key: str
    """Its name, with dots before those of nested configurations."""
    kind: Any
    """``int``, ``float``, ``str``, ``bool``, or a ``Literal``: the annotation without rules and without ``| None``."""
    default: Any
    """What it is where nothing is given."""
    text: str
    """Its documentation, without markup."""

    @property
    def summary(self) -> str:
        """The first sentence of the documentation."""
        return re.split(r"(?<=\.)\s", self.text, maxsplit=1)[0]


def setting(cls: type[Configuration], key: str) -> Setting:
    """The key ``key`` (``"optimizer.lr"``) of ``cls``.

    Raises:
        KeyError: there is no such key.
    """
    name, _, rest = key.partition(".")
    annotation = field_kinds(cls)[name]
    if rest:
        return dataclasses.replace(setting(annotation, rest), key=key)
    return Setting(key, _bare(annotation), getattr(cls(), name), _documentation(typing.cast(Any, cls)).get(name, ""))


def _bare(annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _bare(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _bare(next(a for a in arguments if a is not type(None)))
    return annotation


@functools.cache
def _documentation(cls: Any) -> dict[str, str]:
    """The strings under the fields of ``cls``, which Python itself does not keep; empty where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except OSError:  # an installation of compiled files only: options then have no help line
        return {}
    (definition,) = ast.parse(source).body
    texts = {}
    body = typing.cast(ast.ClassDef, definition).body
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[typing.cast(ast.Name, field.target).id] = _plain_text(str(below.value.value))
    return texts


def _plain_text(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]+)`", r"\1", text)
    return " ".join(text.replace("``", "").split())
