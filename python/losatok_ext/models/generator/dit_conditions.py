"""The conditions of a generator: text, time-aligned content, and properties of the whole clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Conditions:
    """The conditions of a batch of B clips. For conditions that are None the model uses its null embeddings.

    Attributes:
        text: [B, S, C_text], features of the tokens of a text (:meth:`DiT.encode_text`).
        text_lengths: [B] int64, tokens of each text; None: all S. An item of length 0 has no text. What lies past a
            length is not read, even if it is NaN.
        aligned: [B, T, C_aligned], one vector for each frame of the latents.
        global_: [B, C_global], one vector for the clip.
        drop: [B] bool; where it is True, all conditions of the item are replaced by the null embeddings (for training
            with classifier-free guidance, and for its unconditional half). None: nothing is dropped.
    """

    text: Tensor | None = None
    text_lengths: Tensor | None = None
    aligned: Tensor | None = None
    global_: Tensor | None = None
    drop: Tensor | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditions:
        """The same conditions on ``device``, with features in ``dtype`` (None: unchanged)."""
        return self._map(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Conditions:
        """Some items, as a batch.

        Args:
            index: a position, several positions (which may repeat), a slice, or a tensor of positions or bool.
        """
        items = [index] if isinstance(index, int) else index if isinstance(index, slice | Tensor) else list(index)
        return self._map(lambda x: x[items])

    def batch(self) -> int | None:
        """B; None if no condition is given."""
        return next((len(x) for x in self.tensors().values()), None)

    def tensors(self) -> dict[str, Tensor]:
        """The conditions that are given, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: x for name, x in values.items() if x is not None}

    def dropped(self, batch: int | None = None, device: torch.device | str | None = None) -> Conditions:
        """The same items without conditions, for the unconditional half of classifier-free guidance.

        Args:
            batch: B, needed if no condition is given.
            device: of the result's ``drop``, if no condition is given.

        Raises:
            ValueError: neither ``batch`` nor any tensor says how many items there are.
        """
        some = next(iter(self.tensors().values()), None)
        count = batch if some is None else len(some)
        if count is None:
            raise ValueError("batch should be given: empty conditions do not say how many items there are")
        drop = torch.ones(count, dtype=torch.bool, device=device if some is None else some.device)
        return dataclasses.replace(self, drop=drop)

    def guided(self, batch: int | None = None, device: torch.device | str | None = None) -> Conditions:
        """2 B items: those of this batch, then the same without conditions. For the arguments see :meth:`dropped`."""
        without = self.dropped(batch, device)
        assert without.drop is not None
        kept = torch.zeros_like(without.drop) if self.drop is None else self.drop
        return Conditions.cat([dataclasses.replace(self, drop=kept), without])

    @staticmethod
    def cat(parts: Sequence[Conditions]) -> Conditions:
        """One batch of the items of all ``parts``, texts padded to the longest.

        Raises:
            ValueError: there are no parts; only some parts have a condition; or widths differ, or for ``aligned`` the
                numbers of frames.
        """
        if not parts:
            raise ValueError("parts should hold at least one Conditions, got none")
        joined: dict[str, Tensor | None] = {}
        if any(part.text_lengths is not None or _size(part.text) != _size(parts[0].text) for part in parts):
            parts = [part._with_text_lengths() for part in parts]
        longest = max(_size(part.text) for part in parts)
        for name in (field.name for field in dataclasses.fields(Conditions)):
            tensors = [getattr(part, name) for part in parts]
            if name == "drop":
                tensors = _drops(parts)
            given = [x for x in tensors if x is not None]
            if len(given) not in (0, len(parts)):
                raise ValueError(
                    f"{name} should be given in all parts or in none, got it in {len(given)} of {len(parts)}"
                )
            if name == "text":
                given = [F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in given]
            if any(x.shape[1:] != given[0].shape[1:] for x in given):
                shapes = " and ".join(str(list(x.shape)) for x in given)
                raise ValueError(f"{name} should have the same sizes in all parts but for the batch, got {shapes}")
            joined[name] = torch.cat(given) if given else None
        return Conditions(**joined)

    def _with_text_lengths(self) -> Conditions:
        if self.text is None or self.text_lengths is not None:
            return self
        size = self.text.shape[:2]
        return dataclasses.replace(self, text_lengths=torch.full(size[:1], size[1], device=self.text.device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        return dataclasses.replace(self, **{name: function(x) for name, x in self.tensors().items()})


def _size(text: Tensor | None) -> int:
    return 0 if text is None else text.shape[1]


def _drops(parts: Sequence[Conditions]) -> list[Tensor | None]:
    """``drop`` of each part. If one part has it, the parts without get one that is False everywhere."""
    drops = [part.drop for part in parts]
    if all(drop is None for drop in drops):
        return drops
    like = next(drop for drop in drops if drop is not None)
    return [
        like.new_zeros(part.batch() or 0) if drop is None else drop for part, drop in zip(parts, drops, strict=True)
    ]
