"""Windows, filter banks and other tensors that are computed instead of learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Constants(nn.Module):
    """A module with constants that move with it to another device, but stay in float32, and are not in its state dict.

    In bfloat16, after ``model.to(torch.bfloat16)``, windows and filter banks would be wrong in their third digit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._makers: dict[str, Callable[[], Tensor]] = {}

    def add_constant(self, name: str, maker: Callable[[], Tensor]) -> None:
        """Register the float32 buffer ``name``. ``maker()`` makes it on the CPU, and should be picklable."""
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
