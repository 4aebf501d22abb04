"""LoSATok: a continuous audio tokenizer whose low-dimensional latent serves understanding and generation alike.

Source: arXiv 2605.27840. Two encoders, a frozen semantic and a trained acoustic one, meet in a d-dimensional VAE latent
at 25 (or 50) tokens per second; a ConvNeXt decoder with an inverse STFT head turns it back into 16 kHz audio.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext.errors import UserError
from losatok_ext.masks import keep_valid
from losatok_ext.models.storage import precision
from losatok_ext.models.tokenizer import encoding, nested
from losatok_ext.models.tokenizer.acoustic import AcousticEncoder
from losatok_ext.models.tokenizer.config import LoSATokConfig
from losatok_ext.models.tokenizer.dasheng import SemanticEncoder, init_semantic_encoder
from losatok_ext.models.tokenizer.decoder import Decoder, init_decoder
from losatok_ext.models.tokenizer.huggingface_encoder import HuggingFaceEncoder
from losatok_ext.models.tokenizer.inputs import as_batch, clip_lengths, require_finite, require_latents
from losatok_ext.models.tokenizer.latents import Latents
from losatok_ext.models.tokenizer.quantization import code_sizes, quantizer_name
from losatok_ext.models.tokenizer.reconstruction import Reconstruction, batch_losses
from losatok_ext.models.tokenizer.stored_tokenizer import StoredTokenizer
from losatok_ext.nn.bottleneck import Bottleneck
from losatok_ext.nn.losses import MultiScaleMelLoss
from losatok_ext.nn.quantizers import build_quantizer

INITIAL_LOGVAR = -4.0
"""Log variance of a new model's posterior. Noise of variance 1 would drown its first latents: on the bundled recordings
the tiny preset's mel loss after 150 steps is 0.45 with -4 and 0.50 with 0."""

STAGES = {
    "sembo": ("bottleneck",),
    "tokenizer": ("acoustic_encoder", "fc_a", "fc_mu", "fc_logvar", "quantizer", "decoder"),
}
"""What each stage of training trains, where the model has it; the semantic encoder never."""


