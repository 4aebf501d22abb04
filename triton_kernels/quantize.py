"""Nearest codes and residual vector quantization: the [N, K] distances exist one tile at a time, never in memory.

A mean of codes is subtracted from rows and codes; each is scaled by a power of two and rounded to float16. A product on
the matrix units gives scores, each within a known bound of half a squared distance. All codes that could be the nearest
within that bound are compared by differences in float32. So float16 costs no accuracy; for most data the bound is a
hundred times tighter than needed. Up to SPLIT_WIDTH features, a number is stored as two float16 instead of one, which
makes the bound about that of a float32 product: with few features, codes are close together. The kernels are in
``quantize_search.py``.

One kernel runs all stages of a residual quantizer and keeps the residual in registers. With few rows and one codebook,
the codes are split over programs, so that one clip occupies the GPU; each program finds its nearest code by
differences, and the nearest of those is taken. Up to SCAN_ROWS rows there are no products at all. There are no atomic
additions: results repeat bit for bit, and do not depend on tiles and splits. Memory beyond inputs and outputs is
O(N + K d).
"""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.quantize_rows import code_gradient, distance_gradient, sum_of_codes
from losatok_ext.triton_kernels.quantize_search import centre_kernel, join_splits_kernel, prepare_kernel, search_kernel

SCAN_ROWS = 16
"""Up to this many rows, only differences are used: preparing the codes for products would cost more."""

SPLIT_WIDTH = 32
"""Up to this many features (a power of two), values are split into two float16."""

PRODUCT_WIDTH = 1024
"""Rows of more features (a power of two) do not fit into shared memory next to codes: only differences are used."""


def _search_tiles(m: int, n: int, lanes: int, warps: int, stages: int) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n, "LANES": lanes, "num_warps": warps, "num_stages": stages}


# Launch tables by kind of device and largest number of features (a power of two): tiles of rows x codes, and lanes.
# There are fewer lanes than codes in a tile, which saves registers; a lane with several candidates takes longer.
SEARCH = {
    ("sm90", 128): _search_tiles(128, 64, 32, 8, 3),
    ("sm90", 256): _search_tiles(64, 64, 32, 8, 3),
    ("sm90", 512): _search_tiles(32, 32, 32, 8, 2),
    ("sm90", 1024): _search_tiles(16, 32, 32, 8, 1),
    ("sm80", 128): _search_tiles(128, 64, 32, 8, 3),
    ("sm80", 256): _search_tiles(64, 64, 32, 8, 2),
    ("sm80", 512): _search_tiles(32, 32, 32, 8, 2),
    ("sm80", 1024): _search_tiles(16, 32, 32, 8, 1),
    ("small", 128): _search_tiles(64, 64, 32, 8, 2),
    ("small", 256): _search_tiles(32, 32, 32, 8, 2),
    ("small", 512): _search_tiles(16, 32, 32, 8, 1),
    ("small", 1024): _search_tiles(16, 16, 16, 8, 1),
    **{("interpreter", width): _search_tiles(16, 16, 8, 4, 1) for width in (128, 256, 512, 1024)},
}

CHAIN_ROWS = 64
"""The most rows of a program that keeps the residual between stages in registers."""

FEW_ROWS = 32
"""Rows of a program of a residual quantizer, whose stages cannot be split, when there are too few rows for a full GPU.
"""


def _product_bound(features: int, parts: int) -> float:
    """The largest error of a score, divided by the product of the norms: two roundings to float16 (with two parts, the
    remainder after both, and the product of the second parts), underflow, and sums on matrix units, which truncate.
    """
    rounding = 2.01 * 2.0**-11 if parts == 1 else 4 * 2.0**-22
    return rounding + 2.0**-23 * features**0.5 + 2.0**-22 * (parts * parts * features + 8)


