"""The cosine loss on restored features, one chunk of rows at a time from latent to gradient: [N, D] is never stored.

The restored features of a chunk exist once, in the dtype of the inputs; one kernel reads each row of them and of the
target, adds up the row's loss and overwrites the row with its gradient. Row gradients are stored times D and without
the factor 2 / (valid frames D) of the mean, so that they are near 1 / rms(restored) and float16 neither overflows nor
underflows; sums over rows are float32 and are scaled at the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losatok_ext.masks import valid_mask
from losatok_ext.triton_kernels import launch as L
from losatok_ext.triton_kernels.bottleneck import activated_hidden, hidden_gradient
from losatok_ext.triton_kernels.rows import NORM_EPS, row_blocks, rows_of_clips

CHUNK_ELEMENTS = 1 << 24
"""Restored features of one chunk of rows: 32 MB in half precision."""


@triton.jit
def cosine_rows_kernel(
    restored, target, lengths, losses, first, rows, time, features, target_clip_stride, target_stride,
    NEED_GRAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each row: losses = |r/|r| - t/|t||^2, and with NEED_GRAD, restored = features/2 times its gradient by r. Grid
    (blocks of the chunk's ``rows``).

    restored [rows, features]; target [clips, time, features] by strides; ``first`` is the chunk's first row in
    [clips time]. Rows past a length give zeros.
    """
    row, clip, frame, width = rows_of_clips(lengths, first, rows, time, features, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    r_at = restored + row * features + columns
    t_at = target + (clip * target_clip_stride + frame * target_stride) + columns
    rr = tl.zeros([ROWS, BLOCK], tl.float32)
    tt = tl.zeros([ROWS, BLOCK], tl.float32)
    for k in range(0, features, BLOCK):
        mask = k + columns < width
        r = tl.load(r_at + k, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(t_at + k, mask=mask, other=0.0).to(tl.float32)
        rr += r * r
        tt += t * t
    norm = tl.sqrt(tl.sum(rr, 1, keep_dims=True))
    r_inverse = 1.0 / tl.maximum(norm, NORM_EPS)
    t_inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(tt, 1, keep_dims=True)), NORM_EPS)
    # |a - b|^2 from the differences: 2 - 2 cos would lose the digits that a small loss consists of.
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    products = tl.zeros([ROWS, BLOCK], tl.float32)
    for k in range(0, features, BLOCK):
        mask = k + columns < width
        r = tl.load(r_at + k, mask=mask, other=0.0).to(tl.float32) * r_inverse
        t = tl.load(t_at + k, mask=mask, other=0.0).to(tl.float32) * t_inverse
        squares += (r - t) * (r - t)
        products += r * t
    tl.store(losses + first + row, tl.sum(squares, 1, keep_dims=True), mask=row < rows)
    if NEED_GRAD:
        # Below the eps the norm is a constant, and there is nothing to project out.
        cosine = tl.where(norm > NORM_EPS, tl.sum(products, 1, keep_dims=True), 1.0)
        for k in range(0, features, BLOCK):
            mask = k + columns < width
            r = tl.load(r_at + k, mask=mask, other=0.0).to(tl.float32) * r_inverse
            t = tl.load(t_at + k, mask=mask, other=0.0).to(tl.float32) * t_inverse
            gradient = (cosine * r - t) * r_inverse * features
            tl.store(r_at + k, gradient.to(restored.dtype.element_ty), mask=(k + columns < features) & (row < rows))


def normalized_reconstruction_loss_forward(
    z: Tensor,
    target: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    lengths: Tensor | None,
    activation: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z [B, T, d], target [B, T, D] (any floating dtype), weight_in [H, d], weight_out [D, H] -> the loss and, with
    ``need_grad``, its gradients by z, weight_in, bias_in, weight_out, bias_out, all float32; else gradients are [0].
    """  # fmt: skip
    L.check_dtype("z", z)
    clips, time, latent = z.shape
    (features, hiddens), n = weight_out.shape, clips * time
    valid = None
    if lengths is not None:
        lengths = lengths.to(device=z.device, dtype=torch.int64).clamp(0, time).contiguous()
        valid = valid_mask(lengths, time).view(n, 1)
    z, target = z.reshape(n, latent), L.rows_contiguous(target)
    weight_in, weight_out = weight_in.contiguous(), weight_out.contiguous()
    bias_in, bias_out = L.contiguous(bias_in, bias_out)

    losses = z.new_empty((n,), dtype=torch.float32)
    shapes = (z.shape, weight_in.shape, (hiddens,), weight_out.shape, (features,))
    grad_z = z.new_empty(shapes[0] if need_grad else (0,), dtype=torch.float32)
    sums = [z.new_zeros(shape if need_grad else (0,), dtype=torch.float32) for shape in shapes[1:]]
    rows = max(CHUNK_ELEMENTS // max(features, hiddens), 1)
    with L.on_device(z):
        for start in range(0, n, rows):
            latents = z[start : start + rows]
            if valid is not None:  # not multiplied: values past a length may be NaN
                latents = torch.where(valid[start : start + rows], latents, 0)
            latents = L.rows_contiguous(latents)
            hidden = latents.new_empty((latents.shape[0], hiddens)) if need_grad else None
            act = latents.new_empty((latents.shape[0], hiddens))
            activated_hidden(latents, weight_in, bias_in, activation, hidden, act)
            restored = torch.mm(act, weight_out.t()) if bias_out is None else torch.addmm(bias_out, act, weight_out.t())
            grid, blocks = row_blocks(latents.shape[0], features)
            L.launch(
                cosine_rows_kernel, grid, restored, target, lengths, losses, start, latents.shape[0], time, features,
                target.stride(0), target.stride(1), NEED_GRAD=need_grad, **blocks,
            )  # fmt: skip
            if hidden is None:
                continue
            grad_hidden, _, bias_part = hidden_gradient(
                restored, weight_out, hidden, activation, need_act=False, need_bias=True
            )
            grad_z[start : start + rows] = L.product(grad_hidden, weight_in)
            assert bias_part is not None
            parts = (
                L.product(grad_hidden.t(), latents),
                bias_part,
                L.product(restored.t(), act),
                restored.sum(0, dtype=torch.float32),
            )
            for total, part in zip(sums, parts, strict=True):
                total += part
        frames = float(max(n, 1)) if lengths is None else lengths.sum().clamp(min=1).double()
        loss = (losses.sum(dtype=torch.float64) / (frames * features)).float()
        if need_grad:
            scale = 2.0 / (frames * float(features) ** 2)
            scale = scale.float() if isinstance(scale, Tensor) else scale
            for gradient in (grad_z, *sums):
                gradient *= scale
    return loss, grad_z.view(clips, time, latent) if need_grad else grad_z, sums[0], sums[1], sums[2], sums[3]
