"""The bottleneck on a GPU: both linear maps and the activation between them in one kernel, and what its backward fuses.

Forward, up to 256 outputs: a program keeps its rows' outputs in registers, goes over the hidden features in blocks, and
multiplies each block into the outputs as soon as it is activated: the hidden features are never written to memory. Few
rows are split over the hidden features as well, so that one clip occupies the GPU; the partial outputs are then added
in a fixed order. With more than 256 outputs, every program would compute the hidden features again for each block of
outputs. There, rows go through two products in chunks, with the activated hidden features of a chunk in the L2 cache.

Backward: one kernel multiplies by W_out, applies the activation's derivative and sums the bias gradient by blocks of
rows. The other products have nothing to be fused with; cuBLAS computes them. There are no atomic additions: results
repeat bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.bottleneck_kernels import (
    add_splits_kernel,
    grad_hidden_kernel,
    hidden_kernel,
    project_kernel,
)

FUSED_OUTPUTS = 256
"""With at most this many outputs, the forward is one kernel."""

CHUNK_ELEMENTS = 1 << 23
"""Activated hidden features of one chunk of rows in the two-product forward: 16 MB in half precision, within the L2
cache.
"""

FEW_ROWS, SOME_ROWS = 2048, 16384
"""Up to FEW_ROWS the forward is split over hidden features too; up to SOME_ROWS it takes tiles of fewer rows."""

# Launch tables, by kind of device and arithmetic (launch.KINDS, launch.arithmetic): tiles of rows x hidden features x
# summed dimension. More than 128 outputs leave fewer registers for the rest: PROJECT_WIDE.
PROJECT_MANY = {
    ("sm90", "half"): L.tiles(128, 128, 64, 8, 4),
    ("sm90", "tf32"): L.tiles(128, 64, 32, 8, 3),
    ("sm80", "half"): L.tiles(128, 64, 64, 8, 3),
    ("sm80", "tf32"): L.tiles(64, 64, 32, 8, 3),
    **{(k, "fp32"): L.tiles(64, 32, 16, 8, 2) for k in ("sm90", "sm80")},
    ("small", "half"): L.tiles(64, 64, 32, 4, 2),
    ("small", "tf32"): L.tiles(32, 32, 32, 4, 2),
    ("small", "fp32"): L.tiles(32, 32, 16, 4, 2),
    **L.INTERPRETER,
}
PROJECT_WIDE = PROJECT_MANY | {
    ("sm90", "half"): L.tiles(128, 64, 64, 8, 4),
    ("sm90", "tf32"): L.tiles(64, 64, 32, 8, 2),
    ("sm80", "half"): L.tiles(64, 64, 64, 8, 3),
    ("sm80", "tf32"): L.tiles(32, 32, 32, 8, 3),
    **{(k, "fp32"): L.tiles(32, 32, 16, 8, 2) for k in ("sm90", "sm80")},
    ("small", "half"): L.tiles(32, 32, 32, 4, 2),
    ("small", "fp32"): L.tiles(16, 16, 16, 4, 2),
}
PROJECT_SOME = PROJECT_WIDE | {("sm90", "half"): L.tiles(64, 128, 64, 8, 4)}
PROJECT_FEW = {
    **{(k, "half"): L.tiles(32, 32, 128, 4, 3) for k in ("sm90", "sm80")},
    **{(k, "tf32"): L.tiles(32, 32, 64, 4, 3) for k in ("sm90", "sm80")},
    **{(k, "fp32"): L.tiles(32, 32, 16, 4, 2) for k in ("sm90", "sm80")},
    **{("small", how): PROJECT_WIDE["small", how] for how in ("half", "tf32", "fp32")},
    **L.INTERPRETER,
}
PRODUCT = {
    ("sm90", "half"): L.tiles(128, 128, 64, 8, 3),
    ("sm80", "half"): L.tiles(128, 128, 32, 8, 3),
    ("small", "half"): L.tiles(64, 64, 32, 4, 3),
    **{(k, "tf32"): L.tiles(64, 128, 32, 8, 3) for k in ("sm90", "sm80")},
    ("small", "tf32"): L.tiles(64, 64, 32, 4, 2),
    **{(k, "fp32"): L.tiles(64, 64, 16, 8, 2) for k in ("sm90", "sm80", "small")},
    **L.INTERPRETER,
}
# Few outputs to sum over: limited by memory bandwidth, and wider tiles would spill the values of the epilogue.
PRODUCT_SHORT = PRODUCT | {
    ("sm90", "half"): L.tiles(128, 64, 64, 8, 3),
    ("sm80", "half"): L.tiles(128, 64, 32, 8, 3),
}


def activated_hidden(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, pre_out: Tensor | None, act_out: Tensor | None
) -> None:
    """Launch :func:`hidden_kernel`: x [n, features] with unit last stride, weight [hiddens, features] contiguous."""
    (n, features), hiddens = x.shape, weight.shape[0]
    c = L.config(PRODUCT, x.device, x.dtype)
    grid = (L.ceil_div(n, c["BLOCK_M"]) * L.ceil_div(hiddens, c["BLOCK_N"]),)
    even = features % c["BLOCK_K"] == 0 and hiddens % c["BLOCK_N"] == 0
    L.launch(
        hidden_kernel, grid, x, weight, bias, pre_out, act_out, n, features, hiddens, x.stride(0),
        ACTIVATION=activation, EVEN=even, PRECISION=L.precision(x.dtype), **c,
    )  # fmt: skip


def hidden_gradient(
    grad: Tensor, weight_out: Tensor, hidden: Tensor, activation: str, need_act: bool, need_bias: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Launch :func:`grad_hidden_kernel`: grad [n, outputs], hidden [n, hiddens] -> grad_hidden, act(hidden), bias
    gradient [hiddens] (float32).
    """
    (n, outputs), hiddens = grad.shape, hidden.shape[1]
    c = L.config(PRODUCT_SHORT if outputs <= FUSED_OUTPUTS else PRODUCT, grad.device, grad.dtype)
    blocks = L.ceil_div(n, c["BLOCK_M"])
    even = outputs % c["BLOCK_K"] == 0 and hiddens % c["BLOCK_N"] == 0
    grad_hidden = torch.empty_like(hidden)
    act = torch.empty_like(hidden) if need_act else None
    parts = hidden.new_empty((blocks, hiddens), dtype=torch.float32) if need_bias else None
    L.launch(
        grad_hidden_kernel, (blocks * L.ceil_div(hiddens, c["BLOCK_N"]),),
        grad, weight_out, hidden, grad_hidden, act, parts, n, outputs, hiddens, grad.stride(0),
        ACTIVATION=activation, EVEN=even, PRECISION=L.precision(grad.dtype), **c,
    )  # fmt: skip
    return grad_hidden, act, parts.sum(0) if parts is not None else None


