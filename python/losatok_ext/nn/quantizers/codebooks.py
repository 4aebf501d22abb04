"""Codebooks that learn from the rows that choose them: moving means, k-means at the start, dead codes replaced."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext.nn.quantizers.config import VQConfig
from losatok_ext.nn.quantizers.kmeans import count_and_sum, kmeans
from losatok_ext.nn.quantizers.pool import Frames, agreed, only_first, pooled, processes, spread
from losatok_ext.nn.quantizers.tables import CodeTables


class Codebooks(CodeTables):
    """S codebooks of K codes, and how often each code is used; see :class:`CodeTables` for their dtype.

    Args:
        config: of the codebooks.
        stages: S.
        dim: d, features of a code.

    Attributes:
        codes: [S, K, d]; a parameter if learned, else a buffer.
        usage: [S, K], moving means of the frames per step that chose each code.
        sums: [S, K, d], moving sums of these frames; None if learned.
        started: [] int64, 1 once k-means has run, or if it will not run.
    """

    codes: Tensor
    usage: Tensor
    sums: Tensor | None
    started: Tensor

    def __init__(self, config: VQConfig, stages: int, dim: int) -> None:
        super().__init__()
        self.config = config
        self.cosine = config.cosine
        codes = torch.randn(stages, config.codebook_size, dim) / dim**0.5
        if config.cosine:
            codes = F.normalize(codes, dim=-1)
        if config.codebook == "learned":
            self.codes = nn.Parameter(codes)
            self.register_buffer("sums", None)
        else:
            self.register_buffer("codes", codes)
            self.register_buffer("sums", codes.clone())
        self.register_buffer("usage", torch.ones(stages, config.codebook_size))
        self.register_buffer("started", torch.tensor(int(not config.kmeans)))
        self._started = not config.kmeans  # a copy on the host, for decisions without waiting for the device

    @property
    def learned(self) -> bool:
        """Whether the codes are a parameter."""
        return self.config.codebook == "learned"

    @property
    def ready(self) -> bool:
        """Whether the codes have their starting values: from k-means, at random, or from a checkpoint."""
        return self._started

    def table(self, stage: int) -> Tensor:
        """The codes of a stage [K, d], of length 1 with the option ``cosine``; with their gradient if learned."""
        codes = self.codes[stage]
        if self.config.cosine and self.sums is None:
            # A copy: the parameter changes (start, replaced codes) before the backward pass reads its old value.
            return F.normalize(codes.clone(), dim=-1)
        return codes

    def tables(self, stages: int) -> Tensor:
        """The codes of all stages [stages, K, d], with a shared codebook repeated; without gradient."""
        codes = self.codes.detach()
        if self.config.cosine and self.sums is None:
            codes = F.normalize(codes, dim=-1)
        return codes.expand(stages, -1, -1)

    @torch.no_grad()
    def start(self, stage: int, frames: Frames) -> bool:
        """Set the codes of a stage by k-means of the ``frames`` of all processes; False if there are no frames."""
        config = self.config
        shares = pooled(frames.shares(self.codes.dtype))[0].to(torch.int64)
        total = shares.sum()
        # With several processes the largest possible size, as the host does not know the sizes of the others.
        size = frames.x.shape[0] * frames.x.shape[1]
        size = min(size, config.kmeans_rows) if processes()[1] == 1 else config.kmeans_rows
        if size == 0:
            return False
        kept = total.clamp(max=size)
        (rows,) = pooled(frames.rows(spread(kept.clamp(min=1), total, size), shares))
        noise = agreed(torch.rand(config.codebook_size, dtype=rows.dtype, device=rows.device))
        centres, chosen = kmeans(rows, kept, config.codebook_size, config.kmeans_iterations, noise, config.cosine)
        some = total > 0
        usage = chosen * (total / kept.clamp(min=1))
        if not config.dead_below:
            usage = usage.clamp(min=1)  # otherwise codes that are not chosen would become 0
        self.codes[stage].copy_(torch.where(some, agreed(centres), self.codes[stage]))
        self.usage[stage].copy_(torch.where(some, agreed(usage), self.usage[stage]))
        if self.sums is not None:
            self.sums[stage].copy_(self.codes[stage] * self.usage[stage].unsqueeze(-1))
        return True

    def finish_start(self) -> None:
        """Note that all stages have started."""
        self._started = True
        self.started.fill_(1)

    @torch.no_grad()
    def update(self, stage: int, frames: Frames, codes: Tensor, refresh: bool = True) -> None:
        """Learn from ``frames`` that chose ``codes`` [B, T] (-1: none) of a stage.

        Usage n and sums s move by ``n <- decay n + (1 - decay) count`` and likewise; with ``refresh`` codes become
        ``s / n``, and dead ones are replaced. Without such frames nothing changes.
        """
        config = self.config
        if self.sums is None and not config.dead_below:
            return
        count, total = count_and_sum(frames.x, codes, config.codebook_size)
        revives = refresh and config.dead_below > 0
        if revives:
            count, total, shares, noise = pooled(count, total, *self._draw(frames))
        else:
            count, total = pooled(count, total)
        pace = (1 - config.decay) * (count.sum() > 0).to(count.dtype)
        self.usage[stage].lerp_(count, pace)
        if self.sums is not None:
            self.sums[stage].lerp_(total, pace)
        if refresh:
            self.refresh(stage)
        if revives:
            self._replace(stage, frames, shares, noise)

    @torch.no_grad()
    def refresh(self, stage: int) -> None:
        """Set each code to the moving mean of the frames that chose it; ``epsilon`` is added to each count."""
        if self.sums is None:
            return
        usage, epsilon = self.usage[stage], self.config.epsilon
        total = usage.sum()
        smoothed = (usage + epsilon) / (total + self.config.codebook_size * epsilon) * total
        means = self.sums[stage] / smoothed.unsqueeze(-1)
        self.codes[stage].copy_(F.normalize(means, dim=-1) if self.config.cosine else means)

    @torch.no_grad()
    def revive(self, stage: int, frames: Frames) -> None:
        """Replace codes that are hardly used by rows of ``frames``."""
        if self.config.dead_below:
            self._replace(stage, frames, *pooled(*self._draw(frames)))

    def _draw(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """The numbers of frames of all processes (own one filled in), and the random numbers that choose rows."""
        noise = torch.rand(self.config.codebook_size, dtype=self.codes.dtype, device=self.codes.device)
        return frames.shares(noise.dtype), only_first(noise)

    def _replace(self, stage: int, frames: Frames, shares: Tensor, noise: Tensor) -> None:
        """Replace dead codes by rows of different stretches of the joint batch; no row twice while there are enough."""
        config = self.config
        usage = self.usage[stage]
        unit = usage.mean() if config.usage_unit == "mean" else torch.ones_like(usage[0])
        dead = usage < config.dead_below * unit
        counts = shares.to(torch.int64)
        total = counts.sum()
        parts = torch.minimum(dead.sum(), total)
        turn = dead.cumsum(0) - 1
        positions = spread(parts.clamp(min=1), total, config.codebook_size, noise)
        (rows,) = pooled(frames.rows(positions, counts))
        rows = rows[turn.clamp(min=0)]
        replaced = dead & (turn < parts) & torch.isfinite(rows).all(-1)
        new_usage = torch.where(replaced, config.revived_at * unit, usage)
        replaced = replaced.unsqueeze(-1)
        self.codes[stage].copy_(torch.where(replaced, rows, self.codes[stage]))
        if self.sums is not None:
            self.sums[stage].copy_(torch.where(replaced, rows * new_usage.unsqueeze(-1), self.sums[stage]))
        usage.copy_(new_usage)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.started.is_meta:
            self._started = bool(self.started)
