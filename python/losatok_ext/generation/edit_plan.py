"""What an edit does to a clip's tokens: which stay, which are generated anew, and where each comes to stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from losatok_ext.errors import UserError


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of an edited clip, ``start`` to ``stop - 1``, of one kind.

    ``source`` is the first one's place in the clip as it was, or None where they are generated.
    """

    start: int
    stop: int
    source: int | None


@dataclass(frozen=True)
class EditPlan:
    """The tokens of an edited clip.

    Attributes:
        source: [T'] int64; for each token its place in the clip as it was, -1 where it is generated.
        tokens: T, tokens of the clip as it was.
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
        """``latents`` [T, d] of the clip as it was, where they stand after the edit [T', d]; zeros where generated."""
        kept = latents[self.source.clamp(min=0).to(latents.device)]
        return torch.where(self.generated.to(latents.device)[:, None], latents.new_zeros(()), kept)

    def runs(self) -> list[Run]:
        """The edited clip from its beginning to its end, as runs of kept neighbours and of generated tokens."""
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
    """The plan of an edit. All places are those of the clip as it was, however much is inserted before them.

    Args:
        tokens: T of the clip.
        spans: (start, stop), tokens to generate anew; they may touch or overlap.
        insertions: (place, count): so many new tokens before the one at ``place`` (``tokens``: at the end).
        continue_to: new tokens at the end, up to this many in all (insertions not counted).

    Raises:
        UserError: a span or place outside the clip, an empty span or insertion, ``continue_to`` within the clip, or
            nothing to do.
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
    """The tokens that a span of seconds touches: from the one in which it begins to the one in which it ends.

    Raises:
        UserError: not two finite times, the earlier first.
    """
    if not (math.isfinite(start) and math.isfinite(stop) and 0 <= start < stop):
        raise UserError(f"a span should go from an earlier time to a later one, in seconds, got {start}:{stop}")
    # A time that is meant to be a token's edge must not become its neighbour's by rounding.
    return math.floor(start * frame_rate + 1e-6), math.ceil(stop * frame_rate - 1e-6)
