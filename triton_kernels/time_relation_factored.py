"""The time-relation loss in time linear in the number of frames.

With the rows of L [T, d] and H [T, D] normalised, ||L L^T - H H^T||^2 = ||L^T L||^2 - 2 ||L^T H||^2 + ||H^T H||^2 and
its gradient by the rows of L is 4 (L (L^T L) - H (H^T L)). Rows are normalised once, in their dtype, and all terms use
the same copies: the identity then holds exactly for the rounded values, and rounding costs no more than in the tiled
form. cuBLAS computes the products in float32; their squares are summed in float64. The error left by the cancellation
of the three terms is a few 1e-7 of the mean of (h_i.h_j)^2.

Clips are processed in groups, and long ones in chunks of frames, so that the normalised copies have a bounded size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.time_relation_rows import normalized

COPY_ELEMENTS = 1 << 27
"""Elements of normalised copies that exist at a time: 256 MB in half precision, which one hour at 25 Hz of 1280
features fits in.
"""

GRAM_ELEMENTS = 1 << 26
"""Elements of [D, D] matrices that exist at a time: 256 MB."""

COEFFICIENTS = {
    **{(k, "half"): L.tiles(128, 64, 32, 4, 3) for k in ("sm90", "sm80")},
    ("small", "half"): L.tiles(64, 64, 32, 4, 3),
    **{(k, "tf32"): L.tiles(64, 64, 32, 4, 3) for k in ("sm90", "sm80", "small")},
    **{(k, "fp32"): L.tiles(64, 64, 16, 8, 2) for k in ("sm90", "sm80", "small")},
    **L.INTERPRETER,
}


@triton.jit
def _add_product(
    acc, x, rows, coefficients, columns, features, latent, factor,
    HALF: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc + factor x C, with rows of x [*, features] and C [features, latent] float32."""
    ks = tl.arange(0, BLOCK_K)
    for k in range(0, features, BLOCK_K):
        a = tl.load(x + rows[:, None] * features + (k + ks)[None, :], mask=(k + ks)[None, :] < features, other=0.0)
        at = coefficients + (k + ks)[:, None].to(tl.int64) * latent + columns[None, :]
        c = tl.load(at, mask=((k + ks)[:, None] < features) & (columns[None, :] < latent), other=0.0) * factor
        if HALF:
            # Coefficients in two parts: rounded once, they would carry an error that every frame of the clip shares.
            high_part = c.to(a.dtype)
            acc = tl.dot(a, high_part, acc)
            acc = tl.dot(a, (c - high_part.to(tl.float32)).to(a.dtype), acc)
        else:
            acc = tl.dot(a, c, acc, input_precision=PRECISION)
    return acc


