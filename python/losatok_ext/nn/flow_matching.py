"""Flow matching on straight paths between data and noise: a generator learns the velocity, and samplers integrate it.

Source: Lipman et al. 2023 (arXiv 2210.02747) and Liu et al. 2023 (rectified flow, arXiv 2209.03003). A point of the
path with *noise level* s in 0..1 is ``x = (1 - s) data + s noise``. Published models differ in what they call time and
in the sign of what they predict; :attr:`FlowMatching.direction` names both by what is predicted:

===================  =====================  ==============================  ====================================
direction            path                   t                               used by
===================  =====================  ==============================  ====================================
``"noise - data"``   (1-t) data + t noise   t = s: 0 is data, 1 is noise    UniFlow-Audio, Stable Diffusion 3
``"data - noise"``   (1-t) noise + t data   t = 1-s: 0 is noise, 1 is data  F5-TTS, Voicebox
===================  =====================  ==============================  ====================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from losatok_ext.configuration import Configuration, Positive, Range, Share
from losatok_ext.masks import keep_valid, valid_mask
from losatok_ext.nn.losses import masked_mean
from losatok_ext.nn.noise import normal, uniform

Direction = Literal["noise - data", "data - noise"]
TimeDistribution = Literal["uniform", "logit_normal", "mode", "cosmap"]
Fraction = Annotated[float, Range(above=0, most=1)]


def shift_noise_level(level: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards noise (shift > 1) or data (shift < 1): ``shift s / (1 + (shift - 1) s)``.

    Source: Esser et al. 2024 (arXiv 2403.03206, section 5.3.2). 0 and 1 stay where they are.
    """
    return shift * level / (1 + (shift - 1) * level)


