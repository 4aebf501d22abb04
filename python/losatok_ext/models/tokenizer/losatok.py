"""LoSATok: a continuous audio tokenizer whose low-dimensional latents serve both understanding and generation.

Source: arXiv 2605.27840. A frozen semantic encoder and a trained acoustic encoder share a d-dimensional VAE latent at
25 (or 50) tokens per second; a ConvNeXt decoder with an inverse STFT turns it into 16 kHz audio again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.audio.resample import check_rate
from losatok_ext.errors import UserError
from losatok_ext.masks import keep_valid
from losatok_ext.models.tokenizer import nested
from losatok_ext.models.tokenizer.inputs import (
    as_batch,
    clip_lengths,
    require_finite,
    require_latents,
    resample_clips,
)
from losatok_ext.models.tokenizer.latents import Latents
from losatok_ext.models.tokenizer.network import TokenizerNetwork


class LoSATok(TokenizerNetwork):
    """The tokenizer. ``torch.manual_seed`` decides the random weights of a new one.

    A clip's latents and audio are the same alone, in any batch and behind any padding (to rounding). Encoding a clip of
    N samples gives ``config.token_count(N)`` tokens; decoding T tokens gives ``T * samples_per_token`` samples.

    Args:
        config: what to build; None is the published model.
    """

    @torch.no_grad()
    def encode(
        self,
        audio: Tensor,
        sample_rate: int = 16000,
        lengths: Tensor | Sequence[int] | None = None,
        sample: bool = False,
        features: bool = False,
        generator: torch.Generator | None = None,
        dims: int | Sequence[int] | Tensor | None = None,
        target_error: float | None = None,
    ) -> Latents:
        """Encode clips to latents, without gradients.

        Args:
            audio: [N], [B, N] or [B, 1, N], floating point, samples in -1..1. It is moved to the model's device.
            sample_rate: Hz of ``audio``; another rate than the model's is resampled (needs soxr).
            lengths: [B] samples of each clip, at ``sample_rate``; None: all N. What lies past is not read, even NaN.
            sample: draw z from the posterior instead of taking its mean.
            features: also return the D- and d-dimensional features of both encoders.
            generator: of the noise when ``sample``.
            dims: number of dimensions to keep, one for all clips or one for each: one of ``config.nested_dims``, for
                models that were trained for prefixes. The other dimensions of ``z``, ``mu`` and ``logvar`` are zero.
            target_error: keep the fewest dimensions of each clip from which the bottleneck restores the features of the
                semantic encoder with a mean ``1 - cosine`` of at most this; all, where no number is enough.

        Returns:
            Latents of B clips; T is the number of tokens of the longest clip. A clip of less than 3/4 of a token (480
            samples in the published model) has no token. Their dtype is that of ``fc_mu``. With a quantizer, ``codes``
            is set and ``z`` holds the quantized latents.

        Raises:
            TypeError: ``audio`` is not a floating-point tensor.
            ValueError: a wrong shape or sample rate, ``lengths`` outside 0..N, ``dims`` that were not trained, or both
                ``dims`` and ``target_error``.
            UserError: NaN or infinity within a clip; ``dims`` or ``target_error`` for a model without nested latents;
                or another sample rate and soxr is not installed.
        """
        clips, counts = self._prepare(audio, sample_rate, lengths)
        if dims is not None and target_error is not None:
            raise ValueError("dims and target_error should not both be given: the error decides the dimensions")
        kept: Tensor | None = None
        sizes: tuple[int, ...] = ()
        if target_error is not None:
            sizes = nested.require_nested(self.config, "target_error")
        if dims is not None:
            kept = nested.choose_dims(self.config, dims, len(clips)).to(self.device)
        semantic = self.semantic(clips, counts, features, sizes)
        latents = self.encode_clips(clips, counts, semantic, sample, generator)
        if semantic.errors is not None and target_error is not None:
            kept = nested.least_dims(semantic.errors, semantic.lengths, sizes, target_error)
        return self._quantized(latents) if kept is None else nested.truncate(latents, kept)

    @torch.no_grad()
    def decode(self, z: Tensor | Latents, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Decode latents to audio, without gradients (``model.decoder`` is the module with them).

        Args:
            z: [B, T, d], or Latents, whose ``z`` and ``lengths`` are taken.
            lengths: [B] tokens of each clip; None: all T. What lies past is not read.

        Returns:
            [B, samples_per_token T] float32 at the model's sample rate; zeros past a clip's end.

        Raises:
            TypeError: ``z`` is not a floating-point tensor.
            ValueError: a wrong shape, or ``lengths`` outside 0..T.
            UserError: NaN or infinity within a clip's tokens.
        """
        if isinstance(z, Latents):
            lengths = z.lengths if lengths is None else lengths
            z = z.z
        require_latents(z, self.config.latent_dim)
        counts = clip_lengths(lengths, *z.shape[:2])
        require_finite("z", z, counts)
        ragged = counts.to(self.device) if bool((counts < z.shape[1]).any()) else None
        return self.decoder.decode_long(z.to(self.device, self.decoder.upsample_weight.dtype), ragged)

    @torch.no_grad()
    def reconstruct(
        self, audio: Tensor, sample_rate: int = 16000, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Encode and decode clips; the result is as long as the clips.

        Zeros are added to a clip that ends within a token, so that its last samples are decoded too.

        Args:
            audio: as in :meth:`encode`.
            sample_rate: Hz of ``audio``.
            lengths: [B] samples of each clip, at ``sample_rate``.

        Returns:
            [B, N'] float32 at the model's sample rate, where N' is the number of samples of the longest clip; zeros
            past a clip's end.

        Raises:
            TypeError: ``audio`` is not a floating-point tensor.
            ValueError: a wrong shape, or ``lengths`` outside 0..N.
            UserError: NaN or infinity within a clip, or another sample rate and soxr is not installed.
        """
        clips, counts = self._prepare(audio, sample_rate, lengths)
        covered = torch.tensor([self.config.covering_samples(n) for n in counts.tolist()], dtype=torch.int64)
        size = clips.shape[1]
        target = counts.to(self.device)
        longest = int(covered.max()) if len(covered) else 0
        padded = F.pad(keep_valid(clips, target), (0, max(longest - size, 0)))
        latents = self.encode_clips(padded, covered, self.semantic(padded, covered))
        decoded = self.decode(self._quantized(latents))
        return keep_valid(decoded[:, :size], target)

    @torch.no_grad()
    def quantize(self, mu: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Quantize latents, without gradients; a model without a quantizer gives ``mu`` itself and None.

        Args:
            mu: [B, T, d] floating point; moved to the model's device and dtype.
            lengths: [B] int64 tokens of each clip; None: all T. What lies past is not read.

        Returns:
            (z [B, T, d] in the model's dtype, codes [B, T] or [B, T, Q] int64, -1 past a length).

        Raises:
            TypeError: ``mu`` is not a floating-point tensor, or ``lengths`` are not integers.
            ValueError: a wrong shape, or ``lengths`` outside 0..T.
        """
        mu = mu.to(self.device, self.fc_mu.weight.dtype)
        if self.quantizer is None:
            return mu, None
        codes = self.quantizer.encode(mu, None if lengths is None else lengths.to(self.device))
        return self.quantizer.decode(codes).to(mu.dtype), codes

    @torch.no_grad()
    def dequantize(self, codes: Tensor) -> Tensor:
        """The quantized latents z [B, T, d] of codes, in the model's dtype; zeros where codes are -1.

        Args:
            codes: [B, T, Q] int64, or [B, T] where a token has one.

        Raises:
            UserError: the model has no quantizer.
            TypeError, ValueError: codes that are not integers, out of range or of another shape.
        """
        if self.quantizer is None:
            raise UserError("this model has no quantizer and cannot read codes; decode latents with it")
        codes = codes.to(self.device)
        if not self.quantizer.code_dim and codes.dim() == 3 and codes.shape[-1] == 1:
            codes = codes.squeeze(-1)
        return self.quantizer.decode(codes).to(self.fc_mu.weight.dtype)

    @torch.no_grad()
    def teacher(self, audio: Tensor, lengths: Tensor | Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Features of the frozen semantic encoder, at its own 25 Hz, whatever the token rate is.

        Args:
            audio: [N], [B, N] or [B, 1, N] floating point at the model's sample rate.
            lengths: [B] samples.

        Returns:
            (features [B, T, D], lengths [B] int64 in frames of 40 ms); zeros past a clip's length.

        Raises:
            TypeError: ``audio`` is not a floating-point tensor.
            ValueError: a wrong shape, or ``lengths`` outside 0..N.
            UserError: NaN or infinity within a clip.
        """
        return self.semantic_encoder(*self._prepare(audio, self.sample_rate, lengths))

    def _prepare(
        self, audio: Tensor, sample_rate: int, lengths: Tensor | Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        """Clips [B, N] float32 on the model's device, at its sample rate, cut to the longest; lengths [B] on the CPU.

        Raises:
            TypeError: ``audio`` is not a floating-point tensor, or ``lengths`` are not whole numbers.
            ValueError: a wrong shape or sample rate, or ``lengths`` outside 0..N.
            UserError: NaN or infinity within a clip, or soxr is needed and not installed.
        """
        check_rate("sample_rate", sample_rate)
        audio = as_batch(audio)
        counts = clip_lengths(lengths, *audio.shape)
        require_finite("audio", audio, counts)
        audio = audio.detach().float()
        if sample_rate != self.sample_rate:
            audio, counts = resample_clips(audio, counts, sample_rate, self.sample_rate)
        longest = int(counts.max()) if len(counts) else 0
        return audio[:, :longest].to(self.device), counts

    def _quantized(self, latents: Latents) -> Latents:
        """``latents`` with codes, and z quantized, where the model has a quantizer."""
        if self.quantizer is None:
            return latents
        z, codes = self.quantize(latents.z, latents.lengths)
        return dataclasses.replace(latents, z=z, codes=codes)
