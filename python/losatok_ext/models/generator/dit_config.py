"""The configuration of a diffusion transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from losatok_ext.configuration import Multiple, Range, Share
from losatok_ext.models.storage.stored_config import StoredConfig
from losatok_ext.nn.dit_attention import QKNorm
from losatok_ext.nn.dit_block import DiTBlockConfig
from losatok_ext.nn.feed_forward import Activation
from losatok_ext.nn.modulation import Gate, NormWeights

HUB = "hf:"
"""How the name of a Hugging Face text encoder begins in a configuration."""

Width = Annotated[int, Range(1, 65536)]
OptionalWidth = Annotated[int, Range(0, 65537)]  # 0: the part is left out; aligned_dim may be latent_dim + 1


@dataclass(frozen=True)
class DiTConfig(StoredConfig):
    """The parts and sizes of a :class:`DiT`. The defaults are the preset ``base``.

    Raises:
        ConfigError: a value of the wrong kind, or values that do not fit together.
    """

    latent_dim: Width = 128
    """d, width of the latents."""
    width: Width = 512
    """C, features of a frame inside the network."""
    depth: Annotated[int, Range(1, 512)] = 12
    """Number of transformer blocks."""
    heads: Width = 8
    """Number of attention heads; each has ``width / heads`` features."""
    mlp_ratio: Annotated[float, Range(above=0, most=64)] = 4.0
    """Hidden width of the feed-forward parts, divided by ``width``."""
    activation: Activation = "geglu"
    """Activation of the feed-forward parts: ``gelu``, ``gelu_tanh``; gated: ``geglu``, ``geglu_tanh``, ``swiglu``."""
    norm_weights: NormWeights = "none"
    """Learned weights of the layer norms besides the modulation: ``none``, ``scale`` or ``affine``."""
    qk_norm: QKNorm = "rms"
    """Norm of queries and keys over each head: ``none``, ``rms`` or ``layer``."""
    rotary: Share = 1.0
    """Share of a head's features that rotary embedding rotates. 0: no positions."""
    modulation: Literal["block", "shared"] = "block"
    """``block``: each block maps the condition to its modulation (adaLN); ``shared``: one map for all, and a learned
    table for each (adaLN-single), which has a quarter fewer weights."""
    modulation_rank: OptionalWidth = 0
    """Rank of maps for each block besides its table, with ``shared`` (adaLN-SOLA). 0: no such maps."""
    gate: Gate = "g"
    """Factor of a branch, computed from its part g of the modulation: ``g``, ``1-g``, ``tanh(1-g)``,
    ``sigmoid(1-g)``."""
    long_skip: bool = True
    """Merge the outputs of the first blocks into the last ones: the first into the last, the second into the last but
    one, and so on (U-shaped)."""
    time_features: Annotated[int, Range(2, 65536), Multiple(2)] = 256
    """Number of sines and cosines of the time from which its embedding is made; even."""
    text_encoder: str = "bytes"
    """``bytes``: a small transformer over UTF-8 bytes, part of the model and trained with it; ``hf:NAME_OR_PATH``: a
    frozen Hugging Face encoder, which is not stored with the model; ``none``: :class:`Conditions` hold text
    features."""
    text_dim: OptionalWidth = 512
    """C_text, width of the text features. 0: the model takes no text."""
    text_layers: Annotated[int, Range(0, 512)] = 6
    """Number of layers of the ``bytes`` encoder."""
    text_bytes: Annotated[int, Range(0, 2**20)] = 1024
    """Longest text of the ``bytes`` encoder, in bytes."""
    aligned_dim: OptionalWidth = 0
    """C_aligned, width of time-aligned conditions. 0: the model takes none."""
    global_dim: OptionalWidth = 0
    """C_global, width of conditions of the whole clip. 0: the model takes none."""
    tokenizer: str | None = None
    """Fingerprint of the LoSATok model whose latents this one was trained on (``LoSATok.fingerprint()``)."""

    def _check_fit(self) -> None:
        self._require(self.width % self.heads == 0, "heads", f"a divisor of width ({self.width})")
        named = self.text_encoder in ("bytes", "none") or bool(self.hub_name)
        self._require(named, "text_encoder", "'bytes', 'none' or 'hf:NAME_OR_PATH'")
        if self.text_encoder == "bytes" and self.text_dim:
            for name in ("text_layers", "text_bytes"):
                self._require(getattr(self, name) > 0, name, "above 0 for the 'bytes' encoder")
            self._require(self.text_dim % 32 == 0, "text_dim", "a multiple of 32 for the 'bytes' encoder")
        self.block(0)  # checks what concerns a block

    @property
    def hub_name(self) -> str | None:
        """Name or path of the Hugging Face text encoder, or None."""
        return self.text_encoder[len(HUB) :] if self.text_encoder.startswith(HUB) else None

    @property
    def skips(self) -> int:
        """Number of long skips: 5 with 12 blocks, as the two blocks in the middle have none."""
        return (self.depth - 1) // 2 if self.long_skip else 0

    @property
    def rotary_dim(self) -> int:
        """Number of features of each head that rotary embedding rotates."""
        return 2 * int(self.rotary * (self.width // self.heads) / 2)

    def block(self, index: int) -> DiTBlockConfig:
        """The configuration of block ``index``; the last :attr:`skips` blocks take a long skip."""
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
        """``"base"``: for LoSATok's 128-d latents, with the proportions of UniFlow-Audio (width 512, 12 blocks).

        ``"tiny"``: the same parts with a few million weights, for the tiny tokenizer's 64-d latents and for training
        on a CPU;
        ``"wide"``: the 1536 features that 1280-d latents need.
        """
        return PRESETS


PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    "tiny": {"latent_dim": 64, "width": 192, "depth": 6, "heads": 3, "text_dim": 128, "text_layers": 2},
    "wide": {"latent_dim": 1280, "width": 1536, "heads": 24},
}
"""Overrides of the defaults by name of the preset."""
