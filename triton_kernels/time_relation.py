"""The time-relation loss and the Gram energy: over tiles of [T, T] that are never written to memory, or factored.

*Tiled*: a program holds BLOCK_M frames of a clip and goes over the clip's other frames in blocks of BLOCK_N. For each
tile it computes both inner products, their difference E, its squares, and for the gradient E times the latents of the
block. Without a gradient, only tiles on and above the diagonal are computed, and those above count twice. *Banded* is
the same for the blocks within the window. A long row of blocks is split over programs, so that few clips occupy the
GPU; their sums are then added in a fixed order, so results repeat bit for bit. *Factored* is in
``time_relation_factored.py``.

Normalised rows are not written to memory here: products are computed from the rows in their dtype and then scaled in
float32. Rows past a length are not read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.products import rows_by_rows
from losatok_ext.triton_kernels.time_relation_factored import gram_energy_factored, time_relation_factored
from losatok_ext.triton_kernels.time_relation_rows import finish_gradient, inverse_norms, valid_pairs

OUTPUT_TILE = 128
"""Latent features whose gradient one program computes; a wider latent needs more programs, each with all tiles.
"""
SHORT = 128
"""Frames up to which ``"auto"`` never means ``"factored"``."""

# Launch tables, by kind of device and arithmetic (launch.KINDS, launch.arithmetic): without and with a gradient.
TILE_LOSS = {
    ("sm90", "half"): L.tiles(128, 128, 64, 8, 4),
    ("sm80", "half"): L.tiles(128, 128, 32, 8, 4),
    ("small", "half"): L.tiles(64, 64, 64, 4, 3),
    **{(k, "tf32"): L.tiles(64, 64, 32, 4, 3) for k in ("sm90", "sm80", "small")},
    **{(k, "fp32"): L.tiles(64, 64, 16, 8, 2) for k in ("sm90", "sm80", "small")},
    **L.INTERPRETER,
}
TILE_GRAD = {
    ("sm90", "half"): L.tiles(128, 64, 64, 8, 4),
    ("sm80", "half"): L.tiles(128, 64, 32, 8, 4),
    ("small", "half"): L.tiles(64, 32, 32, 4, 3),
    **{(k, "tf32"): L.tiles(64, 32, 32, 4, 3) for k in ("sm90", "sm80", "small")},
    **{(k, "fp32"): L.tiles(64, 32, 16, 8, 2) for k in ("sm90", "sm80", "small")},
    **L.INTERPRETER,
}


@triton.jit
def tile_kernel(
    low, high, low_inverse, high_inverse, lengths, losses, grad, time, latent, features,
    low_clip_stride, low_stride, high_clip_stride, high_stride, window, clips,
    SYMMETRIC: tl.constexpr, EVEN_LOW: tl.constexpr, EVEN_HIGH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Sums of E^2 and rows of E L over one block of frames and one split of the others; grid (clips x blocks, splits,
    blocks of the latent).

    E[i, j] = l_i.l_j - h_i.h_j of normalised rows, h_i.h_j alone where ``low`` is None. losses [splits, clips, blocks]:
    sums of E^2. grad [splits, clips, time, latent], where not None: sums over j of E[i, j] l_j. SYMMETRIC: only pairs j
    >= i are visited, and those of j > i count twice. ``window`` is None or the widest |i - j| that counts; ``lengths``
    [clips] is clamped, or None.
    """
    blocks = tl.cdiv(time, BLOCK_M)
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    split = tl.program_id(1)
    n = time
    if lengths is not None:
        n = tl.load(lengths + clip).to(tl.int32)
    start = block * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    # Frames past the length are not read: the last one stands for them, and their pairs are masked.
    row_at = tl.minimum(rows, n - 1 - start)
    outs = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    high += clip * high_clip_stride
    high_inverse += clip * time
    high_block = high + start.to(tl.int64) * high_stride
    if low is not None:
        low += clip * low_clip_stride
        low_inverse += clip * time
        low_block = low + start.to(tl.int64) * low_stride

    first = 0
    last = tl.cdiv(n, BLOCK_N)
    if window is not None:
        first = tl.maximum(start - window, 0) // BLOCK_N
        last = tl.minimum(last, (start + BLOCK_M - 1 + window) // BLOCK_N + 1)
    if SYMMETRIC:
        first = start // BLOCK_N
    last = tl.where(start < n, last, 0)
    share = tl.cdiv(tl.maximum(last - first, 0), tl.num_programs(1))
    first += split * share
    last = tl.minimum(first + share, last)

    loss = tl.zeros([BLOCK_M], tl.float32)
    if grad is not None:
        acc = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    if last > first:
        high_rows = tl.load(high_inverse + start + row_at)
        if low is not None:
            low_rows = tl.load(low_inverse + start + row_at)
        for b in range(first, last):
            other = b * BLOCK_N
            column_at = tl.minimum(columns, n - 1 - other)
            high_other = high + tl.cast(other, tl.int64) * high_stride
            e = rows_by_rows(
                high_block, row_at * high_stride, high_other, column_at * high_stride,
                features, EVEN_HIGH, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            e *= high_rows[:, None] * tl.load(high_inverse + other + column_at)[None, :]
            if low is not None:
                low_other = low + tl.cast(other, tl.int64) * low_stride
                low_columns = tl.load(low_inverse + other + column_at)
                g = rows_by_rows(
                    low_block, row_at * low_stride, low_other, column_at * low_stride,
                    latent, EVEN_LOW, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                e = g * (low_rows[:, None] * low_columns[None, :]) - e
            distance = (columns + (other - start))[None, :] - rows[:, None]
            pairs = (rows[:, None] < n - start) & (columns[None, :] < n - other)
            if window is not None:
                pairs &= (distance <= window) & (distance >= -window)
            e = tl.where(pairs, e, 0.0)
            if SYMMETRIC:
                # Half of a pair's weight of two lies below the diagonal, in tiles that nobody visits.
                weights = tl.where(distance > 0, 2.0, tl.where(distance == 0, 1.0, 0.0))
                loss += tl.sum(e * e * weights, 1)
            else:
                loss += tl.sum(e * e, 1)
            if grad is not None:
                l_at = low_other + (column_at[:, None] * low_stride + outs[None, :])
                l_columns = tl.load(l_at, mask=outs[None, :] < latent, other=0.0)
                scaled = (e * low_columns[None, :]).to(low.dtype.element_ty)
                acc = tl.dot(scaled, l_columns, acc, input_precision=PRECISION)
    if tl.program_id(2) == 0:
        tl.store(losses + (split * clips + clip) * blocks + block, tl.sum(loss, 0))
    if grad is not None:
        grad += ((split * clips + clip) * time + start) * latent
        inside = (rows[:, None] < time - start) & (outs[None, :] < latent)
        tl.store(grad + (rows[:, None] * latent + outs[None, :]), acc, mask=inside)


def _tiled(
    low: Tensor | None, high: Tensor, lengths: Tensor | None, window: int, need_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Sums of E^2 per clip [B], float64, and with ``need_grad`` the rows of E L [splits, B, T, d], float32."""
    clips, time, features = high.shape
    latent = 0 if low is None else low.shape[2]
    c = L.config(TILE_GRAD if need_grad else TILE_LOSS, high.device, high.dtype)
    blocks = L.ceil_div(time, c["BLOCK_M"])
    others = L.ceil_div(time if window < 0 else min(time, 2 * window + c["BLOCK_M"]), c["BLOCK_N"])
    outs = L.ceil_div(latent, OUTPUT_TILE) if need_grad else 1
    wanted = L.ceil_div(2 * L.multiprocessors(high.device), max(clips * blocks * outs, 1))
    splits = max(1, min(wanted, others, 16))  # no more: the gradient's are summed in memory
    losses = high.new_empty((splits, clips, blocks), dtype=torch.float32)
    grad = high.new_empty((splits, clips, time, latent), dtype=torch.float32) if need_grad else None
    low_inverse = None if low is None else inverse_norms(low, lengths)
    L.launch(
        tile_kernel, (clips * blocks, splits, outs),
        low, high, low_inverse, inverse_norms(high, lengths), lengths, losses, grad,
        time, latent, features, 0 if low is None else low.stride(0), 0 if low is None else low.stride(1),
        high.stride(0), high.stride(1), None if window < 0 else window, clips,
        SYMMETRIC=not need_grad, EVEN_LOW=latent % c["BLOCK_K"] == 0, EVEN_HIGH=features % c["BLOCK_K"] == 0,
        PRECISION=L.precision(high.dtype), BLOCK_OUT=min(L.tile(max(latent, 1)), OUTPUT_TILE), **c,
    )  # fmt: skip
    return losses.sum(dim=(0, 2), dtype=torch.float64), grad


def chosen_algorithm(
    algorithm: str, time: int, latent: int, features: int, window: int, has_energy: bool, need_grad: bool
) -> str:
    """The algorithm that ``"auto"`` stands for: the one with the fewest multiplications, ``"banded"`` where the window
    leaves out any pair.

    Multiplications per frame: tiled T (d + D), half of that without a gradient and T d more with one; factored
    d^2 + d D, D^2 more without ``high_energy``, and d^2 + d D more for the gradient. Factored has larger matrix
    products, tiled reads the rows only once; a multiplication is counted the same in both. Up to ``SHORT`` frames it is
    always tiled: there factored saves little and loses digits.
    """
    if 0 <= window < time - 1:
        return "banded"
    if algorithm != "auto":
        return "tiled" if algorithm == "banded" else algorithm
    if time <= SHORT:
        return "tiled"
    tiled = time * (latent + features) * (1.0 if need_grad else 0.5) + (time * latent if need_grad else 0)
    small = latent * latent + latent * features
    factored = small * (2 if need_grad else 1) + (0 if has_energy else features * features)
    return "factored" if factored < tiled else "tiled"


def _prepare(x: Tensor, name: str) -> Tensor:
    L.check_dtype(name, x)
    return L.rows_contiguous(x)


def _clamped(lengths: Tensor | None, high: Tensor) -> Tensor | None:
    return None if lengths is None else lengths.to(device=high.device, dtype=torch.int64).clamp(0, high.shape[1])


def time_relation_forward(
    low: Tensor,
    high: Tensor,
    lengths: Tensor | None,
    window: int,
    algorithm: str,
    high_energy: Tensor | None,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """low [B, T, d], high [B, T, D] -> loss [], float32, and with ``need_grad`` its gradient by low [B, T, d], float32,
    else [0].
    """
    low, high = _prepare(low, "low"), _prepare(high, "high")
    (clips, time, latent), features = low.shape, high.shape[2]
    none = low.new_empty((0,), dtype=torch.float32)
    if low.numel() == 0:
        return low.new_zeros((), dtype=torch.float32), low.new_zeros(
            low.shape, dtype=torch.float32
        ) if need_grad else none
    lengths = _clamped(lengths, high)
    window = window if 0 <= window < time - 1 else -1
    chosen = chosen_algorithm(algorithm, time, latent, features, window, high_energy is not None, need_grad)
    with L.on_device(low):
        if chosen == "factored":
            total, rows = time_relation_factored(low, high, lengths, high_energy, need_grad)
        else:
            totals, rows = _tiled(low, high, lengths, window, need_grad)
            total = totals.sum()
        pairs = valid_pairs(clips, time, lengths, window, low.device)
        loss = (total / pairs).float()
        return loss, none if rows is None else finish_gradient(rows, low, lengths, 4.0 / pairs)


def gram_energy_forward(high: Tensor, lengths: Tensor | None, window: int) -> Tensor:
    """high [B, T, D] -> per clip the sum over valid pairs of (h_i.h_j)^2, [B], float32; ``window`` -1 means none."""
    high = _prepare(high, "high")
    clips, time, features = high.shape
    if high.numel() == 0:
        return high.new_zeros((clips,), dtype=torch.float32)
    lengths = _clamped(lengths, high)
    window = window if 0 <= window < time - 1 else -1
    with L.on_device(high):
        if window < 0 and features < time / 2:
            return gram_energy_factored(high, lengths).float()
        return _tiled(None, high, lengths, window, need_grad=False)[0].float()
