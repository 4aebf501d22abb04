"""A valid call of every public op, small, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from losatok_ext import ops

Call = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""A name, a function and arguments that it takes."""


def public_calls() -> list[Call]:
    """A call of each public op, with as many of its arguments as go together."""
    torch.manual_seed(0)
    r, lengths = torch.randn, torch.tensor([5, 3])
    q = r(2, 5, 4, 16)
    angles = r(5, 8)
    packed, scale, offset = ops.affine_quantize(r(2, 6, 8), 4)
    codes = torch.randint(0, 7, (2, 5, 3))
    window = torch.hann_window(16)
    return [
        ("bottleneck_project", ops.bottleneck_project, (r(2, 5, 8), r(16, 8), r(16), r(4, 16), r(4), "gelu")),
        (
            "normalized_reconstruction_loss",
            ops.normalized_reconstruction_loss,
            (r(2, 5, 4), r(2, 5, 8), r(16, 4), r(16), r(8, 16), r(8), lengths, "silu"),
        ),
        ("time_relation_loss", ops.time_relation_loss, (r(2, 5, 4), r(2, 5, 8), lengths, 2, "auto", r(2).abs())),
        ("gram_energy", ops.gram_energy, (r(2, 5, 8), lengths, 2)),
        ("dit_attention", ops.dit_attention, (q, q, q, r(16), r(16), (angles.cos(), angles.sin()), lengths, "rms")),
        ("layer_norm_modulate", ops.layer_norm_modulate, (r(2, 5, 8), r(2, 8), r(2, 8), 1e-6)),
        ("gated_residual", ops.gated_residual, (r(2, 5, 8), r(2, 5, 8), r(2, 8))),
        ("vq_nearest", ops.vq_nearest, (r(2, 5, 8), r(7, 8), lengths, "exact")),
        ("rvq_encode", ops.rvq_encode, (r(2, 5, 8), r(3, 7, 8), lengths, "fast")),
        ("rvq_decode", ops.rvq_decode, (codes, r(3, 7, 8))),
        ("fsq_quantize", ops.fsq_quantize, (r(2, 5, 3), (8, 5, 5), lengths)),
        ("fsq_dequantize", ops.fsq_dequantize, (codes[..., 0], (8, 5, 5))),
        ("affine_quantize", ops.affine_quantize, (r(2, 6, 8), 4)),
        ("affine_dequantize", ops.affine_dequantize, (packed, scale, offset, 4, -1, 8)),
        ("int8_linear", ops.int8_linear, (r(2, 5, 8), torch.ones(4, 8, dtype=torch.int8), torch.ones(4), r(4))),
        ("depthwise_conv_norm", ops.depthwise_conv_norm, (r(2, 5, 8), r(8, 7), r(8), r(8), r(8), 1e-6, lengths)),
        ("polar_istft", ops.polar_istft, (r(2, 5, 18), window, 4, lengths)),
    ]
