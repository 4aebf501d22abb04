"""Explicit Runge-Kutta methods, each given by its table of numbers, and one function that makes a step of any of them.

The higher-order method is the classical fourth-order one rather than a multi-step (Adams-Bashforth) or adaptive
(Dormand-Prince) one. A step does not depend on earlier steps, so guidance may begin and end within a run and a callback
may look at any step. Every item of a batch takes the same number of evaluations; with adaptive steps the most difficult
item of the batch would decide for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""(x [B, T, d], t) -> dx/dt [B, T, d]; t is one number for the whole batch."""
ModelVelocity = Callable[[Tensor, Tensor], Tensor]
"""The same for models: t is a float32 tensor [B]."""


def at_number(model: ModelVelocity) -> Velocity:
    """``model`` with a number as its time, as solvers call it."""
    return lambda x, t: model(x, x.new_full((len(x),), t, dtype=torch.float32))


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau: stage i evaluates at ``nodes[i]`` of the step, from the earlier stages by ``matrix[i]``."""

    order: int
    """The error of a run falls with the step size to this power."""
    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @property
    def evaluations(self) -> int:
        """Velocity evaluations per step."""
        return len(self.nodes)


SOLVERS = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "midpoint": Tableau(2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(
        4,
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}
"""Solvers by name. Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.1."""


def solver_step(solver: Tableau, velocity: Velocity, x: Tensor, t: float, end: float) -> tuple[Tensor, Tensor]:
    """One step from time ``t`` to ``end``: (x at ``end``, the velocity at ``t``)."""
    size = end - t
    stages: list[Tensor] = []
    for node, row in zip(solver.nodes, solver.matrix, strict=True):
        # At the end of a step exactly ``end``: t + size may be larger by rounding, and the last step ends at the data.
        time = end if node == 1.0 else t + node * size
        stages.append(velocity(_move(x, stages, row, size), time))
    return _move(x, stages, solver.weights, size), stages[0]


def _move(x: Tensor, stages: list[Tensor], weights: tuple[float, ...], size: float) -> Tensor:
    for stage, weight in zip(stages, weights, strict=True):
        if weight:
            x = x.add(stage, alpha=size * weight)
    return x
