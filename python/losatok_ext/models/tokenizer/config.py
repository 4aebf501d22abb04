"""The configuration of a LoSATok model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from losatok_ext.configuration import Length, Multiple, NonNegative, Range
from losatok_ext.errors import ConfigError
from losatok_ext.models.storage.stored_config import StoredConfig
from losatok_ext.nn.quantizers import QuantizerConfig

SEMANTIC_PATCH = 4
"""Mel frames per token of the semantic encoder (25 tokens per second at a hop of 160)."""

# The upper bounds lie far above any model that can be trained today. They refuse a damaged or hostile config.json
# before a million modules are made for it.
Width = Annotated[int, Range(1, 65536)]
Depth = Annotated[int, Range(1, 512)]
MelBins = Annotated[int, Range(1, 1024)]
Window = Annotated[int, Range(1, 32768), Multiple(2)]
MelWindow = Annotated[int, Range(1, 8192), Multiple(4)]
Hop = Annotated[int, Range(1, 32768)]


@dataclass(frozen=True)
class LoSATokConfig(StoredConfig):
    """The parts and sizes of a LoSATok model. The defaults are the published model (about 804 M weights).

    Attributes:
        sample_rate: Hz of the audio the model works on.
        frame_rate: tokens per second; 25, or 50 (or 100), where the semantic features are interpolated.
        hop_length: samples between mel frames of both encoders.
        embed_dim: D, width of both encoders' features and of the decoder's input.
        depth: transformer blocks of the semantic encoder.
        num_heads: its attention heads; ``embed_dim / num_heads`` is the head size (80 in the published model).
        mlp_ratio: hidden width of its MLPs, divided by ``embed_dim``.
        semantic_mels: mel bins of the semantic encoder.
        semantic_n_fft: window length of that mel in samples.
        top_db: decibels below a clip's peak; quieter values of its mel are raised to that level.
        chunk_frames: mel frames that the semantic encoder sees at once (1008: 10.08 s, 252 tokens).
        chunk_batch: chunks that go through the semantic encoder at once in inference: bounds its memory on long
            recordings.
        latent_dim: d, width of the latent.
        bottleneck_dim: hidden width of the semantic bottleneck.
        acoustic_mels: mel bins of the acoustic encoder.
        acoustic_n_fft: window length of that mel in samples.
        decoder_dim: width of the decoder's backbone.
        decoder_depth: number of its ConvNeXt blocks.
        decoder_hidden: hidden width of these blocks.
        istft_n_fft: window length in samples of the decoder's inverse STFT.
        istft_hop: samples between its frames.
        kl_clamp: nats per dimension and frame below which the KL loss has no gradient.
        mel_loss_windows: window lengths in samples of the multi-scale mel loss; the hop is a quarter of each.
        mel_loss_bins: mel bins at each of these scales.
        nested_dims: numbers of leading dimensions of a latent that can be used alone, ascending to ``latent_dim``;
            empty: only the whole latent can.
        quantizer: what turns the latent into codes (a configuration of :mod:`losatok_ext.nn.quantizers`, or what its
            ``to_dict`` gave), or None for a continuous latent.
        semantic: the semantic encoder where it is one of Hugging Face transformers (what
            :func:`losatok_ext.models.tokenizer.huggingface_encoder.describe` gave; ``depth``, ``num_heads`` and the
            encoder's other sizes are then not used), or None for the published one.

    Raises:
        ConfigError: a value of the wrong kind, or values that do not fit together.
    """

    sample_rate: Annotated[int, Range(1, 1_000_000)] = 16000
    frame_rate: Annotated[int, Range(1, 1_000_000)] = 25
    hop_length: Hop = 160
    embed_dim: Width = 1280
    depth: Depth = 32
    num_heads: Width = 16
    mlp_ratio: Annotated[int, Range(1, 64)] = 4
    semantic_mels: MelBins = 64
    semantic_n_fft: Window = 512
    top_db: NonNegative = 120.0
    chunk_frames: Annotated[int, Range(1, 1_000_000), Multiple(SEMANTIC_PATCH)] = 1008
    chunk_batch: Annotated[int, Range(1, 65536)] = 16
    latent_dim: Width = 128
    bottleneck_dim: Width = 512
    acoustic_mels: MelBins = 128
    acoustic_n_fft: Window = 1024
    decoder_dim: Width = 1280
    decoder_depth: Depth = 12
    decoder_hidden: Width = 5120
    istft_n_fft: Window = 1280
    istft_hop: Hop = 320
    kl_clamp: NonNegative = 0.0
    mel_loss_windows: Annotated[tuple[MelWindow, ...], Length(1, 16)] = (32, 64, 128, 256, 512, 1024, 2048)
    mel_loss_bins: Annotated[tuple[MelBins, ...], Length(1, 16)] = (5, 10, 20, 40, 80, 160, 320)
    nested_dims: Annotated[tuple[Width, ...], Length(0, 64)] = ()
    quantizer: QuantizerConfig | None = None
    semantic: dict[str, Any] | None = None

    def _check_fit(self) -> None:
        semantic_rate = self.sample_rate / (self.hop_length * SEMANTIC_PATCH)
        rates = [factor * semantic_rate for factor in (1, 2, 4)]
        self._require(
            self.frame_rate in rates,
            "frame_rate",
            f"{rates[0]:g}, {rates[1]:g} or {rates[2]:g} tokens per second",
        )
        self._require(self.embed_dim % self.num_heads == 0, "num_heads", f"a divisor of embed_dim ({self.embed_dim})")
        fits = self.samples_per_token % self.istft_hop == 0
        self._require(fits, "istft_hop", f"a divisor of the {self.samples_per_token} samples per token")
        fits = self.istft_n_fft % self.istft_hop == 0 and (self.istft_n_fft - self.istft_hop) % 2 == 0
        self._require(
            fits, "istft_n_fft", f"a multiple of istft_hop ({self.istft_hop}), an even number of samples above it"
        )
        nested = self.nested_dims
        self._require(
            not nested or (list(nested) == sorted(set(nested)) and nested[-1] == self.latent_dim),
            "nested_dims",
            f"empty, or ascending to latent_dim ({self.latent_dim})",
        )
        same = len(self.mel_loss_bins) == len(self.mel_loss_windows)
        self._require(same, "mel_loss_bins", f"as long as mel_loss_windows ({len(self.mel_loss_windows)})")
        keys = ["architecture", "extractor", "layer"]
        fits = self.semantic is None or sorted(self.semantic) == keys
        self._require(fits, "semantic", f"a mapping of {', '.join(keys)}, or null")
        if self.quantizer is not None:
            self.quantizer.check_dim(self.latent_dim)

    @property
    def samples_per_token(self) -> int:
        """Samples of audio that one token decodes to."""
        return self.sample_rate // self.frame_rate

    @property
    def acoustic_patch(self) -> int:
        """Mel frames per token of the acoustic encoder."""
        return self.samples_per_token // self.hop_length

    @property
    def semantic_upsampling(self) -> int:
        """Tokens per semantic token (1 at 25 Hz)."""
        return SEMANTIC_PATCH // self.acoustic_patch

    @property
    def upsample_tokens(self) -> int:
        """Frames of the decoder's inverse STFT per token."""
        return self.samples_per_token // self.istft_hop

    @property
    def head_dim(self) -> int:
        """Size of an attention head of the semantic encoder."""
        return self.embed_dim // self.num_heads

    def token_count(self, samples: int) -> int:
        """Tokens that a clip of that many samples (at ``sample_rate``) is encoded to.

        The mel has ``samples // hop_length + 1`` frames, whole patches of them are tokens, and both encoders are cut to
        the shorter; a clip of less than three quarters of a token (480 samples in the published model) has none.
        """
        frames = samples // self.hop_length + 1 if samples > 0 else 0
        return min(frames // SEMANTIC_PATCH * self.semantic_upsampling, frames // self.acoustic_patch)

    def covering_samples(self, samples: int) -> int:
        """The length to which a clip of that many samples is continued so that its tokens decode to all of it.

        ``samples`` itself when they do already; else the end of the semantic encoder's last patch (640 samples).
        """
        if self.token_count(samples) * self.samples_per_token >= samples:
            return samples
        patch = self.samples_per_token * self.semantic_upsampling
        return -(-samples // patch) * patch

    @classmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """``"base"``: the published model; ``"tiny"``: the same parts with a few million weights, for training on a
        CPU."""
        return PRESETS

    @classmethod
    def from_published(cls, values: Mapping[str, Any], hidden_dim: int = 512, frame_rate: int = 25) -> LoSATokConfig:
        """The configuration that the published code writes as ``values``.

        Args:
            values: the published names (``embed_dim, depth, num_heads, decoder_dim, decoder_embed_dim, decoder_depth,
                decoder_intermediate_size, istft_n_fft, istft_hop, upsample_tokens, n_mels_patch, hop_length,
                patch_stride_time``).
            hidden_dim: hidden width of the semantic bottleneck, which is not in ``values``.
            frame_rate: tokens per second, which is not in ``values`` either.

        Raises:
            ConfigError: an unknown key, or values that contradict each other.
        """
        unknown = [str(key) for key in values if key not in _PUBLISHED and key not in _PUBLISHED_DERIVED]
        if unknown:
            known = ", ".join([*_PUBLISHED, *_PUBLISHED_DERIVED])
            raise ConfigError(f"unknown key {unknown[0]!r} in the published configuration; known are {known}")
        ours = {_PUBLISHED[key]: value for key, value in values.items() if key in _PUBLISHED}
        config = cls(**ours, bottleneck_dim=hidden_dim, frame_rate=frame_rate)
        for key, name in _PUBLISHED_DERIVED.items():
            if key in values and values[key] != getattr(config, name):
                raise ConfigError(
                    f"{key} is {values[key]!r} in the published configuration, "
                    f"but frame_rate={frame_rate} and the hops make it {getattr(config, name)}; "
                    "pass the frame_rate the checkpoint was trained for"
                )
        return config

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, of what JSON has; without ``nested_dims``, ``quantizer`` and ``semantic`` where there is
        none."""
        optional = ("nested_dims", "quantizer", "semantic")
        return {name: value for name, value in super().to_dict().items() if value or name not in optional}


_PUBLISHED = {
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "decoder_dim": "latent_dim",
    "decoder_embed_dim": "decoder_dim",
    "decoder_depth": "decoder_depth",
    "decoder_intermediate_size": "decoder_hidden",
    "istft_n_fft": "istft_n_fft",
    "istft_hop": "istft_hop",
    "n_mels_patch": "acoustic_mels",
    "hop_length": "hop_length",
}
_PUBLISHED_DERIVED = {"upsample_tokens": "upsample_tokens", "patch_stride_time": "acoustic_patch"}

PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    "tiny": {
        "embed_dim": 160,
        "depth": 4,
        "num_heads": 2,
        "latent_dim": 64,
        "bottleneck_dim": 96,
        "decoder_dim": 256,
        "decoder_depth": 6,
        "decoder_hidden": 768,
        "mel_loss_windows": [128, 512, 2048],
        "mel_loss_bins": [20, 80, 160],
    },
}
"""Overrides of the published model by name of the preset."""
