"""The joint batch of all processes: sums over it, and rows of it.

The process group is looked up when it is used. Without one, or in one of a single process, nothing is exchanged. The
joint batch is the valid frames of rank 0, then those of rank 1, and so on. With the same random numbers (those of
rank 0), all processes compute what one process with the joint batch would.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def processes() -> tuple[int, int]:
    """Rank and number of processes: 0 and 1 without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def pooled(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The sums over all processes of ``tensors`` of one dtype, in one exchange."""
    if processes()[1] == 1:
        return tensors
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))


class _PooledSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        (total,) = pooled(x)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # All processes compute the same function of the sum, so their gradients to it are equal and add up to this.
        return grad * processes()[1]


def pooled_with_gradient(x: Tensor) -> Tensor:
    """The sum of ``x`` over all processes, for a loss that all of them compute.

    The gradient is that of the sum of the processes' losses: averaged over processes, as DistributedDataParallel does,
    it is the gradient of the one loss.
    """
    return x if processes()[1] == 1 else _PooledSum.apply(x)


def agreed(tensor: Tensor) -> Tensor:
    """The ``tensor`` of rank 0."""
    if processes()[1] == 1:
        return tensor
    shared = tensor.clone()
    dist.broadcast(shared, src=0)
    return shared


def only_first(tensor: Tensor) -> Tensor:
    """``tensor`` on rank 0, zeros on other ranks: their sum is the tensor of rank 0."""
    return tensor if processes()[0] == 0 else torch.zeros_like(tensor)


class Frames(NamedTuple):
    """The valid frames of a batch ``x`` [B, T, d] with ``lengths`` [B] (None: all)."""

    x: Tensor
    lengths: Tensor | None

    def total(self) -> Tensor:
        """Number of valid frames: int64 scalar."""
        if self.lengths is None:
            return torch.full((), self.x.shape[0] * self.x.shape[1], dtype=torch.int64, device=self.x.device)
        return self.lengths.sum()

    def shares(self, dtype: torch.dtype) -> Tensor:
        """[processes], :meth:`total` at the own rank, else zeros: the sum over processes is the counts of all."""
        rank, size = processes()
        own = torch.arange(size, device=self.x.device) == rank
        return torch.where(own, self.total(), 0).to(dtype)

    def rows(self, positions: Tensor, counts: Tensor) -> Tensor:
        """Frames of the joint batch, with zeros for those of other processes: the sum over processes is all of them.

        Args:
            positions: [n] int64, positions in the joint batch.
            counts: [processes] int64, number of frames of each process.

        Returns:
            [n, d] in the dtype of x.
        """
        batch, time, features = self.x.shape
        if batch * time == 0:
            return self.x.new_zeros((*positions.shape, features))
        rank = processes()[0]
        local = positions - counts[:rank].sum()
        mine = (local >= 0) & (local < counts[rank])
        local = torch.where(mine, local, 0)
        if self.lengths is None:
            clip, frame = local // time, local % time
        else:
            ends = self.lengths.cumsum(0)
            clip = torch.searchsorted(ends, local, right=True).clamp(max=batch - 1)
            frame = (local - (ends - self.lengths)[clip]).clamp(max=time - 1)
        return torch.where(mine.unsqueeze(-1), self.x[clip, frame], 0.0)


def spread(parts: Tensor, total: Tensor, size: int, noise: Tensor | None = None) -> Tensor:
    """Positions within 0..total-1, one in each of ``parts`` equal stretches: distinct when parts <= total.

    Args:
        parts: int64 scalar of at least 1.
        total: int64 scalar.
        size: number of positions in the result; those from ``parts`` on lie beyond ``total``.
        noise: [size] within 0..1, the place of each position in its stretch; None: at its start.

    Returns:
        [size] int64.
    """
    part = torch.arange(size, device=total.device)
    start = part * total // parts
    if noise is None:
        return start
    width = (part + 1) * total // parts - start
    within = (noise * width).to(torch.int64)
    return start + torch.minimum(within, width - 1).clamp(min=0)
