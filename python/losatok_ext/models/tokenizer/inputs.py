"""Checks of the arguments of the model's methods, and their conversion to batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losatok_ext.audio.resample import resample
from losatok_ext.errors import UserError
from losatok_ext.masks import valid_mask
from losatok_ext.ops import checks


def as_batch(audio: Tensor) -> Tensor:
    """``audio`` [N], [B, N] or [B, 1, N] as [B, N].

    Raises:
        TypeError: not a tensor, or not of a floating-point dtype.
        ValueError: another shape.
    """
    if not isinstance(audio, Tensor):
        raise TypeError(
            f"audio should be a torch.Tensor of samples, got {type(audio).__name__}; convert it with torch.as_tensor"
        )
    if not audio.is_floating_point():
        name = str(audio.dtype).removeprefix("torch.")
        cure = "audio.float() / 32768" if name == "int16" else "audio.float(), scaled to -1..1"
        raise TypeError(f"audio should be floating point with samples in -1..1, got {name}; convert it: {cure}")
    if audio.dim() == 3 and audio.shape[1] == 1:
        audio = audio[:, 0]
    if audio.dim() not in (1, 2):
        raise ValueError(f"audio should have shape [N], [B, N] or [B, 1, N] (mono), got {list(audio.shape)}")
    return audio if audio.dim() == 2 else audio[None]


def require_latents(z: Tensor, dim: int) -> None:
    """Raise TypeError or ValueError unless ``z`` is a floating-point tensor [B, T, dim]."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"z should be a floating-point torch.Tensor [B, T, d] or Latents, got {kind}")
    if z.dim() != 3 or z.shape[-1] != dim:
        raise ValueError(f"z should have shape [B, T, d] with d = {dim}, got {list(z.shape)}")


def clip_lengths(lengths: Tensor | Sequence[int] | None, batch: int, size: int) -> Tensor:
    """``lengths`` as an int64 tensor [B] on the CPU; None: ``size`` for each clip. Copying from a GPU waits for it.

    Raises:
        TypeError: not whole numbers.
        ValueError: another shape, or a length outside 0..size.
    """
    if lengths is None:
        return torch.full((batch,), size, dtype=torch.int64)
    if not isinstance(lengths, Tensor):
        if not all(type(length) is int for length in lengths):
            raise TypeError("lengths should be whole numbers (an int64 tensor [B] or a list of int)")
        lengths = torch.tensor(list(lengths), dtype=torch.int64)
    checked = checks.lengths(lengths.cpu(), batch, size, torch.device("cpu"))
    assert checked is not None
    return checked


def require_finite(name: str, x: Tensor, lengths: Tensor) -> None:
    """Raise UserError when ``x`` [B, T, ...] is not finite below ``lengths`` [B]; the first such clip is named."""
    finite = torch.isfinite(x).flatten(2).all(-1) if x.dim() > 2 else torch.isfinite(x)
    bad = (~finite & valid_mask(lengths.to(x.device), x.shape[1])).any(1)
    if bool(bad.any()):
        clip = int(bad.int().argmax())
        raise UserError(
            f"{name} holds NaN or infinity within clip {clip} of the batch; repair it (torch.nan_to_num), "
            "or pass lengths if that is padding"
        )


def resample_clips(audio: Tensor, lengths: Tensor, from_rate: int, to_rate: int) -> tuple[Tensor, Tensor]:
    """Each clip of ``audio`` [B, N] resampled alone, so that its padding does not affect it.

    Returns:
        (audio [B, N'], lengths [B] int64).

    Raises:
        UserError: soxr is not installed.
        ValueError: a rate is not a whole number from 1000 to 1000000.
    """
    clips = [resample(clip[:length], from_rate, to_rate) for clip, length in zip(audio, lengths.tolist(), strict=True)]
    counts = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    result = audio.new_zeros(len(clips), int(counts.max()) if len(clips) else 0)
    for row, clip in zip(result, clips, strict=True):
        row[: len(clip)] = clip
    return result, counts