@triton.jit
def coefficient_kernel(
    low, high, low_low, high_low, out, frames, latent, features, out_clip_stride, factor,
    HALF: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = L (L^T L) - H (H^T L); grid (clips x blocks of frames, blocks of the latent).

    L [clips, frames, latent] and H [clips, frames, features] normalised, contiguous; low_low [clips, latent, latent]
    and high_low [clips, features, latent] float32; out [clips, frames, latent] float32, clips ``out_clip_stride``
    apart. ``factor`` brings the coefficients, up to T in size, into the range of float16, and is taken back at the end.
    """
    blocks = tl.cdiv(frames, BLOCK_M)
    clip = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    at = tl.minimum(rows, frames - 1) + clip * frames
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc = _add_product(
        acc, low, at, low_low + clip * latent * latent, columns, latent, latent, factor, HALF, PRECISION, BLOCK_K
    )
    acc = _add_product(
        acc, high, at, high_low + clip * features * latent, columns, features, latent, -factor, HALF, PRECISION, BLOCK_K
    )
    target = out + clip * out_clip_stride + rows.to(tl.int64)[:, None] * latent + columns[None, :]
    tl.store(target, acc / factor, mask=(rows[:, None] < frames) & (columns[None, :] < latent))


def _squares(matrices: Tensor) -> Tensor:
    """The squared Frobenius norms of [g, *, *], float64 [g]."""
    return torch.linalg.vector_norm(matrices, dim=(1, 2), dtype=torch.float64).square()


def _clip_groups(clips: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, clips)) for first in range(0, clips, size)]


def _group_sizes(clips: int, time: int, elements: int, gram_elements: int) -> tuple[int, list[slice]]:
    """How many clips to take at a time, and their frames in chunks, for ``elements`` of copies per frame and
    ``gram_elements`` per clip.
    """
    group = max(1, min(clips, COPY_ELEMENTS // (time * elements), GRAM_ELEMENTS // gram_elements))
    chunk = min(time, max(COPY_ELEMENTS // elements, 1))
    return group, _clip_groups(time, chunk)


def _chunk(x: Tensor, lengths: Tensor | None, clips: slice, frames: slice) -> Tensor:
    """The normalised rows of one group of clips and chunk of frames."""
    part = x[clips, frames]
    if lengths is not None:
        lengths = (lengths[clips] - frames.start).clamp(0, part.shape[1])
    return normalized(part, lengths)


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _gradient_rows(low: Tensor, high: Tensor, low_low: Tensor, high_low: Tensor, out: Tensor, time: int) -> None:
    """Launch :func:`coefficient_kernel` for normalised rows of one group and chunk; ``out`` [g, frames, d] is a view
    with contiguous rows.
    """
    clips, frames, latent = low.shape
    c = L.config(COEFFICIENTS, low.device, low.dtype)
    L.launch(
        coefficient_kernel, (clips * L.ceil_div(frames, c["BLOCK_M"]), L.ceil_div(latent, c["BLOCK_N"])),
        low, high, low_low, high_low, out, frames, latent, high.shape[2], out.stride(0), 1.0 / time,
        HALF=low.dtype != torch.float32, PRECISION=L.precision(low.dtype), **c,
    )  # fmt: skip


def time_relation_factored(
    low: Tensor, high: Tensor, lengths: Tensor | None, high_energy: Tensor | None, need_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of E^2 over all valid pairs, [] float64, and with ``need_grad`` the sums over j of E[i, j] l_j, [1, B, T, d]
    float32.

    low [B, T, d], high [B, T, D] (unit last strides); ``lengths`` [B] clamped to 0..T; ``high_energy`` [B] or None.
    """
    clips, time, latent = low.shape
    features = high.shape[2]
    gram_elements = latent * (latent + features) + (features * features if high_energy is None else 0)
    group, chunks = _group_sizes(clips, time, latent + features, gram_elements)
    rows = low.new_empty((1, clips, time, latent), dtype=torch.float32) if need_grad else None
    totals = low.new_zeros((clips,), dtype=torch.float64)
    for part in _clip_groups(clips, group):
        low_low = high_low = high_high = None
        for frames in chunks:
            ls, hs = _chunk(low, lengths, part, frames), _chunk(high, lengths, part, frames)
            low_low = _add(low_low, L.product(ls.mT, ls))
            high_low = _add(high_low, L.product(hs.mT, ls))
            if high_energy is None:
                high_high = _add(high_high, L.product(hs.mT, hs))
        assert low_low is not None
        assert high_low is not None
        energy = high_energy[part].double() if high_energy is not None else _squares(high_high)  # type: ignore[arg-type]
        totals[part] = _squares(low_low) - 2 * _squares(high_low) + energy
        del high_high
        if rows is None:
            continue
        for frames in chunks:
            if len(chunks) > 1:  # one chunk is still there
                ls, hs = _chunk(low, lengths, part, frames), _chunk(high, lengths, part, frames)
            _gradient_rows(ls, hs, low_low, high_low, rows[0, part, frames], time)
    # Equal Gram matrices leave rounding of either sign; a sum of squares has none.
    return totals.sum().clamp(min=0), rows


def gram_energy_factored(high: Tensor, lengths: Tensor | None) -> Tensor:
    """Per clip ||H^T H||^2, float64 [B], for high [B, T, D] (unit last stride) and ``lengths`` [B] clamped to 0..T."""
    clips, time, features = high.shape
    group, chunks = _group_sizes(clips, time, features, features * features)
    energies = []
    for part in _clip_groups(clips, group):
        total = None
        for frames in chunks:
            hs = _chunk(high, lengths, part, frames)
            total = _add(total, L.product(hs.mT, hs))
        energies.append(_squares(total))  # type: ignore[arg-type]
    return torch.cat(energies)
