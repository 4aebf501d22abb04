"""One process that trains, or several that train one model together.

A run of one process needs only torch. Where a launcher (``accelerate launch``, ``torchrun``) started
several, Hugging Face Accelerate connects them: data parallel (DDP), or with its FSDP settings (version 2) with the
weights sharded among them.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from losatok_ext.errors import ConfigError, TrainingError, UserError
from losatok_ext.training.config.train import TrainConfig

T = TypeVar("T")


class Processes:
    """One process, alone. Use as a context manager.

    Args:
        device: to train on.
    """

    rank = 0
    count = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        return None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """``module``, wrapped so that its backward passes leave the mean of the gradients of all processes."""
        return module

    def waiting(self, module: nn.Module) -> AbstractContextManager[Any]:
        """A context in which backward passes do not exchange gradients, as another one follows in the same step."""
        return nullcontext()

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' ``values``."""
        return values

    def joined(self, rows: Tensor) -> Tensor:
        """All processes' ``rows`` [b], on the CPU, in the order of their ranks: [count b]."""
        return rows

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes, which have gradients for the same parameters."""

    def agree(self, function: Callable[[], object]) -> None:
        """Run ``function`` in the first process. All processes wait for it, and raise the UserError that it raises."""
        function()


class AcceleratedProcesses(Processes):
    """Several processes, connected by Accelerate.

    Args:
        config: of the run; its device is ``auto``, ``cpu`` or ``cuda`` (then each process takes its own).

    Raises:
        ConfigError: the configuration names the device of one process, such as ``cuda:1``.
        TrainingError: Accelerate is missing or older than 1.6, or set to a mode that is not supported.
    """

    def __init__(self, config: TrainConfig) -> None:
        if ":" in config.device:
            raise ConfigError(
                f"device is {config.device}, and several processes train: each takes a device of its own; use device "
                "auto, cuda or cpu"
            )
        device = config.torch_device()
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState
            from accelerate.utils import DistributedDataParallelKwargs
        except ImportError as error:
            raise TrainingError(
                f"training by several processes needs Accelerate ({error}); pip install 'losatok-ext[train]', or start "
                "one process, without a launcher"
            ) from None
        self._ours = not torch.distributed.is_initialized()
        AcceleratorState._reset_state(reset_partial_state=True)
        options = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        # Its own mixed precision is off: the run's autocast keeps losses in float32 in any number of processes.
        self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[options])
        super().__init__(self._accelerator.device if device.type == "cuda" else torch.device("cpu"))
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.sharded = _check_kind(self._accelerator)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        lost = error is not None and _is_lost(error)
        if self._ours and error is None:
            # What reduces gradients goes first: as the last holder of the group it would wait for the group's threads,
            # which wait for the interpreter. After an error its traceback holds all this, and the group is left open.
            self._accelerator.free_memory()
            gc.collect()
            torch.distributed.destroy_process_group()
        if lost:
            raise TrainingError(
                f"process {self.rank} of {self.count} lost the others: one of them ended or cannot be reached (its own "
                "message says why); the last checkpoint is intact, and the same command again goes on from it"
            ) from error

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """See :class:`Processes`. Where weights are sharded, ``module`` and ``optimizer`` change in place."""
        if self.sharded:
            return self._accelerator.prepare(module, optimizer)[0]
        with warnings.catch_warnings():
            # Newer torch has another name for what keeps buffers to themselves, and older torch only this one.
            warnings.simplefilter("ignore", FutureWarning)
            return self._accelerator.prepare(module)

    def waiting(self, module: nn.Module) -> AbstractContextManager[Any]:
        """See :class:`Processes`."""
        return self._accelerator.no_sync(module)

    def total(self, values: Tensor) -> Tensor:
        """See :class:`Processes`."""
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    def joined(self, rows: Tensor) -> Tensor:
        """See :class:`Processes`."""
        own = rows.to(self.device)
        everyone = [torch.empty_like(own) for _ in range(self.count)]
        torch.distributed.all_gather(everyone, own)
        return torch.cat(everyone).cpu()

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """See :class:`Processes`."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def agree(self, function: Callable[[], object]) -> None:
        """See :class:`Processes`."""
        failure: list[UserError | None] = [None]
        if self.first:
            try:
                function()
            except UserError as error:
                failure = [error]
        torch.distributed.broadcast_object_list(failure, src=0, device=self.device)
        if failure[0] is not None:
            raise failure[0]


def open_processes(config: TrainConfig) -> Processes:
    """The processes that a launcher started (its ``WORLD_SIZE`` says how many), or this one alone.

    Raises:
        ConfigError: the device does not exist, or is that of one process where there are several.
        TrainingError: Accelerate is missing or older than 1.6, or set to a mode that is not supported.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return AcceleratedProcesses(config)
    return Processes(config.torch_device())


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of ``tensor``."""
    return hasattr(tensor, "full_tensor")


def gathered(tensor: Tensor) -> Tensor:
    """``tensor`` itself; where it is sharded, put together from the parts of all processes, all of which call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` on the device of ``like``; where shapes are equal also in its dtype, and sharded as it is."""
    if tensor.shape != like.shape:
        return tensor.to(like.device)
    tensor = tensor.to(like.device, like.dtype)
    if is_sharded(like):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, like.device_mesh, like.placements)  # type: ignore[attr-defined]
    return tensor


def _check_kind(accelerator: Any) -> bool:
    """Whether weights are sharded (FSDP 2)."""
    kind = accelerator.distributed_type.value
    if kind == "FSDP":
        if accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise TrainingError(
                "FSDP of version 1 is not supported; ask for version 2: accelerate launch --use_fsdp --fsdp_version 2"
            )
        return True
    if kind not in ("MULTI_CPU", "MULTI_GPU"):
        raise TrainingError(
            f"Accelerate is set to {kind}, which is not supported; use plain data parallelism, or FSDP version 2"
        )
    return False


def _is_lost(error: BaseException) -> bool:
    """Whether a collective failed because a process is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "connection closed", "nccl"))
