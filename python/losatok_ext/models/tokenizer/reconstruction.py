"""What a training step of the tokenizer makes of a batch: its losses, and what others that come on top need."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from losatok_ext.models.tokenizer import nested
from losatok_ext.models.tokenizer.latents import Latents
from losatok_ext.nn.losses import SEMANTIC_DISTANCES, kl_divergence

if TYPE_CHECKING:
    from losatok_ext.models.tokenizer.losatok import LoSATok


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


def batch_losses(
    model: LoSATok,
    latents: Latents,
    audio: Tensor,
    lengths: Tensor | None,
    semantic_distance: str = "mse",
    dims: Tensor | None = None,
) -> tuple[dict[str, Tensor], Reconstruction]:
    """Decode ``latents`` and compare: the losses of :meth:`LoSATok.forward` but SemBo's, and what was decoded.

    Args:
        model: the tokenizer.
        latents: of ``audio``, with the features of both encoders.
        audio: [B, N] float32 on the model's device.
        lengths: [B] int64 samples; None: all N.
        semantic_distance: ``"mse"`` or ``"cosine"``.
        dims: [B] int64, dimensions of each clip that the decoder hears; None: all.
    """
    tokens = latents.lengths
    acoustic, semantic = latents.acoustic, latents.semantic
    acoustic_low, semantic_low = latents.acoustic_low, latents.semantic_low
    assert acoustic is not None
    assert semantic is not None
    assert acoustic_low is not None
    assert semantic_low is not None
    z, own = (latents if dims is None else nested.truncate(latents, dims)).z, None
    if model.quantizer is not None:
        z, _, parts = model.quantizer(z, tokens)
        own = sum(parts.values(), z.new_zeros((), dtype=torch.float32))
    decoded = model.decoder(z, None if lengths is None else tokens)
    size = min(decoded.shape[1], audio.shape[1])
    heard = None if lengths is None else torch.minimum(tokens * model.samples_per_token, lengths.to(model.device))
    ragged = None if lengths is None else tokens
    made = Reconstruction(latents, decoded[:, :size], audio[:, :size], heard)
    distance = SEMANTIC_DISTANCES[semantic_distance]
    losses = {
        "mel": model.mel_loss(made.audio, made.target, heard),
        "semantic_high": distance(acoustic, semantic, ragged),
        "semantic_low": distance(acoustic_low, semantic_low, ragged),
        "kl": kl_divergence(latents.mu, latents.logvar, ragged, model.config.kl_clamp),
    }
    if own is not None:
        losses["quantizer"] = own
    return losses, made