def _prepared(codes: Tensor, width: int, padded: int, parts: int) -> tuple[Tensor | None, ...]:
    """Centres, high, low (None for one part), half norms, norms and scales of codes [Q, K, d]."""
    stages, count, features = codes.shape
    rows = max(1, 4096 // width)
    centres = codes.new_empty((stages, width), dtype=torch.float32)
    L.launch(centre_kernel, (stages,), codes, centres, count, features, ROWS=rows, WIDTH=width, num_warps=4)
    high, low = (codes.new_empty((stages, padded, width), dtype=torch.float16) if i < parts else None for i in range(2))
    half_norms, norms, scales = (codes.new_empty((stages, padded), dtype=torch.float32) for _ in range(3))
    L.launch(
        prepare_kernel, (L.ceil_div(padded, rows), stages), codes, centres, high, low, half_norms, norms, scales,
        count, padded, features, ROWS=rows, WIDTH=width, num_warps=4,
    )  # fmt: skip
    return centres, high, low, half_norms, norms, scales


def _search(x: Tensor, codes: Tensor, lengths: Tensor | None, exact: bool, chain: bool) -> tuple[Tensor, Tensor | None]:
    """Indices [B, T, Q] of x [B, T, d] in codes [Q, K, d] (contiguous), and for a single stage (not ``chain``) squared
    distances [B, T].
    """
    (clips, time, features), (stages, count, _) = x.shape, codes.shape
    rows, width, where = clips * time, L.tile(features), L.kind(x.device)
    interpreted = where == "interpreter"
    products = rows > SCAN_ROWS and count >= 8 and width <= PRODUCT_WIDTH
    if products:
        c = dict(SEARCH[where, max(width, 128)])
        if chain:
            few = rows <= CHAIN_ROWS * L.multiprocessors(x.device)
            c["BLOCK_M"] = min(c["BLOCK_M"], FEW_ROWS if few else CHAIN_ROWS)
        padded = L.ceil_div(count, c["BLOCK_N"]) * c["BLOCK_N"]
        parts = 2 if width <= SPLIT_WIDTH else 1
        ready = _prepared(codes, width, padded, parts)
    else:
        c, padded, parts = _search_tiles(1, 16, 16, 8, 1), count, 1
        ready = (None,) * 6
    blocks, tiles = L.ceil_div(rows, c["BLOCK_M"]), L.ceil_div(count, c["BLOCK_N"])
    splits = 1
    if not chain:  # no split has less than four tiles
        splits = max(1, min(2 * L.multiprocessors(x.device) // max(blocks, 1), tiles // 4))
    per_split = L.ceil_div(tiles, splits) * c["BLOCK_N"]
    splits = L.ceil_div(count, per_split)
    indices = x.new_empty((splits, rows, stages), dtype=torch.int64)
    distances = None if chain else x.new_empty((splits, rows), dtype=torch.float32)
    L.launch(
        search_kernel, (blocks, splits), x, lengths, codes, *ready, indices, distances,
        time, features, x.stride(0), x.stride(1), rows, count, padded, stages, per_split,
        _product_bound(features, parts), FILTER=products, EXACT=exact, CHAIN=chain,
        CODES=32 if interpreted else max(1, 8192 // width), WIDTH=width, enable_fp_fusion=False, **c,
    )  # fmt: skip
    if distances is not None and splits > 1:
        parts_found = indices, distances
        indices, distances = torch.empty_like(indices[0]), torch.empty_like(distances[0])
        grid = (L.ceil_div(rows, 256),)
        L.launch(join_splits_kernel, grid, *parts_found, indices, distances, rows, splits, BLOCK=256, num_warps=4)
    shape = (clips, time, stages)
    return indices.view(shape), None if distances is None else distances.view(clips, time)


def _clamped(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    return None if lengths is None else lengths.to(device=x.device, dtype=torch.int64).clamp(0, x.shape[1])


def vq_nearest_forward(x: Tensor, codebook: Tensor, lengths: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    """x [B, T, d], codebook [K, d] -> indices [B, T] (int64, -1 past a length) and squared distance [B, T], float32."""
    L.check_dtype("x", x)
    L.check_dtype("codebook", codebook)
    x, codes = L.rows_contiguous(x), codebook.contiguous()[None]
    with L.on_device(x):
        indices, distances = _search(x, codes, _clamped(lengths, x), precision == "exact", chain=False)
    assert distances is not None
    return indices[..., 0], distances


def vq_nearest_backward(
    grad: Tensor, x: Tensor, codebook: Tensor, indices: Tensor, need_x: bool, need_codebook: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x [B, T, d] and codebook [K, d] in their dtypes, [0] where not asked for; grad [B, T]."""
    L.check_dtype("x", x)
    L.check_dtype("codebook", codebook)
    grad, x, indices = grad.float().contiguous(), L.rows_contiguous(x), indices.contiguous()
    codes = codebook.contiguous()
    with L.on_device(x):
        grad_x = distance_gradient(grad, x, codes, indices) if need_x else x.new_empty((0,))
        if not need_codebook:
            return grad_x, codebook.new_empty((0,))
        return grad_x, code_gradient(x, grad, codes[None], indices.view(1, -1))[0]


def rvq_encode_forward(x: Tensor, codebooks: Tensor, lengths: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    """x [B, T, d], codebooks [Q, K, d] -> codes [B, T, Q] (int64, -1 past a length), quantized [B, T, d] like x."""
    L.check_dtype("x", x)
    L.check_dtype("codebooks", codebooks)
    x, codebooks = L.rows_contiguous(x), codebooks.contiguous()
    with L.on_device(x):
        codes, _ = _search(x, codebooks, _clamped(lengths, x), precision == "exact", chain=True)
        quantized = sum_of_codes(codes.view(-1, codebooks.shape[0]), codebooks, x.dtype)
    return codes, quantized.view(x.shape)


def rvq_decode_forward(codes: Tensor, codebooks: Tensor) -> Tensor:
    """codes [N, q], codebooks [Q, K, d] -> the sums of the codes [N, d]; one outside 0..K-1 adds nothing."""
    L.check_dtype("codebooks", codebooks)
    with L.on_device(codebooks):
        return sum_of_codes(codes.contiguous(), codebooks.contiguous(), codebooks.dtype)


def rvq_decode_backward(grad: Tensor, codes: Tensor, codebooks: Tensor) -> Tensor:
    """The gradient of codebooks [Q, K, d], in their dtype: per code the sum of grad [N, d] over the rows of codes
    [N, q] that chose it.
    """
    L.check_dtype("codebooks", codebooks)
    values = L.rows_contiguous(grad)[None]
    with L.on_device(codebooks):
        return code_gradient(values, None, codebooks, codes.t().contiguous())
