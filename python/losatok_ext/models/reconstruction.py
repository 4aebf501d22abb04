"""What a training step of the tokenizer made of a batch, for losses that come on top of its own."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from losatok_ext.models.latents import Latents


class Reconstruction(NamedTuple):
    """Decoded clips beside the recorded ones, with gradients to what was trained.

    Attributes:
        latents: with the features of both encoders; not truncated, not quantized.
        audio: [B, N] float32, decoded; zeros past a clip's end.
        target: [B, N] float32, recorded.
        lengths: [B] int64, samples of each that were decoded and recorded; None: all N.
    """

    latents: Latents
    audio: Tensor
    target: Tensor
    lengths: Tensor | None
