"""Argument checks that every op shares; each message names the argument and says what it should be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def floating(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATING) -> None:
    """Raise TypeError unless ``tensor`` is a tensor of one of ``dtypes``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} should be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} should be one of {allowed}, got {str(tensor.dtype).removeprefix('torch.')}")


def same_dtype_and_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raise TypeError or ValueError unless ``tensor`` has the dtype and device of ``like``."""
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} should have {like_name}'s dtype {like.dtype}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} should be on {like_name}'s device {like.device}, got {tensor.device}")


def shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], meaning: str) -> None:
    """Raise ValueError unless ``tensor`` has the ``expected`` sizes (None: any), spelt by ``meaning``."""
    fits = tensor.dim() == len(expected) and all(
        e is None or e == s for e, s in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("*" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} should have shape {meaning} = [{sizes}], got {list(tensor.shape)}")


def modulation(name: str, tensor: Tensor, x: Tensor) -> None:
    """Check ``tensor``, which goes with ``x`` [B, T, C]: [B, C] (one for all frames of a clip) or [B, T, C]."""
    floating(name, tensor)
    same_dtype_and_device(name, tensor, "x", x)
    batch, time, channels = x.shape
    if tensor.dim() not in (2, 3) or tensor.shape != ((batch, channels) if tensor.dim() == 2 else x.shape):
        raise ValueError(
            f"{name} should have shape [B, C] = [{batch}, {channels}] or [B, T, C] = [{batch}, {time}, {channels}], "
            f"got {list(tensor.shape)}"
        )


def promoted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, floating ``tensors`` in their common dtype, as PyTorch's arithmetic takes them; else as given."""
    if not all(isinstance(t, Tensor) and t.is_floating_point() for t in tensors):
        return tensors
    if not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def distinct(*tensors: Tensor | None) -> tuple[Any, ...]:
    """``tensors``, each a Python object of its own: torch.compile traces no autograd.Function that gets one twice."""

    def seen(i: int) -> bool:
        return any(tensors[i] is other for other in tensors[:i])

    return tuple(t.view_as(t) if t is not None and seen(i) else t for i, t in enumerate(tensors))


def lengths(tensor: Tensor | None, batch: int, time: int, device: torch.device, name: str = "lengths") -> Tensor | None:
    """Check the argument ``name`` [B] (int64, each within 0..T) and return it on ``device``, contiguous.

    Values are checked on the CPU only: on a GPU that would wait for the device. Kernels clamp them to 0..T there.

    Raises:
        TypeError: not int64 (int32 is converted).
        ValueError: another shape, or a value outside 0..T.
    """
    if tensor is None:
        return None
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} should be a torch.Tensor of int64 or None, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} should be int64, got {str(tensor.dtype).removeprefix('torch.')}")
    shape(name, tensor, (batch,), "[B]")
    if tensor.device.type == "cpu" and batch and not torch.compiler.is_compiling():
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high > time:
            raise ValueError(f"{name} should lie within 0..{time} (the time size), got {low}..{high}")
    return tensor.to(device=device, dtype=torch.int64).contiguous()
