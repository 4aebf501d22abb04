"""What the public functions of all ops do with their arguments: check them, cast them, bring them into shape.

Each error message names the argument and says what it should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def same_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is on the device of ``like``."""
    if tensor.device != like.device:
        raise ValueError(f"{name} should be on {like_name}'s device {like.device}, got {tensor.device}")


def same_dtype_and_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raise TypeError or ValueError unless ``tensor`` has the dtype and device of ``like``."""
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} should have {like_name}'s dtype {like.dtype}, got {tensor.dtype}")
    same_device(name, tensor, like_name, like)


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} should be one of {', '.join(map(repr, allowed))}, got {value!r}")


def eps(value: float) -> None:
    """Raise TypeError or ValueError unless the argument ``eps``, ``value``, is a number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"eps should be a float, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"eps should be at least 0, got {value}")


def shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], meaning: str) -> None:
    """Raise ValueError unless ``tensor`` has the ``expected`` sizes (None: any), spelt by ``meaning``."""
    fits = tensor.dim() == len(expected) and all(
        e is None or e == s for e, s in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("*" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} should have shape {meaning} = [{sizes}], got {list(tensor.shape)}")


def rows(x: Tensor, valid: Tensor | None) -> Tensor | None:
    """Check the arguments ``x`` [..., features] and ``lengths`` (``valid``), with which x is [B, T, features].

    Returns the lengths as :func:`lengths` does.
    """
    floating("x", x)
    if x.dim() == 0:
        raise ValueError("x should have shape [..., features], got a scalar")
    if valid is None:
        return None
    shape("x", x, (None, None, None), "[B, T, features] with lengths")
    return lengths(valid, x.shape[0], x.shape[1], x.device)


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


def integers(name: str, tensor: Tensor) -> Tensor:
    """``tensor``, which should hold int64 or int32, as int64; TypeError for any other kind."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} should be a torch.Tensor of int64, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} should be int64, got {str(tensor.dtype).removeprefix('torch.')}")
    return tensor.to(torch.int64)


def wide(*tensors: Tensor) -> torch.dtype:
    """The dtype that sums and statistics of ``tensors`` are taken in: float64 when any of them is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast multiplies matrices on x's device; None outside autocast, or for float64 ``x``."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def under_autocast(x: Any, *others: Any) -> tuple[Any, ...]:
    """``x`` and the others, under autocast (on x's device) in its dtype, as ``F.linear`` takes them; else as given.

    Values that are no tensors, not floating, or float64 stay as they are.
    """
    values = (x, *others)
    if not isinstance(x, Tensor) or not torch.is_autocast_enabled(x.device.type):
        return values
    dtype = torch.get_autocast_dtype(x.device.type)

    def casts(value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64

    return tuple(value.to(dtype) if casts(value) else value for value in values)


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


def as_batch(x: Tensor) -> Tensor:
    """[..., C] as [B, T, C]: three dimensions stay, others become one clip."""
    return x if x.dim() == 3 else as_rows(x).unsqueeze(0)


def as_rows(x: Tensor) -> Tensor:
    """[..., C] as [N, C]."""
    return x if x.dim() == 2 else x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)


def need_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd may ask for the gradient of any of ``tensors``."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def wanted(grads: Iterable[Tensor | None], need: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """For each of ``need`` its gradient out of ``grads``, or None where autograd does not need it."""
    return tuple(g if n else None for g, n in zip(grads, need, strict=True))


def distinct(*tensors: Tensor | None) -> tuple[Any, ...]:
    """``tensors`` as distinct Python objects: torch.compile cannot trace an autograd.Function that gets one twice."""

    def seen(i: int) -> bool:
        return any(tensors[i] is other for other in tensors[:i])

    return tuple(t.view_as(t) if t is not None and seen(i) else t for i, t in enumerate(tensors))


def lengths(tensor: Tensor | None, batch: int, time: int, device: torch.device, name: str = "lengths") -> Tensor | None:
    """Check the argument ``name`` and return it as int64 [B] on ``device``, contiguous.

    It is [B] (each value within 0..T), or a bool mask [B, T] that is True for the first frames of each clip. Values are
    checked on the CPU only: on a GPU that would wait for the device. Kernels clamp lengths to 0..T there, and of a mask
    the number of True counts.

    Raises:
        TypeError: not int64, int32 or bool.
        ValueError: another shape, a value outside 0..T, or a mask that is True after a False.
    """
    if tensor is None:
        return None
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} should be a torch.Tensor of int64 or None, got {type(tensor).__name__}")
    looks = tensor.device.type == "cpu" and batch > 0 and not torch.compiler.is_compiling()
    if tensor.dtype == torch.bool:
        shape(name, tensor, (batch, time), "[B, T] for a mask")
        counts = tensor.sum(1)
        if looks and bool((tensor[:, 1:] & ~tensor[:, :-1]).any()):
            raise ValueError(
                f"{name} should be True for the first frames of each clip and False for the others; masks with gaps "
                "are not supported"
            )
        return counts.to(device)
    tensor = integers(name, tensor)
    shape(name, tensor, (batch,), "[B]")
    if looks:
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high > time:
            raise ValueError(f"{name} should lie within 0..{time} (the time size), got {low}..{high}")
    return tensor.to(device).contiguous()
