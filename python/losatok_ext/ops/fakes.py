"""Fake (meta) implementations of the raw ops: one function for each, registered for every backend that has the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from losatok_ext import _native

_Function = TypeVar("_Function", bound=Callable[..., Any])

FAKES: dict[str, Callable[..., Any]] = {}
"""The fake implementation of each raw op, by its name without namespace; ``losatok_ext.ops.<family>`` adds its own."""


def fake(name: str) -> Callable[[_Function], _Function]:
    """Decorator: the function is the fake implementation of the raw op ``name``, native now and Triton later."""

    def register(function: _Function) -> _Function:
        FAKES[name] = function
        if _native.module is not None:
            torch.library.register_fake(f"losatok::{name}", function)
        return function

    return register


def register_triton_fake(name: str) -> None:
    """Give ``torch.ops.losatok_triton.<name>``, once it is defined, the fake implementation of its family."""
    torch.library.register_fake(f"losatok_triton::{name}", FAKES[name])