@dataclass(frozen=True)
class FlowMatching(Configuration):
    """The path, the prediction and the training distribution of a flow-matching model.

    Time distributions are those of Esser et al. 2024 (arXiv 2403.03206, section 3.1). They are distributions of the
    noise level, so that the same options train the same model in either direction.

    Raises:
        ConfigError: a value out of its range.
    """

    direction: Direction = "noise - data"
    """What the model predicts. It also decides what t means (see the module)."""
    time: TimeDistribution = "logit_normal"
    """Distribution of the noise levels in training: ``uniform``; ``logit_normal``, whose logit is normal; ``mode``,
    heavy-tailed around the middle; ``cosmap``, the cosine schedule's."""
    time_mean: float = 0.0
    """``logit_normal``: mean of the logit; above 0 more steps have much noise."""
    time_std: Positive = 1.0
    """``logit_normal``: standard deviation of the logit."""
    mode_scale: Annotated[float, Range(-1, 2 / (math.pi - 2))] = 1.29
    """``mode``: above 0 favours the middle, below it the ends; within -1 .. 2 / (pi - 2)."""
    time_shift: Positive = 1.0
    """Moves noise levels towards noise (> 1); see :func:`shift_noise_level`."""

    def time_at(self, level: float) -> float:
        """The model's t at a noise level, or the noise level at a t: the map is its own inverse."""
        return level if self.direction == "noise - data" else 1.0 - level

    def draw_time(
        self, batch: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Tensor:
        """Times t [B] float32 of a training batch, by the convention of the direction. A GPU is not waited for."""
        if self.time == "logit_normal":
            level = torch.sigmoid(self.time_mean + self.time_std * normal((batch,), device=device, generator=generator))
        else:
            u = uniform((batch,), device=device, generator=generator)
            if self.time == "mode":
                level = 1 - u - self.mode_scale * ((math.pi / 2 * u).cos().square() - 1 + u)
            elif self.time == "cosmap":
                level = 1 - 1 / ((math.pi / 2 * u).tan() + 1)
            else:
                level = u
        level = shift_noise_level(level, self.time_shift)
        return level if self.direction == "noise - data" else 1 - level

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The points of the path at times ``t`` [B] between ``data`` and ``noise`` [B, T, d]."""
        ahead, behind = (noise, data) if self.direction == "noise - data" else (data, noise)
        weight = t.to(data.dtype).view(-1, *(1,) * (data.dim() - 1))
        return (1 - weight) * behind + weight * ahead

    def velocity(self, data: Tensor, noise: Tensor) -> Tensor:
        """dx/dt along the path, the target of the model."""
        return noise - data if self.direction == "noise - data" else data - noise

    def estimate(self, x: Tensor, velocity: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(data, noise): the ends of the straight path through ``x`` [B, T, d] at ``t`` ([B] or one number) with
        ``velocity``."""
        if isinstance(t, Tensor):
            t = t.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
        start, end = x - t * velocity, x + (1 - t) * velocity
        return (start, end) if self.direction == "noise - data" else (end, start)

    def loss(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        data: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean squared error of the predicted velocity, with a random time for each item and random noise.

        Args:
            model: maps (x [B, T, d], t [B]) to a velocity [B, T, d].
            data: [B, T, d] normalized latents; they take no gradient.
            lengths: [B] int64 tokens; values past a length, even NaN, are not read, and noise there is zero.
            mask: [B, T] bool, True at the tokens of which the loss is the mean (None: all below ``lengths``).
            generator: of times and noise.

        Returns:
            A float32 scalar, the mean over these tokens of the batch and over d; 0 if there are none.
        """
        data = keep_valid(data.detach(), lengths)
        t = self.draw_time(len(data), data.device, generator)
        noise = normal(data.shape, dtype=data.dtype, device=data.device, generator=generator)
        noise = keep_valid(noise, lengths)
        predicted = model(self.interpolate(data, noise, t), t)
        counted = mask
        if lengths is not None:
            inside = valid_mask(lengths.to(data.device), data.shape[1])
            counted = inside if mask is None else inside & mask
        error = predicted.float() - self.velocity(data, noise).float()
        if counted is None:
            return masked_mean(error.square().mean(-1), None)
        # Before the square: the prediction past a length may be NaN, and the gradient would be 0 * NaN.
        error = torch.where(counted[..., None], error, 0.0)
        return error.square().mean(-1).sum() / counted.sum().clamp(min=1)


@dataclass(frozen=True)
class ConditionDropout(Configuration):
    """How often training hides conditions from the model, so that it can be sampled with classifier-free guidance.

    Source: Ho and Salimans 2022 (arXiv 2207.12598). All conditions of an item are hidden with probability ``joint``,
    and each condition alone with its own probability.

    Raises:
        ConfigError: a probability outside 0..1.
    """

    joint: Share = 0.1
    """Probability that an item loses all conditions."""
    text: Share = 0.0
    """Probability that it loses its text."""
    aligned: Share = 0.0
    """Probability that it loses its time-aligned condition."""
    global_: Share = 0.0
    """Probability that it loses the condition of the whole clip."""

    def draw(
        self, batch: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """``{"joint", "text", "aligned", "global_"}``: [B] bool each; True hides all conditions of an item, or one.
        The draws are independent. A GPU is not waited for."""
        names = ("joint", "text", "aligned", "global_")
        u = uniform((len(names), batch), rows=1, device=device, generator=generator)
        return {name: row < getattr(self, name) for name, row in zip(names, u, strict=True)}


@dataclass(frozen=True)
class SpanMasking(Configuration):
    """Which tokens of a training clip are generated, and which are given as context. Generated are the whole clip, or
    spans of it (editing); a span may reach the end of the clip (continuation).

    Source: the infilling task of Voicebox (Le et al. 2023, arXiv 2306.15687).

    Raises:
        ConfigError: a value out of its range.
    """

    whole: Share = 0.5
    """Probability that nothing of a clip is given, and the whole clip is generated."""
    continuation: Share = 0.2
    """Of the other clips, the share whose first span reaches the end."""
    fraction: tuple[Fraction, Fraction] = (0.1, 0.7)
    """Length of a span relative to the clip, drawn uniformly between these."""
    spans: Annotated[int, Range(1, 1024)] = 2
    """Largest number of spans of a clip, which may overlap. The number is drawn uniformly from 1 up to it."""

    def _check_fit(self) -> None:
        low, high = self.fraction
        self._require(low <= high, "fraction", "two numbers, the smaller first")

    def draw(self, lengths: Tensor, time: int, generator: torch.Generator | None = None) -> Tensor:
        """[B, T] bool, True at the tokens to generate, for clips of ``lengths`` [B] in rows of ``time`` tokens.

        At least one token of a clip that is not empty is generated. A GPU is not waited for.
        """
        batch, device = len(lengths), lengths.device
        u = uniform((3, self.spans, batch), rows=2, device=device, generator=generator)
        choice = uniform((3, batch), rows=1, device=device, generator=generator)
        low, high = self.fraction
        size = ((low + (high - low) * u[0]) * lengths).ceil()
        start = (u[1] * (lengths - size + 1)).floor()
        at_end = choice[0] < self.continuation
        start[0] = torch.where(at_end, lengths - size[0], start[0])
        count = 1 + (choice[1] * self.spans).floor()
        used = torch.arange(self.spans, device=device)[:, None] < count
        position = torch.arange(time, device=device)
        inside = (position >= start[..., None]) & (position < (start + size)[..., None]) & used[..., None]
        masked = inside.any(0) | (choice[2] < self.whole)[:, None]
        return masked & valid_mask(lengths, time)
