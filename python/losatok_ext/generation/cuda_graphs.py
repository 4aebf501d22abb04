"""CUDA graphs: the evaluations of a sampler are recorded once and replayed, without the cost of launching kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.errors import UserError
from losatok_ext.generation.solvers import ModelVelocity

_WARM_UP = 3  # evaluations before recording: libraries choose their kernels and make their workspaces in them


def require_cuda_graphs(device: torch.device) -> None:
    """Raise UserError where evaluations on ``device`` cannot be recorded."""
    if device.type != "cuda":
        raise UserError(
            f"cuda_graphs records kernels of a CUDA device, and this model is on {device}; move it to a GPU, or leave "
            "cuda_graphs off"
        )


class GraphedVelocity:
    """``velocity``, recorded as a CUDA graph at its first call and replayed by all later calls.

    Every call must have the shape and dtype of the first, and the model must not wait for the device during a call.
    Other tensors that the model reads (conditions, lengths) are read from where they were at the first call: they must
    not be replaced, but their values may change in place.

    Args:
        velocity: maps (x [B, T, d], t [B] float32) to [B, T, d].

    Raises:
        UserError: ``x`` is not on a CUDA device (at the first call).
        ValueError: a call has another shape, dtype or device.
    """

    def __init__(self, velocity: ModelVelocity) -> None:
        self._velocity = velocity
        self._graph: torch.cuda.CUDAGraph | None = None

    def _record(self, x: Tensor, t: Tensor) -> None:
        require_cuda_graphs(x.device)
        self._x, self._t = x.clone(), t.clone()
        stream = torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._velocity(self._x, self._t)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._out = self._velocity(self._x, self._t)
        self._graph = graph

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at ``x`` and ``t``, in a new tensor."""
        if self._graph is None:
            self._record(x, t)
        if (x.shape, x.dtype, x.device) != (self._x.shape, self._x.dtype, self._x.device):
            raise ValueError(
                f"this CUDA graph was recorded for x {list(self._x.shape)} {self._x.dtype}, got {list(x.shape)} "
                f"{x.dtype}; make a new sampler for another shape"
            )
        self._x.copy_(x)
        self._t.copy_(t)
        assert self._graph is not None
        self._graph.replay()
        return self._out.clone()
