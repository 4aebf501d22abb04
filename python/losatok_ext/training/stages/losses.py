"""The losses of the tokenizer stage."""

from __future__ import annotations

from torch import Tensor

from losatok_ext.models import LoSATok
from losatok_ext.models.tokenizer.latents import DecodedBatch
from losatok_ext.nn.losses import SEMANTIC_DISTANCES, kl_divergence


def tokenizer_losses(model: LoSATok, batch: DecodedBatch, semantic_distance: str = "mse") -> dict[str, Tensor]:
    """The losses of a batch, unweighted float32 scalars by name.

    Args:
        model: that decoded the batch.
        batch: what ``model(audio, lengths)`` gave.
        semantic_distance: ``"mse"``, or ``"cosine"`` for 1 - cosine.

    Returns:
        ``mel``: multi-scale L1 mel between decoded and given audio; ``semantic_high``: distance of the acoustic from
        the semantic features [T, D]; ``semantic_low``: the same at d dimensions; ``kl``: in nats, at least
        ``config.kl_clamp`` per dimension. The semantic features take no gradient here. All are means over the valid
        frames of the batch. With a quantizer also ``quantizer``, the sum of its own losses (0 where it has none).
    """
    latents = batch.latents
    acoustic, semantic = latents.acoustic, latents.semantic
    acoustic_low, semantic_low = latents.acoustic_low, latents.semantic_low
    assert acoustic is not None
    assert semantic is not None
    assert acoustic_low is not None
    assert semantic_low is not None
    tokens = None if batch.lengths is None else latents.lengths
    distance = SEMANTIC_DISTANCES[semantic_distance]
    losses = {
        "mel": model.mel_loss(batch.audio, batch.target, batch.lengths),
        "semantic_high": distance(acoustic, semantic, tokens),
        "semantic_low": distance(acoustic_low, semantic_low, tokens),
        "kl": kl_divergence(latents.mu, latents.logvar, tokens, model.config.kl_clamp),
    }
    if batch.quantizer_loss is not None:
        losses["quantizer"] = batch.quantizer_loss
    return losses
