"""Tables of codes: what a chain of codebooks looks codes up in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from losatok_ext.nn.quantizers.pool import Frames

NARROW = (torch.bfloat16, torch.float16)


class CodeTables(nn.Module):
    """The base of codebooks: S tables of K codes of d features.

    All tensors are float32 (float64 after ``double()``), also when the model is cast to bfloat16 or float16, in which
    rounding would stop the moving means.
    """

    cosine = False
    """Whether rows and codes have length 1."""

    @property
    def learned(self) -> bool:
        """Whether the codes have a gradient."""
        return True

    @property
    def ready(self) -> bool:
        """Whether the codes have their starting values."""
        return True

    def table(self, stage: int) -> Tensor:
        """The codes of a stage [K, d], with their gradient if learned."""
        raise NotImplementedError

    def tables(self, stages: int) -> Tensor:
        """The codes of all stages [stages, K, d], with a shared table repeated; without gradient."""
        raise NotImplementedError

    def start(self, stage: int, frames: Frames) -> bool:
        """Set the starting values by ``frames``; False if there are no frames. Called unless :attr:`ready`."""
        return False

    def finish_start(self) -> None:
        """Note that all stages have started."""

    def update(self, stage: int, frames: Frames, codes: Tensor, refresh: bool = True) -> None:
        """Learn from ``frames`` that chose ``codes`` [B, T] (-1: none) of a stage."""

    def refresh(self, stage: int) -> None:
        """Make codes of the statistics of a stage."""

    def revive(self, stage: int, frames: Frames) -> None:
        """Replace codes that are hardly used by rows of ``frames``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_wide(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrowed = tensor.is_floating_point() and result.dtype in NARROW
            return tensor.to(result.device) if narrowed else result

        return super()._apply(keep_wide, recurse)
