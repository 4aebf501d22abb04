"""What kernels over rows of clips share: the rows of a program, their lengths, grids and launch configurations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.triton_kernels import launch as L

NORM_EPS = tl.constexpr(1e-12)
"""A row is divided by max(its norm, NORM_EPS)."""


@triton.jit
def rows_of_clips(lengths, first, rows, time, features, ROWS: tl.constexpr):
    """ROWS rows [ROWS, 1] of the program, of [clips time] counted from ``first``: their numbers from there, clips,
    frames, and widths: how much of each is read, ``features`` or 0 past a clip's length and past the last of ``rows``.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    clip = tl.minimum(row, rows - 1)
    frame = (first + clip) % time
    clip = (first + clip) // time
    width = tl.where(row < rows, features, 0)
    if lengths is not None:
        width = tl.where(frame < tl.load(lengths + clip), width, 0)
    return row, clip, frame, width


@triton.jit
def clip_length(lengths, clip, time):
    """The valid frames of ``clip``: all ``time`` where there are no ``lengths``."""
    return tl.minimum(tl.maximum(tl.load(lengths + clip), 0), time) if lengths is not None else time


def row_blocks(rows: int, features: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and launch configuration of a kernel over ``rows`` of ``features``: ROWS of them per program, in pieces of
    BLOCK features.
    """
    block = min(L.tile(features), 4096)
    per_program = max(1, 2048 // block)
    return (L.ceil_div(rows, per_program),), {"ROWS": per_program, "BLOCK": block, "num_warps": 4}


@triton.jit
def frames_of_chunk(time, chunks, frames):
    """For a program of a grid (clips x chunks): its clip (64-bit), its first frame, and the end of its frames."""
    clip = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks) * frames
    return clip, first, tl.minimum(first + frames, time)


def frame_chunks(clips: int, time: int, step: int, device: torch.device) -> tuple[int, int]:
    """Number of chunks of a clip's frames, and frames of each, for a kernel that goes over a chunk ``step`` frames at a
    time: enough chunks to occupy the device, each of several steps so that there are few sums to add up afterwards.
    """
    wanted = L.ceil_div(8 * L.multiprocessors(device), max(clips, 1))
    frames = step * max(L.ceil_div(L.ceil_div(time, wanted), step), 4)
    return max(L.ceil_div(time, frames), 1), frames


def whole_rows(rows: int, features: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and launch configuration of a kernel that holds whole rows of ``features`` in registers: ROWS of them per
    program, BLOCK elements each.
    """
    block = L.tile(max(features, 1))
    per_program = max(1, 1024 // block)
    warps = min(max(block * per_program // 512, 4), 32)
    return (L.ceil_div(rows, per_program),), {"ROWS": per_program, "BLOCK": block, "num_warps": warps}


def modulation_gradient(x: Tensor, per_frame: bool, chunks: int) -> Tensor:
    """Memory for the gradient of a shift, scale or gate of ``x`` [B, T, C]: rows [B, T, C] in x's dtype where it is per
    frame, else float32 sums over each chunk of frames [B, chunks, C].
    """
    if per_frame:
        return x.new_empty(x.shape)
    return x.new_empty((x.shape[0], chunks, x.shape[2]), dtype=torch.float32)


def add_chunks(gradient: Tensor, per_frame: bool, dtype: torch.dtype) -> Tensor:
    """The gradient from what a kernel wrote into :func:`modulation_gradient`: chunks added up, in ``dtype``."""
    return gradient if per_frame else gradient.sum(1).to(dtype)


def per_clip_strides(x: Tensor) -> tuple[int, int]:
    """Strides over clips and frames of a tensor per clip [B, C] (0 over frames) or per frame [B, T, C]."""
    return x.stride(0), x.stride(1) if x.dim() == 3 else 0
