"""Nearest codes and residual vector quantization on a GPU: [N, K] distances exist a tile at a time, on the chip only.

Rows and codes are centred by a mean of codes, scaled by powers of two of their own and rounded to float16; a product on
the matrix units gives scores, each within a known bound of half a squared distance; what could be the nearest within
that bound is decided by differences in float32. So float16's speed costs no accuracy, and the bound is a hundred times
tighter than the distances of most data need. Up to SPLIT_WIDTH features a number is two float16 instead of one, and the
bound near that of a float32 product: few features mean codes that lie close. ``quantize_search.py`` holds the kernels.

One kernel goes through all stages of a residual quantizer, with what is left over in registers. Few rows of a single
codebook are split over the codes, so that one clip occupies the GPU; each split decides its own by differences, and the
nearest of their results is the nearest. Up to SCAN_ROWS rows there are no products at all. Nothing is added atomically:
results repeat bit for bit, and do not depend on tiles and splits. Beyond inputs and outputs memory is O(N + K d).
"""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.quantize_rows import code_gradient, distance_gradient, sum_of_codes
from losatok_ext.triton_kernels.quantize_search import centre_kernel, join_splits_kernel, prepare_kernel, search_kernel

SCAN_ROWS = 16
"""Up to so many rows everything goes by differences: preparing codes for products would cost more."""

SPLIT_WIDTH = 32
"""Up to so many features (as a power of two) values are split into two float16."""

PRODUCT_WIDTH = 1024
"""Rows of more features (as a power of two) do not fit the chip beside codes: they go by differences."""


def _search_tiles(m: int, n: int, lanes: int, warps: int, stages: int) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n, "LANES": lanes, "num_warps": warps, "num_stages": stages}


# Launch tables by kind of device and the most features, as a power of two: tiles of rows x codes, and lanes. Lanes are
# fewer than the codes of a tile, which saves registers; a lane that is not clear costs more to go through.
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
"""The most rows of a program that keeps what is left over between stages in registers."""

FEW_ROWS = 32
"""Rows of a program where a residual quantizer has too few rows to occupy the GPU with more: its stages cannot be
split.
"""


def _product_bound(features: int, parts: int) -> float:
    """What a score may be off by, over the product of the norms: two roundings to float16 (of two parts: what is left
    of them, and the product of their second parts), its underflow, and sums on matrix units, which truncate.
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
