"""Figures and labels as text: fixed decimals, three digits, means with their spread."""

from __future__ import annotations

from collections.abc import Iterable

MISSING = "–"
"""What a table shows where there is no figure."""


def fixed(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` decimals; :data:`MISSING` for None."""
    return MISSING if value is None else f"{value:.{digits}f}"


def three_digits(value: float | None) -> str:
    """``value`` with three significant digits, from 1000 on without decimals; :data:`MISSING` for None."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_spread(mean: float | None, spread: float | None, digits: int = 3) -> str:
    """``mean ± spread``, the mean alone where there is no spread, or :data:`MISSING`."""
    return fixed(mean, digits) + ("" if mean is None or spread is None else f" ± {spread:.{digits}f}")


def shorten(text: str, characters: int = 22) -> str:
    """``text``, cut to ``characters`` with an ellipsis at its end if it is longer."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def mean_and_spread(values: Iterable[float | None]) -> tuple[float | None, float | None, int]:
    """(mean, sample standard deviation, count) of the values that are not None.

    The mean is None without values, the standard deviation with fewer than two.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None, None, 0
    mean = sum(known) / len(known)
    if len(known) < 2:
        return mean, None, 1
    return mean, (sum((value - mean) ** 2 for value in known) / (len(known) - 1)) ** 0.5, len(known)
