"""One tile of a matrix product; all kernels with products are built on it."""

import triton
import triton.language as tl


@triton.jit
def rows_by_rows(
    a, a_offsets, b, b_offsets, features,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """float32 tile [BLOCK_M, BLOCK_N] of A B^T over ``features``: rows of A and B begin at ``a + a_offsets`` [BLOCK_M]
    and ``b + b_offsets`` [BLOCK_N]. EVEN: BLOCK_K divides ``features``.

    Offsets are 32-bit and count from a 64-bit address of the tile's own: 64-bit ones would take twice the registers.
    """
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    ks = tl.arange(0, BLOCK_K)
    a_at = a + (a_offsets[:, None] + ks[None, :])
    b_at = b + (b_offsets[None, :] + ks[:, None])
    for k in range(0, features, BLOCK_K):
        if EVEN:
            a_tile = tl.load(a_at)
            b_tile = tl.load(b_at)
        else:
            a_tile = tl.load(a_at, mask=(k + ks)[None, :] < features, other=0.0)
            b_tile = tl.load(b_at, mask=(k + ks)[:, None] < features, other=0.0)
        acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION)
        a_at += BLOCK_K
        b_at += BLOCK_K
    return acc
