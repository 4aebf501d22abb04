"""Explicit Runge-Kutta methods, each a table of numbers, and the one step that serves all of them.

The higher-order method is the classical fourth-order one rather than a multi-step (Adams-Bashforth) or adaptive
(Dormand-Prince) one: a step depends on nothing before it, so guidance may begin and end within a run and a callback may
look at any step, and every item of a batch takes the same number of evaluations, which an adaptive step would tie to
the batch's hardest item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""(x [B, T, d], t) -> dx/dt [B, T, d]; t is one number for the whole batch."""
ModelVelocity = Callable[[Tensor, Tensor], Tensor]
"""The same as models have it: t is a float32 tensor [B]."""


def at_number(model: ModelVelocity) -> Velocity:
    """``model`` as solvers call it."""
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
    """One step from time ``t`` to ``end``: (x there, the velocity at its beginning)."""
    size = end - t
    stages: list[Tensor] = []
    for node, row in zip(solver.nodes, solver.matrix, strict=True):
        # At the end of a step exactly its end: t + size may round past it, and the last step ends where data is.
        time = end if node == 1.0 else t + node * size
        stages.append(velocity(_move(x, stages, row, size), time))
    return _move(x, stages, solver.weights, size), stages[0]


def _move(x: Tensor, stages: list[Tensor], weights: tuple[float, ...], size: float) -> Tensor:
    for stage, weight in zip(stages, weights, strict=True):
        if weight:
            x = x.add(stage, alpha=size * weight)
    return x
