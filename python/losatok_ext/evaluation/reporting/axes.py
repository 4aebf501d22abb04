"""Axes of charts: round ticks, and the place of a value between two ends."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Axis:
    """Maps values to places between ``start`` and ``end`` (pixels; ``start`` may be the larger one).

    Args:
        values: that the axis has to hold, at least one; all above 0 if it is logarithmic.
        start: place of its lowest value.
        end: place of its highest value.
        log: logarithmic.

    Attributes:
        ticks: about five round values; those of a logarithmic axis lie within ``values``.
    """

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool = False) -> None:
        low, high = min(values), max(values)
        self.ticks = log_ticks(low, high) if log else linear_ticks(low, high)
        self._scale = math.log10 if log else float
        self._start, self._end = start, end
        self._low, self._high = self._scale(min(low, *self.ticks)), self._scale(max(high, *self.ticks))

    def __call__(self, value: float) -> float:
        """The place of ``value``."""
        share = (self._scale(value) - self._low) / max(self._high - self._low, 1e-12)
        return self._start + (self._end - self._start) * share


def linear_ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at or below ``low`` to at or above ``high``."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high`` (both above 0), with their 2 and 5 fold where there are fewer than two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) > 1:
            return ticks
    return [low, high] if high > low else [low]
