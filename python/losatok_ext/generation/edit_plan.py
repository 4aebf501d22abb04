"""The plan of an edit: which tokens of a clip are kept, which are generated, and their positions afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from losatok_ext.errors import UserError


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of an edited clip, ``start`` to ``stop - 1``, that are all kept or all generated.

    ``source`` is the position of the first one in the original clip, or None where they are generated.
    """

    start: int
    stop: int
    source: int | None


@dataclass(frozen=True)
class EditPlan:
    """The tokens of an edited clip.

    Attributes:
        source: [T'] int64; for each token its position in the original clip, -1 where it is generated.
        tokens: T, number of tokens of the original clip.
    """

    source: Tensor
    tokens: int

    @property
    def generated(self) -> Tensor:
        """[T'] bool, True where a token is generated."""
        return self.source < 0

    @property
    def continues(self) -> bool:
        """Whether tokens are added at the end."""
        kept = (~self.generated).nonzero()
        last = int(kept[-1]) if len(kept) else -1
        behind = self.tokens - (int(self.source[last]) + 1 if len(kept) else 0)
        return len(self.source) - 1 - last > behind

    def place(self, latents: Tensor) -> Tensor:
        """``latents`` [T, d] of the original clip at their positions after the edit [T', d]; zeros where generated."""
        kept = latents[self.source.clamp(min=0).to(latents.device)]
        return torch.where(self.generated.to(latents.device)[:, None], latents.new_zeros(()), kept)

    def runs(self) -> list[Run]:
        """The edited clip, divided into runs of kept and of generated tokens, in order."""
        source = self.source.tolist()
        found: list[Run] = []
        start = 0
        for i in range(1, len(source) + 1):
            follows = i < len(source) and (
                source[i] == source[i - 1] + 1 if source[i - 1] >= 0 else source[i] < 0  # both kept neighbours, or new
            )
            if not follows:
                found.append(Run(start, i, source[start] if source[start] >= 0 else None))
                start = i
        return found


def plan_edit(
    tokens: int,
    spans: Iterable[Sequence[int]] = (),
    insertions: Iterable[Sequence[int]] = (),
    continue_to: int | None = None,
) -> EditPlan:
    """The plan of an edit. All positions refer to the original clip, whatever is inserted before them.

    Args:
        tokens: T, number of tokens of the clip.
        spans: (start, stop), tokens to generate anew; they may touch or overlap.
        insertions: (place, count): ``count`` new tokens before the token at ``place`` (``tokens``: at the end).
        continue_to: new tokens are added at the end up to this total (insertions not counted).

    Raises:
        UserError: a span or place lies outside the clip, a span or insertion is empty, ``continue_to`` lies within the
            clip, or there is nothing to do.
    """
    if tokens < 1:
        raise UserError("there is nothing to edit: the clip has no tokens")
    anew = torch.zeros(tokens, dtype=torch.bool)
    for start, stop in spans:
        if not 0 <= start < stop <= tokens:
            raise UserError(
                f"the span {start}:{stop} does not lie within the clip's {tokens} tokens, or is empty; give start:stop "
                f"with 0 <= start < stop <= {tokens}"
            )
        anew[start:stop] = True
    before = [0] * (tokens + 1)
    for place, count in insertions:
        if not 0 <= place <= tokens:
            raise UserError(f"new tokens cannot be inserted at {place}: the clip has {tokens}")
        if count < 1:
            raise UserError(f"the insertion at {place} should have at least one token, got {count}")
        before[place] += count
    if continue_to is not None:
        if continue_to <= tokens:
            raise UserError(f"continue_to should be more than the clip's {tokens} tokens, got {continue_to}")
        before[tokens] += continue_to - tokens
    source: list[int] = []
    for i, new in enumerate([*anew.tolist(), None]):
        source += [-1] * before[i]
        if new is not None:
            source.append(-1 if new else i)
    if min(source) >= 0:
        raise UserError("there is nothing to edit: give a span, an insertion or a continuation")
    return EditPlan(torch.tensor(source), tokens)


def seconds_to_tokens(start: float, stop: float, frame_rate: float) -> tuple[int, int]:
    """The tokens (start, stop) that a span in seconds touches, the first and last one completely.

    Raises:
        UserError: the times are not finite, negative, or not in order.
    """
    if not (math.isfinite(start) and math.isfinite(stop) and 0 <= start < stop):
        raise UserError(f"a span should go from an earlier time to a later one, in seconds, got {start}:{stop}")
    # A time at the edge of a token must not fall into the token beside it by rounding.
    return math.floor(start * frame_rate + 1e-6), math.ceil(stop * frame_rate - 1e-6)
