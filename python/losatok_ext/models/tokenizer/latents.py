"""What a batch of clips is encoded to, and what it is decoded to in training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Latents:
    """The latents of B clips, at most T tokens long; everything past a clip's tokens is zero.

    Attributes:
        z: [B, T, d]; the sample or, in inference by default, ``mu``; with a quantizer the quantized latents.
        mu: [B, T, d], mean of the posterior.
        logvar: [B, T, d], its log variance, within -20..20.
        lengths: [B] int64, tokens of each clip.
        codes: int64 codes of ``z``, [B, T], or [B, T, Q] where a token has several; -1 past a clip's tokens. None
            without a quantizer.
        dims: [B] int64, dimensions that were kept of each clip; the others are zero in ``z``, ``mu`` and ``logvar``.
            None: all were kept.
        semantic: [B, T, D], features of the semantic encoder at the token rate. This and the following ones are None
            unless they were asked for.
        semantic_low: [B, T, d], the same through the bottleneck.
        acoustic: [B, T, D], features of the acoustic encoder.
        acoustic_low: [B, T, d], the same through ``fc_a``.
        unified: [B, T, D], ``semantic + acoustic``.
        unified_low: [B, T, d], ``semantic_low + acoustic_low``, of which ``mu`` and ``logvar`` are linear maps.
    """

    z: Tensor
    mu: Tensor
    logvar: Tensor
    lengths: Tensor
    codes: Tensor | None = None
    dims: Tensor | None = None
    semantic: Tensor | None = None
    semantic_low: Tensor | None = None
    acoustic: Tensor | None = None
    acoustic_low: Tensor | None = None
    unified: Tensor | None = None
    unified_low: Tensor | None = None

    def to(self, device: torch.device | str) -> Latents:
        """The same latents on ``device``."""
        moved = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: x.to(device) for name, x in moved.items() if x is not None})


class DecodedBatch(NamedTuple):
    """A training batch, encoded and decoded, with gradients to whatever takes gradients.

    Attributes:
        latents: with the features of both encoders; neither cut to fewer dimensions nor quantized.
        audio: [B, N] float32, the decoded clips; zeros past a clip's end.
        target: [B, N] float32, the given clips.
        lengths: [B] int64, samples of each clip that were both given and decoded; None: all N.
        quantizer_loss: the sum of the quantizer's own losses, a float32 scalar; None without a quantizer.
    """

    latents: Latents
    audio: Tensor
    target: Tensor
    lengths: Tensor | None
    quantizer_loss: Tensor | None
