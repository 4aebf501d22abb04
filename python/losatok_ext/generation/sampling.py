"""From noise to latents: integrating a flow-matching model's velocity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from losatok_ext.configuration import Configuration, Range
from losatok_ext.generation.cuda_graphs import GraphedVelocity, require_cuda_graphs
from losatok_ext.generation.guidance import Guidance, guided_velocity
from losatok_ext.generation.schedules import Schedule
from losatok_ext.generation.solvers import SOLVERS, ModelVelocity, Velocity, at_number, solver_step
from losatok_ext.masks import keep_valid
from losatok_ext.nn.flow_matching import FlowMatching


@dataclass(frozen=True)
class SamplerConfig(Configuration):
    """How to sample. The defaults are the paper's: 20 Euler steps, guidance 3 (arXiv 2605.27840, training details).

    Raises:
        ConfigError: a value out of its range.
    """

    steps: Annotated[int, Range(1, 100_000)] = 20
    """Steps from noise to data."""
    solver: Literal["euler", "midpoint", "heun", "rk4"] = "euler"
    """``euler``, ``midpoint``, ``heun`` (two evaluations of the model per step) or ``rk4`` (four)."""
    schedule: Schedule = field(default_factory=Schedule)
    """Noise levels of the steps."""
    guidance: Guidance = field(default_factory=Guidance)
    """How strongly the conditions are followed."""
    cuda_graphs: bool = False
    """Record the model's evaluation once and replay it. Needs a CUDA device."""


@dataclass(frozen=True)
class SamplingStep:
    """What ``on_step`` receives after every step."""

    step: int
    """Steps done, this one included."""
    steps: int
    noise_level: float
    """Where ``x`` stands: 0 after the last step."""
    x: Tensor
    """[B, T, d], the state; not to be changed in place."""
    data: Tensor
    """[B, T, d]: the data that the step began to move towards, a preview of the result."""


OnStep = Callable[[SamplingStep], None]


def item_noise(seeds: Sequence[int], lengths: Sequence[int], dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Unit Gaussian noise [B, T, dim] float32 for items of ``lengths`` tokens, zeros past them.

    The noise of an item depends only on its seed and length: it is the same in any batch, at any position, on any
    device.

    Raises:
        ValueError: ``seeds`` and ``lengths`` differ in number, or a seed is outside -2^63 .. 2^64 - 1.
    """
    if len(seeds) != len(lengths):
        raise ValueError(f"seeds should have one entry per item, got {len(seeds)} for {len(lengths)} items")
    noise = torch.zeros(len(seeds), max(lengths, default=0), dim)
    for row, seed, length in zip(noise, seeds, lengths, strict=True):
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"a seed should lie within -2^63..2^64-1, got {seed}")
        row[:length] = torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))
    return noise.to(device)


def item_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed per item: ``seed`` and those that follow it, or ``seed`` itself where it is a sequence.

    Raises:
        ValueError: a sequence of another length than ``count``.
    """
    if isinstance(seed, int):
        return [seed + i for i in range(count)]
    if len(seed) != count:
        raise ValueError(f"seed should be one number or {count} of them, got {len(seed)}")
    return list(seed)


@torch.no_grad()
def integrate(
    velocity: Velocity,
    noise: Tensor,
    flow: FlowMatching,
    config: SamplerConfig | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Follow ``velocity`` from ``noise`` to data.

    Args:
        velocity: maps (x [B, T, d], t) to dx/dt; t as ``flow.direction`` defines it.
        noise: [B, T, d], the state at noise level 1. It is kept in its dtype from step to step.
        flow: the direction of the model.
        config: steps, solver and schedule; guidance is part of the velocity (:func:`model_velocity`).
        on_step: called after every step.

    Returns:
        [B, T, d], the state at noise level 0.
    """
    config = config or SamplerConfig()
    solver, levels = SOLVERS[config.solver], config.schedule.noise_levels(config.steps)
    x = noise
    for step, (level, following) in enumerate(pairwise(levels), start=1):
        t, end = flow.time_at(level), flow.time_at(following)
        before = x
        x, slope = solver_step(solver, velocity, before, t, end)
        if on_step is not None:
            data, _ = flow.estimate(before, slope, t)
            on_step(SamplingStep(step, config.steps, following, x, data))
    return x


def model_velocity(
    conditional: ModelVelocity,
    joint: ModelVelocity | None,
    flow: FlowMatching,
    config: SamplerConfig,
    device: torch.device,
    lengths: Tensor | None = None,
) -> Velocity:
    """The velocity of a model with conditions for :func:`integrate`: guided, and recorded as CUDA graphs when asked.

    Args:
        conditional: the model with its conditions, on [B, T, d].
        joint: the same on [2B, T, d] with conditions in the first half and none in the second; None for a model
            without conditions, where guidance has nothing to act on.
        flow: the direction of the model.
        config: guidance and CUDA graphs.
        device: where the model is.
        lengths: [B], number of tokens of each item; the velocity past them is zero.

    Raises:
        UserError: CUDA graphs are asked for and ``device`` is not a CUDA device.
    """
    if config.cuda_graphs:
        require_cuda_graphs(device)
        conditional = GraphedVelocity(conditional)
        joint = None if joint is None else GraphedVelocity(joint)
    plain = at_number(conditional)
    guided = plain
    if joint is not None:
        guided = guided_velocity(plain, at_number(joint), config.guidance, flow.time_at, lengths)
    return lambda x, t: keep_valid(guided(x, t), lengths)
