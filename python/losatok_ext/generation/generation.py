"""Generating latents from text, and editing latents while chosen tokens are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from losatok_ext.errors import UserError
from losatok_ext.generation.edit_plan import EditPlan, plan_edit
from losatok_ext.generation.sampling import OnStep, SamplerConfig, integrate, item_noise, item_seeds, model_velocity
from losatok_ext.generation.solvers import Velocity
from losatok_ext.masks import keep_valid
from losatok_ext.models.generator.dit_conditions import Conditions
from losatok_ext.models.generator.generator import Generator


@dataclass(frozen=True)
class Edited:
    """The result of :func:`edit`.

    Attributes:
        latents: [S, T', d], one result per seed; kept tokens are bit for bit those of the clip.
        plan: which tokens were kept.
    """

    latents: Tensor
    plan: EditPlan


@torch.no_grad()
def generate(
    generator: Generator,
    lengths: Sequence[int],
    texts: Sequence[str] | None = None,
    config: SamplerConfig | None = None,
    seed: int | Sequence[int] = 0,
    global_: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Generate latents.

    An item depends only on its length, conditions and seed: it is the same alone and in any batch (to rounding).

    Args:
        generator: in eval mode.
        lengths: number of tokens of each item.
        texts: one for each item; ``""`` is no text.
        config: of the sampler; None: its defaults.
        seed: of the first item (the next items get the next numbers), or one for each.
        global_: [B, C_global], where the generator takes such conditions.
        on_step: called after every step; its ``x`` and ``data`` are normalised latents.

    Returns:
        [B, T, d] float32 on the generator's device, in the scale of the tokenizer. T is the longest of ``lengths``;
        tokens past an item's length are zero.

    Raises:
        UserError: a text is too long, the generator takes no text, or CUDA graphs cannot be used here.
        ValueError: a length is below 1, or there is not one text, seed or condition for each item.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths should hold at least 1 token for each item, got {list(lengths)}")
    time = max(lengths)
    noise = item_noise(item_seeds(seed, len(lengths)), lengths, generator.latent_dim, generator.device)
    ragged = None if min(lengths) == time else torch.tensor(list(lengths), device=generator.device)
    conditions = generator.conditions(len(lengths), time, texts, global_=global_)
    config = _unguided_without_conditions(generator, config or SamplerConfig())
    velocity = _velocity(generator, conditions, len(lengths), config, ragged)
    x = integrate(velocity, noise, generator.flow, config, on_step)
    return keep_valid(generator.dit.denormalise(x), ragged)


@torch.no_grad()
def edit(
    generator: Generator,
    latents: Tensor,
    spans: Iterable[Sequence[int]] = (),
    text: str = "",
    *,
    insertions: Iterable[Sequence[int]] = (),
    continue_to: int | None = None,
    config: SamplerConfig | None = None,
    seed: int | Sequence[int] = 0,
    fingerprint: str | None = None,
    global_: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Edited:
    """Generate chosen tokens of a clip anew, and keep all others.

    A generator with context gets the kept tokens, on both sides of every span, by its time-aligned condition, as in
    training. In addition, kept tokens move along the straight path from their noise to their data: at every step they
    are where they would be in training. A generator without context uses only this second method (RePaint without
    resampling; Lugmayr et al. 2022, arXiv 2201.09865).

    Args:
        generator: in eval mode.
        latents: [T, d] of the clip, in the scale of the tokenizer.
        spans: (start, stop) in tokens; see :func:`plan_edit`, also for the next two.
        text: for the complete edited clip; ``""`` is no text.
        insertions: (place, count) in tokens.
        continue_to: total number of tokens.
        config: of the sampler; None: its defaults.
        seed: a number, or several for several results.
        fingerprint: of the tokenizer that made the latents; another one than the generator's is refused.
        global_: [1, C_global], where the generator takes such conditions.
        on_step: called after every step; its ``x`` and ``data`` are normalised latents.

    Returns:
        The results and the plan.

    Raises:
        UserError: a span lies outside the clip, there is nothing to do, the latents are of another tokenizer or not
            finite, a text is too long or not taken, or CUDA graphs cannot be used here.
        ValueError: the latents have another shape.
    """
    if latents.dim() != 2 or latents.shape[1] != generator.latent_dim:
        raise ValueError(f"latents should have shape [T, d] with d = {generator.latent_dim}, got {list(latents.shape)}")
    if not torch.isfinite(latents).all():
        raise UserError("latents holds NaN or infinity; encode the recording again")
    if fingerprint is not None:
        generator.dit.check_tokenizer(fingerprint)
    plan = plan_edit(len(latents), spans, insertions, continue_to)
    seeds = item_seeds(seed, 1) if isinstance(seed, int) else list(seed)
    if not seeds:
        raise ValueError("seed should be a number, or at least one of them, got none")
    takes, time, device = len(seeds), len(plan.source), generator.device
    clip = plan.place(latents.float())
    known = clip.to(device).expand(takes, -1, -1)
    given = ~plan.generated.to(device).expand(takes, -1)
    noise = item_noise(seeds, [time] * takes, generator.latent_dim, device)
    conditions = generator.conditions(
        takes,
        time,
        [text] * takes,
        known if generator.context else None,
        given,
        None if global_ is None else global_.expand(takes, -1),
    )
    config = _unguided_without_conditions(generator, config or SamplerConfig())
    velocity = _velocity(generator, conditions, takes, config)
    along = generator.flow.velocity(generator.dit.normalise(known), noise)
    pinned = _pinned(velocity, along, given)
    x = generator.dit.denormalise(integrate(pinned, noise, generator.flow, config, on_step))
    kept = clip.to(latents.dtype)
    result = torch.where(given.cpu()[..., None], kept.cpu().expand(takes, -1, -1), x.cpu().to(latents.dtype))
    return Edited(result.to(latents.device), plan)


def _pinned(velocity: Velocity, along: Tensor, given: Tensor) -> Velocity:
    """``velocity`` where ``given`` is False; elsewhere the constant ``along``, which is a straight path."""
    return lambda x, t: torch.where(given[..., None], along, velocity(x, t))


def _unguided_without_conditions(generator: Generator, config: SamplerConfig) -> SamplerConfig:
    """Guidance needs a condition to follow; a generator that takes none is sampled as it is."""
    c = generator.dit.config
    if c.text_dim or c.aligned_dim or c.global_dim:
        return config
    return dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, scale=1.0))


def _velocity(
    generator: Generator, conditions: Conditions, batch: int, config: SamplerConfig, lengths: Tensor | None = None
) -> Velocity:
    twice = None if lengths is None else torch.cat([lengths, lengths])
    joint = None
    if config.guidance.scale != 1:
        both = conditions.guided(batch, generator.device)
        joint = lambda x, t: generator(x, t, both, twice)  # noqa: E731
    return model_velocity(
        lambda x, t: generator(x, t, conditions, lengths), joint, generator.flow, config, generator.device, lengths
    )
