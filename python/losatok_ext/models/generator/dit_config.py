"""The configuration of a generator: typed, checked, and written to JSON as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from losatok_ext.models.storage.stored_config import StoredConfig
from losatok_ext.nn.dit_attention import QKNorm
from losatok_ext.nn.dit_block import DiTBlockConfig
from losatok_ext.nn.feed_forward import Activation
from losatok_ext.nn.fields import check_kinds, require
from losatok_ext.nn.modulation import Gate, NormWeights

HUB = "hf:"
"""How the name of a Hugging Face text encoder begins in a configuration."""


@dataclass(frozen=True)
class DiTConfig(StoredConfig):
    """What a :class:`DiT` is made of. The defaults are the preset ``base``.

    Raises:
        ConfigError: a value of the wrong kind, or values that do not fit together.
    """

    latent_dim: int = 128
    """d, width of the latents."""
    width: int = 512
    """C, features of a frame within."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 8
    """Attention heads; ``width / heads`` is their size."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward parts over ``width``."""
    activation: Activation = "geglu"
    """Of the feed-forward parts: ``gelu``, ``gelu_tanh``; gated: ``geglu``, ``geglu_tanh``, ``swiglu``."""
    norm_weights: NormWeights = "none"
    """Learned weights of the layer norms besides the modulation: ``none``, ``scale`` or ``affine``."""
    qk_norm: QKNorm = "rms"
    """Norm of queries and keys over each head: ``none``, ``rms`` or ``layer``."""
    rotary: float = 1.0
    """Share of a head's features that rotary embedding turns; 0: no positions at all."""
    modulation: Literal["block", "shared"] = "block"
    """``block``: each block maps the condition to its modulation (adaLN); ``shared``: one map for all, and a learned
    table for each (adaLN-single), with a quarter of the weights fewer."""
    modulation_rank: int = 0
    """With ``shared``, and above 0: low-rank maps for each block besides its table (adaLN-SOLA)."""
    gate: Gate = "g"
    """What multiplies a branch, from its part g of the modulation: ``g``, ``1-g``, ``tanh(1-g)``, ``sigmoid(1-g)``."""
    long_skip: bool = True
    """U-shaped: the outputs of the first blocks are merged into the last ones, the first into the last, and so on."""
    time_features: int = 256
    """Sines and cosines of the time that its embedding is made of; even."""
    text_encoder: str = "bytes"
    """``bytes``: a small transformer over UTF-8 bytes, part of the model and trained with it; ``hf:NAME_OR_PATH``: a
    frozen Hugging Face encoder, which is not stored with the model; ``none``: :class:`Conditions` bring features."""
    text_dim: int = 512
    """C_text, width of the text features; 0: the model takes no text."""
    text_layers: int = 6
    """Layers of the ``bytes`` encoder."""
    text_bytes: int = 1024
    """Longest text of the ``bytes`` encoder, in bytes."""
    aligned_dim: int = 0
    """C_aligned, width of time-aligned conditions; 0: none."""
    global_dim: int = 0
    """C_global, width of conditions of the whole clip; 0: none."""
    tokenizer: str | None = None
    """Fingerprint of the LoSATok model whose latents this one was trained on (``LoSATok.fingerprint()``)."""

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("latent_dim", "width", "depth", "heads", "time_features", "mlp_ratio"):
            require(getattr(self, name) > 0, name, "positive", getattr(self, name))
        fits = self.width % self.heads == 0
        require(fits, "heads", f"a divisor of width ({self.width})", self.heads)
        require(self.rotary <= 1, "rotary", "within 0..1", self.rotary)
        require(self.time_features % 2 == 0, "time_features", "even", self.time_features)
        named = self.text_encoder in ("bytes", "none") or bool(self.hub_name)
        require(named, "text_encoder", "'bytes', 'none' or 'hf:NAME_OR_PATH'", self.text_encoder)
        if self.text_encoder == "bytes" and self.text_dim:
            for name in ("text_layers", "text_bytes"):
                require(getattr(self, name) > 0, name, "positive", getattr(self, name))
            require(self.text_dim % 32 == 0, "text_dim", "a multiple of 32 for the 'bytes' encoder", self.text_dim)
        self.block(0)  # its own checks

    @property
    def hub_name(self) -> str | None:
        """Name or path of the Hugging Face text encoder, or None."""
        return self.text_encoder[len(HUB) :] if self.text_encoder.startswith(HUB) else None

    @property
    def skips(self) -> int:
        """Long skips: with 12 blocks 5, from the first to the last and so on; two blocks in the middle have none."""
        return (self.depth - 1) // 2 if self.long_skip else 0

    @property
    def rotary_dim(self) -> int:
        """Features of each head that rotary embedding turns."""
        return 2 * int(self.rotary * (self.width // self.heads) / 2)

    def block(self, index: int) -> DiTBlockConfig:
        """The configuration of block ``index``; the last :attr:`skips` blocks merge a long skip in."""
        return DiTBlockConfig(
            width=self.width,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            activation=self.activation,
            norm_weights=self.norm_weights,
            qkv_bias=False,
            qk_norm=self.qk_norm,
            rotary_dim=self.rotary_dim,
            modulation=self.modulation,
            modulation_rank=self.modulation_rank,
            gate=self.gate,
            aligned_dim=self.aligned_dim,
            aligned_norm=True,
            context_dim=self.width if self.text_dim else 0,
            context_norm=True,
            skip=index >= self.depth - self.skips,
            skip_norm=True,
        )

    @classmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """``"base"``: for LoSATok's 128-d latents, in the proportions of UniFlow-Audio (width 512, 12 blocks).

        ``"tiny"``: all its parts with a few million weights, for the tiny tokenizer's 64-d latents, to train on a CPU;
        ``"wide"``: the 1536 features that 1280-d latents need.
        """
        return PRESETS


PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    "tiny": {"latent_dim": 64, "width": 192, "depth": 6, "heads": 3, "text_dim": 128, "text_layers": 2},
    "wide": {"latent_dim": 1280, "width": 1536, "heads": 24},
}
"""Overrides of the defaults by name of the preset."""
