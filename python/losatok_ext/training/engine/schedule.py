"""The learning rate as a function of the step, without a state to save."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int, final: float = 0.0) -> float:
    """Learning rate of step ``step`` (from 0): a linear warm-up to ``peak``, then half a cosine down to ``final``.

    The first step takes ``peak / (warmup_steps + 1)``, never zero. The warm-up lasts at most a tenth of the run, so
    that a short run with the default warm-up still reaches the peak. ``final`` is reached in the step after the last
    one.

    Args:
        steps: length of the whole run.
        warmup_steps: steps before the peak.
        final: learning rate at the end of the cosine.
    """
    warmup = min(warmup_steps, steps // 10)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