def _project_fused(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor, bias_out: Tensor | None,
    z: Tensor, hidden: Tensor | None, activation: str,
) -> None:  # fmt: skip
    (n, features), (outputs, hiddens) = x.shape, weight_out.shape
    regular = features % 64 == 0 and hiddens % 128 == 0  # else the masks need registers, as more outputs do
    many = PROJECT_MANY if outputs <= 128 and regular else PROJECT_WIDE
    table = PROJECT_FEW if n <= FEW_ROWS else PROJECT_SOME if n <= SOME_ROWS and outputs <= 128 else many
    c = L.config(table, x.device, x.dtype)
    row_blocks, hidden_blocks = L.ceil_div(n, c["BLOCK_M"]), L.ceil_div(hiddens, c["BLOCK_N"])
    splits = L.ceil_div(L.multiprocessors(x.device), row_blocks) if n <= FEW_ROWS else 1
    blocks_per_split = L.ceil_div(hidden_blocks, splits)
    splits = L.ceil_div(hidden_blocks, blocks_per_split)
    target = z if splits == 1 else z.new_empty((splits, n, outputs), dtype=torch.float32)
    L.launch(
        project_kernel, (row_blocks, splits),
        x, weight_in, bias_in, weight_out, bias_out, target, hidden, n, features, hiddens, outputs, x.stride(0),
        blocks_per_split * c["BLOCK_N"], ACTIVATION=activation, KEEP=hidden is not None, SPLIT=splits > 1,
        EVEN=features % c["BLOCK_K"] == 0 and hiddens % c["BLOCK_N"] == 0, PRECISION=L.precision(x.dtype),
        BLOCK_OUT=L.tile(outputs), **c,
    )  # fmt: skip
    if splits > 1:
        grid = (L.ceil_div(z.numel(), 1024),)
        L.launch(add_splits_kernel, grid, target, bias_out, z, z.numel(), outputs, splits, BLOCK=1024)


def _project_in_chunks(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor, bias_out: Tensor | None,
    z: Tensor, hidden: Tensor | None, activation: str,
) -> None:  # fmt: skip
    n, hiddens = x.shape[0], weight_in.shape[0]
    rows = max(CHUNK_ELEMENTS // hiddens, 1)
    for start in range(0, n, rows):
        part = x[start : start + rows]
        pre = hidden[start : start + rows] if hidden is not None else None
        act = x.new_empty((part.shape[0], hiddens))
        activated_hidden(part, weight_in, bias_in, activation, pre, act)
        out = z[start : start + rows]
        if bias_out is None:
            torch.mm(act, weight_out.t(), out=out)
        else:
            torch.addmm(bias_out, act, weight_out.t(), out=out)


def bottleneck_project_forward(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    activation: str,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """x [N, D], weight_in [H, D], weight_out [d, H] -> z [N, d] and, with ``keep_hidden``, the values before the
    activation [N, H], else [0, H].
    """
    L.check_dtype("x", x)
    n, hiddens = x.shape[0], weight_in.shape[0]
    x, weight_in, weight_out = L.rows_contiguous(x), weight_in.contiguous(), weight_out.contiguous()
    bias_in, bias_out = L.contiguous(bias_in, bias_out)
    z = x.new_empty((n, weight_out.shape[0]))
    hidden = x.new_empty((n if keep_hidden else 0, hiddens))
    project = _project_fused if weight_out.shape[0] <= FUSED_OUTPUTS else _project_in_chunks
    if n:
        with L.on_device(x):
            project(x, weight_in, bias_in, weight_out, bias_out, z, hidden if keep_hidden else None, activation)
    return z, hidden


def bottleneck_project_backward(
    grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    activation: str,
    need_x: bool,
    need_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight_in, bias_in, weight_out, bias_out in x's dtype, [0] where not needed; grad [N, d],
    hidden [N, H] as kept.
    """
    L.check_dtype("x", x)
    grad, hidden, weight_out = L.rows_contiguous(grad), hidden.contiguous(), weight_out.contiguous()
    with L.on_device(x):
        grad_hidden, act, grad_bias_in = hidden_gradient(
            grad, weight_out, hidden, activation, need_act=need_parameters, need_bias=need_parameters
        )
        grad_x = grad_hidden @ weight_in if need_x else x.new_empty((0,))
        if act is None or grad_bias_in is None:
            none = x.new_empty((0,))
            return grad_x, none.clone(), none.clone(), none.clone(), none
        return (
            grad_x,
            grad_hidden.t() @ x,
            grad_bias_in.to(x.dtype),
            grad.t() @ act,
            grad.sum(0, dtype=torch.float32).to(x.dtype),
        )
