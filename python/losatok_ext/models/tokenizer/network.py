"""The modules of the tokenizer, and how a batch passes through them, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losatok_ext.masks import keep_valid
from losatok_ext.models.storage import precision
from losatok_ext.models.tokenizer import nested
from losatok_ext.models.tokenizer.acoustic import AcousticEncoder
from losatok_ext.models.tokenizer.config import LoSATokConfig
from losatok_ext.models.tokenizer.dasheng import SemanticEncoder, init_semantic_encoder
from losatok_ext.models.tokenizer.decoder import Decoder, init_decoder
from losatok_ext.models.tokenizer.huggingface_encoder import HuggingFaceEncoder
from losatok_ext.models.tokenizer.inputs import as_batch, clip_lengths
from losatok_ext.models.tokenizer.latents import DecodedBatch, Latents
from losatok_ext.models.tokenizer.quantization import code_sizes, quantizer_name
from losatok_ext.models.tokenizer.semantic import SemanticBranch, SemanticFeatures
from losatok_ext.models.tokenizer.stored_tokenizer import StoredTokenizer
from losatok_ext.nn import noise
from losatok_ext.nn.bottleneck import Bottleneck, upsample_tokens
from losatok_ext.nn.losses import MultiScaleMelLoss
from losatok_ext.nn.quantizers import build_quantizer

INITIAL_LOGVAR = -4.0
"""Log variance of a new model's posterior. Noise of variance 1 would hide its first latents: on the bundled recordings
the tiny preset's mel loss after 150 steps is 0.45 with -4 and 0.50 with 0."""

STAGES = {
    "sembo": ("bottleneck",),
    "tokenizer": ("acoustic_encoder", "fc_a", "fc_mu", "fc_logvar", "quantizer", "decoder"),
}
"""The parts that each stage of training trains, where the model has them; the semantic encoder is never trained."""


class TokenizerNetwork(StoredTokenizer):
    """Base of :class:`~losatok_ext.models.tokenizer.losatok.LoSATok`: its modules, and the passes of training.

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
        # Last, so that the other random weights are the same with and without a quantizer.
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
        return None if self.quantizer is None else quantizer_name(self.quantizer.config)

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """Number of different codes at each of the Q places of a token; empty without a quantizer."""
        return () if self.quantizer is None else code_sizes(self.quantizer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.fc_mu.weight.device

    @property
    def semantic(self) -> SemanticBranch:
        """The semantic encoder with the bottleneck behind it."""
        return SemanticBranch(self.semantic_encoder, self.bottleneck)

    def encode_clips(
        self,
        audio: Tensor,
        lengths: Tensor,
        semantic: SemanticFeatures,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> Latents:
        """Encode clips, with gradients; nothing is quantized.

        Args:
            audio: [B, N] float32 on the model's device, at its sample rate.
            lengths: [B] int64 samples.
            semantic: what :attr:`semantic` gives for these clips. Where it holds the D-dimensional features, the result
                holds the features of both encoders.
            sample: draw z from the posterior instead of taking its mean.
            generator: of the noise when ``sample``.
        """
        factor = self.config.semantic_upsampling
        acoustic, acoustic_lengths = self.acoustic_encoder(audio, lengths.to(audio.device))
        time = min(semantic.low.shape[1] * factor, acoustic.shape[1])
        tokens = torch.minimum(semantic.lengths * factor, acoustic_lengths)
        acoustic = acoustic[:, :time]
        acoustic_low = self.fc_a(acoustic.to(self.fc_a.weight.dtype))
        semantic_low = upsample_tokens(semantic.low, factor, semantic.lengths)[:, :time]
        unified_low = acoustic_low + semantic_low
        mu, logvar = self.fc_mu(unified_low), self.fc_logvar(unified_low).clamp(-20.0, 20.0)
        z = mu
        if sample:
            drawn = noise.normal(mu.shape, dtype=mu.dtype, device=mu.device, generator=generator)
            z = mu + (0.5 * logvar).exp() * drawn
        found = {"z": z, "mu": mu, "logvar": logvar}
        if semantic.high is not None:
            high = upsample_tokens(semantic.high, factor, semantic.lengths)[:, :time]
            found.update(semantic=high, semantic_low=semantic_low, acoustic=acoustic, acoustic_low=acoustic_low)
            found.update(unified=high + acoustic, unified_low=unified_low)
        return Latents(lengths=tokens, **{name: keep_valid(value, tokens) for name, value in found.items()})

    def forward(
        self,
        audio: Tensor,
        lengths: Tensor | None = None,
        sample: bool = True,
        features: tuple[Tensor, Tensor] | None = None,
        dims: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> DecodedBatch:
        """Encode and decode a training batch, with gradients to whatever takes gradients.

        The losses of the result are computed by :func:`losatok_ext.training.stages.losses.tokenizer_losses`. The
        decoder gets z; with a quantizer, the quantized z.

        Args:
            audio: [B, N] (or [N], [B, 1, N]) at the model's sample rate.
            lengths: [B] int64 samples; None: all N. If they are on the CPU, a GPU is not waited for.
            sample: draw z from the posterior instead of taking its mean.
            features: what :meth:`LoSATok.teacher` gave for this batch, if it is already known.
            dims: [B] int64, dimensions of each clip's z that the decoder gets; the others are zero. None: all.
            generator: of the noise when ``sample``.

        Raises:
            TypeError: ``audio`` is not a floating-point tensor.
            ValueError: a wrong shape, or ``lengths`` outside 0..N.
        """
        audio = as_batch(audio).to(self.device, torch.float32)
        counts = clip_lengths(lengths, *audio.shape) if lengths is None or lengths.device.type == "cpu" else lengths
        semantic = self.semantic.of_features(*(self.semantic_encoder(audio, counts) if features is None else features))
        latents = self.encode_clips(audio, counts, semantic, sample, generator)
        tokens = latents.lengths
        z, quantizer_loss = (latents if dims is None else nested.truncate(latents, dims)).z, None
        if self.quantizer is not None:
            z, _, parts = self.quantizer(z, tokens)
            quantizer_loss = sum(parts.values(), z.new_zeros((), dtype=torch.float32))
        decoded = self.decoder(z, None if lengths is None else tokens)
        size = min(decoded.shape[1], audio.shape[1])
        heard = None if lengths is None else torch.minimum(tokens * self.samples_per_token, counts.to(self.device))
        return DecodedBatch(latents, decoded[:, :size], audio[:, :size], heard, quantizer_loss)

    def sembo_losses(
        self,
        features: Tensor,
        lengths: Tensor | None = None,
        window: int | None = None,
        high_energy: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of the bottleneck, over the prefixes of ``config.nested_dims``; see :meth:`Bottleneck.losses`."""
        return self.bottleneck.losses(features, lengths, window, high_energy, self.config.nested_dims)

    def train_only(self, stage: str) -> list[nn.Parameter]:
        """Let only the parts that a stage of training trains take gradients.

        Args:
            stage: ``"sembo"`` or ``"tokenizer"``, a key of :data:`STAGES`.

        Returns:
            The parameters that take gradients.

        Raises:
            ValueError: there is no such stage.
            UserError: one of these parts is int8.
        """
        if stage not in STAGES:
            raise ValueError(f"stage should be one of {', '.join(map(repr, STAGES))}, got {stage!r}")
        self.requires_grad_(False)
        for name in STAGES[stage]:
            if getattr(self, name) is not None:
                precision.require_trainable(name, getattr(self, name))
                getattr(self, name).requires_grad_(True)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
