"""The configuration of a LoSATok model: typed, checked, and written to JSON as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from losatok_ext.errors import ConfigError
from losatok_ext.models.storage.stored_config import StoredConfig
from losatok_ext.nn.quantizers import QuantizerConfig, quantizer_config

SEMANTIC_PATCH = 4
"""Mel frames per token of the semantic encoder (25 tokens per second at a hop of 160)."""


@dataclass(frozen=True)
class LoSATokConfig(StoredConfig):
    """What a LoSATok model is made of. The defaults are the published model (about 804 M weights).

    Attributes:
        sample_rate: Hz of the audio the model works on.
        frame_rate: tokens per second; 25, or 50 (or 100), where the semantic features are interpolated.
        hop_length: samples between mel frames of both encoders.
        embed_dim: D, width of both encoders' features and of the decoder's input.
        depth: transformer blocks of the semantic encoder.
        num_heads: its attention heads; ``embed_dim / num_heads`` is the head size (80 in the published model).
        mlp_ratio: width of its MLPs over ``embed_dim``.
        semantic_mels: mel bins of the semantic encoder.
        semantic_n_fft: samples of its window.
        top_db: decibels below a clip's peak at which its mel is cut off.
        chunk_frames: mel frames that the semantic encoder sees at once (1008: 10.08 s, 252 tokens).
        chunk_batch: chunks that go through the semantic encoder at once in inference: bounds its memory on long
            recordings.
        latent_dim: d, width of the latent.
        bottleneck_dim: hidden width of the semantic bottleneck.
        acoustic_mels: mel bins of the acoustic encoder.
        acoustic_n_fft: samples of its window.
        decoder_dim: width of the decoder's backbone.
        decoder_depth: its ConvNeXt blocks.
        decoder_hidden: hidden width of these blocks.
        istft_n_fft: samples of the window of the decoder's inverse STFT.
        istft_hop: samples between its frames.
        kl_clamp: nats per dimension and frame below which the KL loss does not push.
        mel_loss_windows: window lengths in samples of the multi-scale mel loss; the hop is a quarter of each.
        mel_loss_bins: mel bins at each of these scales.
        nested_dims: sizes of the prefixes of a latent that are usable alone, ascending to ``latent_dim``; empty: only
            the whole latent is.
        quantizer: what turns the latent into codes (a configuration of :mod:`losatok_ext.nn.quantizers`, or what its
            ``to_dict`` gave), or None for a continuous latent.
        semantic: the semantic encoder where it is one of Hugging Face transformers (what
            :func:`losatok_ext.models.tokenizer.huggingface_encoder.describe` gave; ``depth``, ``num_heads`` and what
            else shapes the encoder play no part then), or None for the published one.

    Raises:
        ConfigError: a value of the wrong kind, or values that do not fit together.
    """

    sample_rate: int = 16000
    frame_rate: int = 25
    hop_length: int = 160
    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: int = 4
    semantic_mels: int = 64
    semantic_n_fft: int = 512
    top_db: float = 120.0
    chunk_frames: int = 1008
    chunk_batch: int = 16
    latent_dim: int = 128
    bottleneck_dim: int = 512
    acoustic_mels: int = 128
    acoustic_n_fft: int = 1024
    decoder_dim: int = 1280
    decoder_depth: int = 12
    decoder_hidden: int = 5120
    istft_n_fft: int = 1280
    istft_hop: int = 320
    kl_clamp: float = 0.0
    mel_loss_windows: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    mel_loss_bins: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320)
    nested_dims: tuple[int, ...] = ()
    quantizer: QuantizerConfig | None = None
    semantic: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                self._require(type(value) is int and value > 0, field.name, "a positive whole number", value)
            elif field.type == "float":
                number = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
                self._require(number, field.name, "a number of at least 0", value)
                object.__setattr__(self, field.name, float(value))
            elif field.name == "quantizer":
                if value is not None and not isinstance(value, QuantizerConfig):
                    object.__setattr__(self, field.name, quantizer_config(value))
            elif field.name == "semantic":
                keys = {"architecture", "extractor", "layer"}
                fits = value is None or (isinstance(value, Mapping) and set(value) == keys)
                self._require(fits, field.name, f"a mapping of {', '.join(sorted(keys))}, or None", value)
            else:
                numbers = isinstance(value, (list, tuple)) and all(type(v) is int and v > 0 for v in value)
                filled = numbers and (len(value) > 0 or field.name == "nested_dims")
                self._require(filled, field.name, "a list of positive whole numbers", value)
                object.__setattr__(self, field.name, tuple(value))
        self._check_fit()

    def _require(self, holds: bool, name: str, should: str, value: object) -> None:
        if not holds:
            raise ConfigError(f"{name} should be {should}, got {value!r}")

    def _check_fit(self) -> None:
        semantic_rate = self.sample_rate / (self.hop_length * SEMANTIC_PATCH)
        ratio = self.frame_rate / semantic_rate
        self._require(
            ratio in (1, 2, 4),
            "frame_rate",
            f"{semantic_rate:g}, {2 * semantic_rate:g} or {4 * semantic_rate:g} tokens per second",
            self.frame_rate,
        )
        self._require(
            self.embed_dim % self.num_heads == 0,
            "num_heads",
            f"a divisor of embed_dim ({self.embed_dim})",
            self.num_heads,
        )
        self._require(
            self.chunk_frames % SEMANTIC_PATCH == 0,
            "chunk_frames",
            f"a multiple of {SEMANTIC_PATCH}",
            self.chunk_frames,
        )
        fits = self.samples_per_token % self.istft_hop == 0
        self._require(fits, "istft_hop", f"a divisor of the {self.samples_per_token} samples per token", self.istft_hop)
        fits = self.istft_n_fft % self.istft_hop == 0 and (self.istft_n_fft - self.istft_hop) % 2 == 0
        self._require(
            fits,
            "istft_n_fft",
            f"a multiple of istft_hop ({self.istft_hop}), an even number of samples above it",
            self.istft_n_fft,
        )
        for name in ("semantic_n_fft", "acoustic_n_fft", "istft_n_fft"):
            self._require(getattr(self, name) % 2 == 0, name, "even", getattr(self, name))
        self._require(
            all(w % 4 == 0 for w in self.mel_loss_windows), "mel_loss_windows", "multiples of 4", self.mel_loss_windows
        )
        nested = self.nested_dims
        self._require(
            not nested or (list(nested) == sorted(set(nested)) and nested[-1] == self.latent_dim),
            "nested_dims",
            f"empty, or ascend to latent_dim ({self.latent_dim})",
            list(nested),
        )
        same = len(self.mel_loss_bins) == len(self.mel_loss_windows)
        self._require(
            same, "mel_loss_bins", f"as long as mel_loss_windows ({len(self.mel_loss_windows)})", self.mel_loss_bins
        )

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
        """``"base"``: the published model; ``"tiny"``: all its parts with a few million weights, to train on a CPU."""
        return PRESETS

    @classmethod
    def from_published(cls, values: Mapping[str, Any], hidden_dim: int = 512, frame_rate: int = 25) -> LoSATokConfig:
        """The configuration that the published code writes as ``values``.

        Args:
            values: the published names (``embed_dim, depth, num_heads, decoder_dim, decoder_embed_dim, decoder_depth,
                decoder_intermediate_size, istft_n_fft, istft_hop, upsample_tokens, n_mels_patch, hop_length,
                patch_stride_time``).
            hidden_dim: of the semantic bottleneck, which the published code keeps apart.
            frame_rate: tokens per second, likewise.

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
        """All fields by name, as JSON has them (lists for tuples); without ``nested_dims``, ``quantizer`` and
        ``semantic`` where there is none."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not self.nested_dims:
            del values["nested_dims"]
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        quantizer, semantic = values.pop("quantizer"), values.pop("semantic")
        if quantizer is not None:
            values["quantizer"] = quantizer.to_dict()
        return values if semantic is None else {**values, "semantic": dict(semantic)}


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
