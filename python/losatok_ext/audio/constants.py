"""Windows, filter banks and other tensors that are computed, not learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Constants(nn.Module):
    """A module whose constants follow it from device to device but never from dtype to dtype, and are in no state dict.

    Windows and filter banks that went through bfloat16 with ``model.to(torch.bfloat16)`` would be wrong in their third
    digit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._makers: dict[str, Callable[[], Tensor]] = {}

    def add_constant(self, name: str, maker: Callable[[], Tensor]) -> None:
        """Register the float32 buffer ``name``, made on the CPU by ``maker()``, which should be picklable."""
        self._makers[name] = maker
        self.register_buffer(name, maker(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        for name, maker in self._makers.items():
            device = getattr(self, name).device
            setattr(self, name, maker().to(device))
        return result


def hann_window(size: int) -> Tensor:
    """The periodic Hann window [size] in float32 on the CPU, whatever the default dtype and device are."""
    return torch.hann_window(size, dtype=torch.float32, device="cpu")
