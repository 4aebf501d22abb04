"""Random numbers for a part of a batch, the same as in the whole batch.

Gradient accumulation and training by several processes cut a batch into parts. Inside :func:`rows_of` each part draws
the numbers that the whole batch would draw for these rows, so that training does not depend on how the batch was cut.
Elsewhere, and in compiled graphs, these functions are ``torch.randn``, ``torch.rand`` and ``torch.randint``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Rows:
    first: int
    size: int
    total: int
    seed: int
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)

    def generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]


_rows: ContextVar[_Rows | None] = ContextVar("rows", default=None)


@contextmanager
def rows_of(first: int, size: int, total: int, seed: int) -> Iterator[None]:
    """Draw the numbers of rows ``first`` to ``first + size - 1`` of a batch of ``total`` rows.

    Args:
        first: first row of the part, from 0.
        size: rows of the part.
        total: rows of the whole batch.
        seed: the same for all parts of the batch.
    """
    token = _rows.set(_Rows(first, size, total, seed))
    try:
        yield
    finally:
        _rows.reset(token)


@contextmanager
def whole_batch() -> Iterator[slice]:
    """Draw for all rows of the batch. Yields the rows of this part (all rows, outside of :func:`rows_of`)."""
    part = _rows.get()
    if part is None:
        yield slice(None)
        return
    token = _rows.set(_Rows(0, part.total, part.total, part.seed, part.generators))
    try:
        yield slice(part.first, part.first + part.size)
    finally:
        _rows.reset(token)


def normal(
    shape: Sequence[int],
    *,
    rows: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Standard normal numbers of ``shape``.

    Args:
        shape: of the result.
        rows: its dimension that is the batch.
        dtype: of the result.
        device: of the result.
        generator: if given, the numbers are drawn from it, and the rest of the batch plays no role.
    """
    return _draw(
        lambda size, **source: torch.randn(size, dtype=dtype, device=device, **source),
        shape,
        rows,
        device,
        generator,
    )


def uniform(
    shape: Sequence[int],
    *,
    rows: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Numbers that are uniform in [0, 1); for the arguments see :func:`normal`."""
    return _draw(
        lambda size, **source: torch.rand(size, dtype=dtype, device=device, **source),
        shape,
        rows,
        device,
        generator,
    )


def integers(low: int, high: int, shape: Sequence[int], *, rows: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Uniform int64 numbers from ``low`` to ``high - 1``; for the other arguments see :func:`normal`."""
    return _draw(
        lambda size, **source: torch.randint(low, high, size, device=device, **source), shape, rows, device, None
    )


def _draw(
    make: Callable[..., Tensor],
    shape: Sequence[int],
    rows: int,
    device: torch.device | str,
    generator: torch.Generator | None,
) -> Tensor:
    # Compiled graphs cannot read the context variable; they draw from torch's global generator.
    part = None if torch.compiler.is_compiling() else _rows.get()
    size = list(shape)
    if generator is not None:
        return make(size, generator=generator)
    if part is None:
        return make(size)  # without the argument: with it a compiled randint takes no size that varies
    if size[rows] != part.size:
        raise ValueError(
            f"dimension {rows} of the numbers should be the {part.size} rows of this part of the batch, got {size}"
        )
    size[rows] = part.total
    return make(size, generator=part.generator(torch.device(device))).narrow(rows, part.first, part.size)
