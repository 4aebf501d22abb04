"""From clips to latents: what :meth:`LoSATok.encode` and a training step have in common, with gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from losatok_ext.masks import keep_valid
from losatok_ext.models.tokenizer import nested
from losatok_ext.models.tokenizer.inputs import as_batch, clip_lengths, require_finite, resample_clips
from losatok_ext.models.tokenizer.latents import Latents
from losatok_ext.nn import noise
from losatok_ext.nn.bottleneck import upsample_tokens

if TYPE_CHECKING:
    from losatok_ext.models.tokenizer.losatok import LoSATok


def prepare(
    model: LoSATok, audio: Tensor, sample_rate: int, lengths: Tensor | Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Clips [B, N] float32 on the model's device, at its rate, cut to the longest; lengths [B] on the CPU.

    Raises:
        TypeError, ValueError, UserError: as :meth:`LoSATok.encode`.
    """
    audio = as_batch(audio)
    counts = clip_lengths(lengths, *audio.shape)
    require_finite("audio", audio, counts)
    audio = audio.detach().float()
    if sample_rate != model.sample_rate:
        audio, counts = resample_clips(audio, counts, sample_rate, model.sample_rate)
    longest = int(counts.max()) if len(counts) else 0
    return audio[:, :longest].to(model.device), counts


def encode(
    model: LoSATok,
    audio: Tensor,
    lengths: Tensor,
    sample: bool = False,
    high: bool = False,
    generator: torch.Generator | None = None,
    teacher: tuple[Tensor, Tensor] | None = None,
) -> Latents:
    """Latents of clips [B, N] with ``lengths`` [B], with gradients, not quantized; ``high`` keeps the features."""
    factor = model.config.semantic_upsampling
    if teacher is None:
        teacher = model.semantic_encoder(audio, lengths, None if high else model.bottleneck.down)
    semantic, semantic_lengths = teacher
    semantic_low = model.bottleneck.down(semantic) if high else semantic
    acoustic, acoustic_lengths = model.acoustic_encoder(audio, lengths.to(audio.device))
    time = min(semantic.shape[1] * factor, acoustic.shape[1])
    tokens = torch.minimum(semantic_lengths * factor, acoustic_lengths)
    acoustic = acoustic[:, :time]
    acoustic_low = model.fc_a(acoustic.to(model.fc_a.weight.dtype))
    semantic_low = upsample_tokens(semantic_low, factor, semantic_lengths)[:, :time]
    unified_low = acoustic_low + semantic_low
    mu, logvar = model.fc_mu(unified_low), model.fc_logvar(unified_low).clamp(-20.0, 20.0)
    z = mu
    if sample:
        drawn = noise.normal(mu.shape, dtype=mu.dtype, device=mu.device, generator=generator)
        z = mu + (0.5 * logvar).exp() * drawn
    ours = {"z": z, "mu": mu, "logvar": logvar}
    if high:
        semantic = upsample_tokens(semantic, factor, semantic_lengths)[:, :time]
        ours.update(semantic=semantic, semantic_low=semantic_low, acoustic=acoustic, acoustic_low=acoustic_low)
        ours.update(unified=semantic + acoustic, unified_low=unified_low)
    return Latents(lengths=tokens, **{name: keep_valid(value, tokens) for name, value in ours.items()})


def encode_within(
    model: LoSATok,
    clips: Tensor,
    lengths: Tensor,
    target_error: float,
    sample: bool = False,
    high: bool = False,
    generator: torch.Generator | None = None,
) -> Latents:
    """As :func:`encode`, of each clip the fewest dimensions whose ``1 - cosine`` is at most ``target_error``.

    Raises:
        UserError: the model has no nested latents.
    """
    sizes = nested.require_nested(model, "target_error")
    measure = nested.PrefixErrors(model.bottleneck, sizes)
    teacher, tokens = model.semantic_encoder(clips, lengths, None if high else measure)
    low, errors = (measure(teacher) if high else teacher).split([model.config.latent_dim, len(sizes)], dim=-1)
    branch = (teacher if high else low.to(model.fc_a.weight.dtype), tokens)
    latents = encode(model, clips, lengths, sample, high, generator, branch)
    return nested.truncate(latents, nested.least_dims(errors, tokens, sizes, target_error))


def quantized(model: LoSATok, latents: Latents) -> Latents:
    """With codes, and what they stand for as z, where there is a quantizer."""
    if model.quantizer is None:
        return latents
    z, codes = model.quantize(latents.z, latents.lengths)
    return dataclasses.replace(latents, z=z, codes=codes)
