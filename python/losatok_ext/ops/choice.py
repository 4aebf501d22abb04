"""The implementation that the caller chose with :class:`use_backend`.

The choice is kept in a ``ContextVar``, so that it belongs to one thread or asyncio task. ``torch.compile`` cannot trace
a ``ContextVar``, but it can read an attribute of a module: it takes the value that the attribute has while it traces,
and adds a guard that reads the attribute again before each later call. ``choice.current`` is such an attribute. This
module's ``__getattr__`` computes it, so the guard sees the choice of the thread and task that makes the call.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar, Token

import torch

from losatok_ext.errors import UserError

BACKENDS = ("reference", "native", "triton")

_chosen: ContextVar[str | None] = ContextVar("losatok_backend", default=None)


class _Traced(threading.local):
    """The choice made by a ``with use_backend(...)`` inside code that ``torch.compile`` is tracing right now."""

    def __init__(self) -> None:
        self.name: str | None = None


traced = _Traced()


def __getattr__(name: str) -> str | None:
    if name == "current":
        return _chosen.get()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def check_name(name: str, source: str) -> str:
    """Return ``name`` if it is one of :data:`BACKENDS`; ``source`` says in the message where it comes from.

    Raises:
        UserError: it is not.
    """
    if name not in BACKENDS:
        raise UserError(f"{source} is {name!r}; it takes one of {', '.join(map(repr, BACKENDS))}")
    return name


class use_backend:  # noqa: N801 - reads as a statement: with use_backend("triton"):
    """Run ops by the implementation ``name`` (``"reference"``, ``"native"`` or ``"triton"``) inside a ``with`` block.

    The choice is local to the context (thread or asyncio task) and may be nested. A function compiled by
    ``torch.compile`` is compiled once for each choice that it is called under. The block may also stand inside a
    compiled function.

    Raises:
        ValueError: ``name`` is none of the three.
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name, "use_backend(name)")
        self._token: Token[str | None] | None = None
        self._previous: str | None = None

    def __enter__(self) -> use_backend:
        if torch.compiler.is_dynamo_compiling():
            self._previous = traced.name
            traced.name = self.name
        else:
            self._token = _chosen.set(self.name)
        return self

    def __exit__(self, *exception: object) -> None:
        if torch.compiler.is_dynamo_compiling():
            traced.name = self._previous
        elif self._token is not None:
            _chosen.reset(self._token)
