"""What kernels over rows of clips share: which rows a program has, how much of each counts, and the launch."""

from __future__ import annotations

import triton
import triton.language as tl

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


def row_blocks(rows: int, features: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and launch configuration of a kernel over ``rows`` of ``features``: ROWS of them per program, in pieces of
    BLOCK features.
    """
    block = min(L.tile(features), 4096)
    per_program = max(1, 2048 // block)
    return (L.ceil_div(rows, per_program),), {"ROWS": per_program, "BLOCK": block, "num_warps": 4}
