"""A moving mean of the weights, which often evaluates better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from losatok_ext.training.engine.distributed import spread_like


def decay_at(updates: int, decay: float) -> float:
    """The decay of update ``updates`` (from 0): ``min(decay, (1 + n) / (10 + n))``, so that early means forget the
    weights that training began with."""
    return min(decay, (1 + updates) / (10 + updates))


class MovingAverage:
    """``mean <- d mean + (1 - d) weight`` after each step that was taken, d rising to ``decay`` as :func:`decay_at`.

    Args:
        parameters: to average, by name; the mean of a sharded one is sharded too.
        decay: below 1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.updates = 0
        self.means = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the mean."""
        weight = 1.0 - decay_at(self.updates, self.decay)
        torch._foreach_lerp_(list(self.means.values()), [p.detach() for p in self.parameters.values()], weight)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While open, the model's weights are the means."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            weight = parameter.detach().clone()
            parameter.copy_(self.means[name])
            self.means[name] = weight

    def restore(self, means: Mapping[str, Tensor], updates: int) -> None:
        """Set :attr:`means` and :attr:`updates` to those of a checkpoint."""
        self.means = {name: spread_like(means[name], p.detach()).clone() for name, p in self.parameters.items()}
        self.updates = updates