class LoSATok(StoredTokenizer):
    """The tokenizer. ``torch.manual_seed`` decides the random weights of a new one.

    A clip's latents and audio are the same alone, in any batch and behind any padding (to rounding). Encoding a clip of
    N samples gives ``config.token_count(N)`` tokens; decoding T tokens gives ``T * samples_per_token`` samples.

    Args:
        config: what to build; None is the published model.
    """

    def __init__(self, config: LoSATokConfig | None = None) -> None:
        super().__init__()
        self.config = config = LoSATokConfig() if config is None else config
        d = config.latent_dim
        self.semantic_encoder: SemanticEncoder | HuggingFaceEncoder = (
            SemanticEncoder(config) if config.semantic is None else HuggingFaceEncoder(config)
        )
        self.bottleneck = Bottleneck(config.embed_dim, config.bottleneck_dim, d)
        self.acoustic_encoder = AcousticEncoder(config)
        self.fc_a = nn.Linear(config.embed_dim, d)
        self.fc_mu = nn.Linear(d, d)
        self.fc_logvar = nn.Linear(d, d)
        self.decoder = Decoder(config)
        self.mel_loss = MultiScaleMelLoss(config.mel_loss_windows, config.mel_loss_bins, config.sample_rate)
        nn.init.constant_(self.fc_logvar.bias, INITIAL_LOGVAR)
        if isinstance(self.semantic_encoder, SemanticEncoder):
            init_semantic_encoder(self.semantic_encoder)
        init_decoder(self.decoder)
        # Last, so that all else is the same with and without one.
        self.quantizer = None
        if config.quantizer is not None:
            self.quantizer = build_quantizer(config.quantizer, d)

    @property
    def sample_rate(self) -> int:
        """Hz of the audio that :meth:`decode` gives."""
        return self.config.sample_rate

    @property
    def frame_rate(self) -> int:
        """Tokens per second."""
        return self.config.frame_rate

    @property
    def samples_per_token(self) -> int:
        """Samples that one token decodes to."""
        return self.config.samples_per_token

    @property
    def quantizer_name(self) -> str | None:
        """Kind and sizes of the quantizer, such as ``"rvq 8x1024"``; None where there is none."""
        return None if self.quantizer is None else quantizer_name(self.quantizer)

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """Codes that there are at each of the Q places of a token; empty without a quantizer."""
        return () if self.quantizer is None else code_sizes(self.quantizer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.fc_mu.weight.device

    # -- inference -----------------------------------------------------------------------------------------------------

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
            features: also return the high- and low-dimensional features of both encoders.
            generator: of the noise when ``sample``.
            dims: dimensions to keep, of all clips or of each: one of ``config.nested_dims``, which a model has that was
                trained for prefixes. The rest of ``z``, ``mu`` and ``logvar`` is zero.
            target_error: keep of each clip the fewest dimensions from which the semantic bottleneck restores the
                features of the semantic encoder with a mean ``1 - cosine`` of at most this; all where none does.

        Returns:
            Latents of B clips; T is the tokens of the longest. A clip of less than 3/4 of a token (480 samples in the
            published model) has none. Dtype: that of ``fc_mu``, the model's or float32. With a quantizer, ``codes``
            and, as ``z``, what they stand for.

        Raises:
            TypeError: ``audio`` is not a floating-point tensor.
            ValueError: a wrong shape, ``lengths`` outside 0..N, ``dims`` that were not trained, or both ``dims`` and
                ``target_error``.
            UserError: NaN or infinity within a clip, or a model without nested latents is to cut them.
        """
        clips, counts = encoding.prepare(self, audio, sample_rate, lengths)
        if dims is not None and target_error is not None:
            raise ValueError("dims and target_error should not both be given: the error decides the dimensions")
        if target_error is not None:
            return encoding.encode_within(self, clips, counts, target_error, sample, features, generator)
        kept = None if dims is None else nested.choose_dims(self, dims, len(clips))
        latents = encoding.encode(self, clips, counts, sample, features, generator)
        return encoding.quantized(self, latents) if kept is None else nested.truncate(latents, kept)

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
        """Encode and decode: what the model makes of each clip, as long as the clip.

        A clip that ends within a token is first continued with zeros to that token's end, so that its last samples are
        heard.

        Args:
            audio: as in :meth:`encode`.
            sample_rate: Hz of ``audio``.
            lengths: [B] samples of each clip, at ``sample_rate``.

        Returns:
            [B, N'] float32 at the model's sample rate, N' the samples of the longest clip at that rate; zeros past a
            clip's end. Raises as :meth:`encode`.
        """
        clips, counts = encoding.prepare(self, audio, sample_rate, lengths)
        covered = torch.tensor([self.config.covering_samples(n) for n in counts.tolist()], dtype=torch.int64)
        size = clips.shape[1]
        target = counts.to(self.device)
        longest = int(covered.max()) if len(covered) else 0
        padded = F.pad(keep_valid(clips, target), (0, max(longest - size, 0)))
        decoded = self.decode(encoding.quantized(self, encoding.encode(self, padded, covered)))
        return keep_valid(decoded[:, :size], target)

    @torch.no_grad()
    def quantize(self, mu: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the quantizer makes of latents, without gradients; without one, ``mu`` itself and None.

        Args:
            mu: [B, T, d] floating point; moved to the model's device and dtype.
            lengths: [B] int64 tokens of each clip; None: all T. What lies past is not read.

        Returns:
            (z [B, T, d] in the model's dtype, codes [B, T] or [B, T, Q] int64, -1 past a length).

        Raises:
            TypeError, ValueError: as :meth:`losatok_ext.nn.quantizers.Quantizer.forward`.
        """
        mu = mu.to(self.device, self.fc_mu.weight.dtype)
        if self.quantizer is None:
            return mu, None
        codes = self.quantizer.encode(mu, None if lengths is None else lengths.to(self.device))
        return self.quantizer.decode(codes).to(mu.dtype), codes

    @torch.no_grad()
    def dequantize(self, codes: Tensor) -> Tensor:
        """The latents z [B, T, d] that codes stand for, in the model's dtype; zeros where they are -1.

        Args:
            codes: [B, T, Q] int64, or [B, T] where a token has one.

        Raises:
            UserError: the model has no quantizer.
            TypeError, ValueError: codes that are not integers, out of range or of another shape.
        """
        if self.quantizer is None:
            raise UserError("this model has no quantizer, so codes mean nothing to it; decode latents with it")
        codes = codes.to(self.device)
        if not self.quantizer.code_dim and codes.dim() == 3 and codes.shape[-1] == 1:
            codes = codes.squeeze(-1)
        return self.quantizer.decode(codes).to(self.fc_mu.weight.dtype)

    @torch.no_grad()
    def teacher(self, audio: Tensor, lengths: Tensor | Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Features of the frozen semantic encoder, at its own 25 Hz whatever the token rate is.

        Args:
            audio: [N], [B, N] or [B, 1, N] floating point at the model's sample rate.
            lengths: [B] samples.

        Returns:
            (features [B, T, D], lengths [B] int64 in frames of 40 ms); zeros past a clip's. Raises as :meth:`encode`.
        """
        return self.semantic_encoder(*encoding.prepare(self, audio, self.sample_rate, lengths))

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        audio: Tensor,
        lengths: Tensor | None = None,
        sample: bool = True,
        sembo: bool = False,
        features: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
        semantic_distance: str = "mse",
        dims: Tensor | None = None,
        reconstruction: bool = False,
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], Reconstruction]:
        """The losses of a batch, unweighted float32 scalars by name, with gradients to whatever takes gradients.

        Args:
            audio: [B, N] (or [N], [B, 1, N]) at the model's sample rate.
            lengths: [B] int64 samples; None: all N. Kept on the CPU they cost a GPU no wait.
            sample: draw z from the posterior (else z = mu).
            sembo: add the losses of :meth:`sembo_losses`.
            features: what :meth:`teacher` gave for this batch, to spare computing it again.
            generator: of the noise.
            semantic_distance: ``"mse"``, or ``"cosine"`` for 1 - cosine.
            dims: [B] int64, dimensions of each clip's z that the decoder hears; the rest is zero to it. None: all.
            reconstruction: also return what was decoded.

        Returns:
            ``mel``: multi-scale L1 mel between decoded and given audio; ``semantic_high``: distance of acoustic from
            semantic features [T, D]; ``semantic_low``: the same at d dimensions; ``kl``: in nats, clamped below at
            ``config.kl_clamp`` per dimension. Semantic targets take no gradient. All are means over the valid frames of
            the whole batch. With a quantizer the decoder hears what it makes of z, and its own losses come with them as
            their sum, ``quantizer`` (0 where it has none). With ``reconstruction``, these and a
            :class:`~losatok_ext.models.tokenizer.reconstruction.Reconstruction`.
        """
        audio = as_batch(audio).to(self.device, torch.float32)
        counts = clip_lengths(lengths, *audio.shape) if lengths is None or lengths.device.type == "cpu" else lengths
        if features is None:
            features = self.semantic_encoder(audio, counts)
        latents = encoding.encode(self, audio, counts, sample, high=True, generator=generator, teacher=features)
        losses, made = batch_losses(self, latents, audio, None if lengths is None else counts, semantic_distance, dims)
        losses = {**losses, **self.sembo_losses(*features)} if sembo else losses
        return (losses, made) if reconstruction else losses

    def sembo_losses(
        self,
        features: Tensor,
        lengths: Tensor | None = None,
        window: int | None = None,
        high_energy: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``sembo_reconstruction`` and ``sembo_relation`` of features [B, T, D], over the prefixes that the model has;
        see :meth:`Bottleneck.losses`."""
        return self.bottleneck.losses(features, lengths, window, high_energy, self.config.nested_dims)

    def train_only(self, stage: str) -> list[nn.Parameter]:
        """Let gradients flow to what ``stage`` (``"sembo"`` or ``"tokenizer"``) trains and to nothing else.

        Returns:
            The weights it trains.

        Raises:
            ValueError: there is no such stage.
            UserError: what it trains is int8.
        """
        if stage not in STAGES:
            raise ValueError(f"stage should be one of {', '.join(map(repr, STAGES))}, got {stage!r}")
        self.requires_grad_(False)
        for name in STAGES[stage]:
            if getattr(self, name) is not None:
                precision.require_trainable(name, getattr(self, name))
                getattr(self, name).requires_grad_(True)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
