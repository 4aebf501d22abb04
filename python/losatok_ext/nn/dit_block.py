"""The block of a diffusion transformer on fused ops, with options for the blocks of many published models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from losatok_ext import ops
from losatok_ext.configuration import Configuration, Multiple, NonNegative, Positive, Range
from losatok_ext.nn.dit_attention import CrossAttention, QKNorm, Rope, SelfAttention
from losatok_ext.nn.feed_forward import Activation, FeedForward
from losatok_ext.nn.modulation import GATES, Gate, ModulatedNorm, Modulation, NormWeights

Order = Literal["shift scale gate", "scale shift gate", "gate shift scale", "gate scale shift"]

Width = Annotated[int, Range(1, 65536)]
OptionalWidth = Annotated[int, Range(0, 65537)]  # 0: the part is left out


@dataclass(frozen=True)
class DiTBlockConfig(Configuration):
    """The parts and sizes of a :class:`DiTBlock`. The defaults are DiT's (arXiv 2212.09748); docs/dit.md has those of
    other models.

    Raises:
        ConfigError: a value of the wrong kind, or values that do not fit together.
    """

    width: Width = 512
    """C, features of a frame."""
    heads: Width = 8
    """Number of attention heads."""
    head_dim: Width | None = None
    """Size of a head; None: ``width / heads``."""
    mlp_ratio: Annotated[float, Range(above=0, most=64)] = 4.0
    """Hidden width of the feed-forward part, divided by ``width``; the width is ``int(width * mlp_ratio)``."""
    activation: Activation = "gelu_tanh"
    """``gelu`` (erf), ``gelu_tanh``; gated: ``geglu``, ``geglu_tanh``, ``swiglu``. See :class:`FeedForward`."""
    norm_weights: NormWeights = "none"
    """Learned weights of the layer norms besides the modulation: ``none``, ``scale`` or ``affine``."""
    norm_eps: Positive = 1e-6
    """Added to the variance in every layer norm but that of queries and keys."""
    qkv_bias: bool = True
    """Biases of the projections to queries, keys and values."""
    out_bias: bool = True
    """Bias of the attentions' output maps."""
    qk_norm: QKNorm = "none"
    """Norm of queries and keys over each head: ``none``, ``rms``, ``layer``; with learned weights."""
    qk_bias: bool = False
    """Biases in the norm of queries and keys, with ``qk_norm`` ``layer``."""
    qk_eps: NonNegative = 1e-6
    """Added to the mean square or the variance in the norm of queries and keys."""
    rotary_dim: Annotated[int, Range(0, 65536), Multiple(2)] = 0
    """Number of features of each head that rotary embedding rotates, even. 0: none; ``head_dim``: all."""
    rotary_interleaved: bool = False
    """Rotate pairs of neighbours (2i, 2i + 1) instead of pairs from both halves (i, i + rotary_dim / 2)."""
    rotary_heads: OptionalWidth = 0
    """Number of heads that are rotated, the first ones. 0: all."""
    modulation: Literal["block", "shared", "none"] = "block"
    """``block``: a linear map of its own from the condition; ``shared``: a map that all blocks share, plus a learned
    table (adaLN-single); ``none``: plain norms and residuals."""
    modulation_order: Order = "shift scale gate"
    """Order of the rows of the linear map (of the table), first for attention, then for the feed-forward part."""
    modulation_bias: bool = True
    """Bias of the linear map."""
    modulation_rank: OptionalWidth = 0
    """Rank of two more linear maps for each part, with ``shared`` (adaLN-SOLA). 0: no such maps."""
    condition_dim: Width | None = None
    """Width of the condition; None: ``width``."""
    gate: Gate = "g"
    """Factor of the attention branch: ``g``, ``1-g``, ``tanh(1-g)``, ``sigmoid(1-g)``."""
    mlp_gate: Gate | None = None
    """Factor of the feed-forward branch; None: as ``gate``."""
    aligned_dim: OptionalWidth = 0
    """Width of time-aligned conditions, added to the frames after self-attention; 0: none."""
    aligned_norm: bool = False
    """Apply a layer norm to them first."""
    context_dim: OptionalWidth = 0
    """Width of a context for cross-attention (text); 0: none."""
    context_norm: bool = False
    """Apply a layer norm to the context first."""
    context_heads: OptionalWidth = 0
    """Number of heads of its keys and values, a divisor of ``heads``. 0: ``heads``."""
    skip: bool = False
    """Take the output of an earlier block, and merge both by a linear map (U-shaped long skip)."""
    skip_norm: bool = False
    """Apply one layer norm to both together first."""
    skip_bias: bool = True
    """Bias of that map."""
    zero_init: bool = True
    """Make a new block the identity (adaLN-zero), except for its skip."""

    def _check_fit(self) -> None:
        fits = self.head_dim is not None or self.width % self.heads == 0
        self._require(fits, "heads", f"a divisor of width ({self.width}) where head_dim is not given")
        self._require(self.rotary_dim <= self.head_size, "rotary_dim", f"at most the head size ({self.head_size})")
        self._require(self.rotary_heads <= self.heads, "rotary_heads", f"at most heads ({self.heads})")
        fits = self.context_heads == 0 or self.heads % self.context_heads == 0
        self._require(fits, "context_heads", f"a divisor of heads ({self.heads})")
        self._require(not self.qk_bias or self.qk_norm == "layer", "qk_norm", "'layer' with qk_bias")
        shared = self.modulation == "shared" or self.modulation_rank == 0
        self._require(shared, "modulation", "'shared' with modulation_rank")

    @property
    def head_size(self) -> int:
        """Features of a head."""
        return self.head_dim or self.width // self.heads


class DiTBlock(nn.Module):
    """A transformer block with conditions.

    Its steps, in this order: merge a long skip; self-attention with adaLN; add time-aligned conditions; cross-attention
    to a context; feed-forward with adaLN. :class:`DiTBlockConfig` says which of them a block has.

    Args:
        config: what to build.
    """

    def __init__(self, config: DiTBlockConfig) -> None:
        super().__init__()
        self.config = config
        c, width, heads, size = config, config.width, config.heads, config.head_size
        norm = (c.norm_weights, c.norm_eps)
        common: dict[str, Any] = {
            "qkv_bias": c.qkv_bias,
            "out_bias": c.out_bias,
            "qk_norm": c.qk_norm,
            "qk_bias": c.qk_bias,
            "eps": c.qk_eps,
        }
        self.modulation: Modulation | None = None
        if c.modulation != "none":
            self.modulation = Modulation(
                width, 6, c.condition_dim or width, c.modulation_bias, c.modulation == "shared", c.modulation_rank
            )
        order = c.modulation_order.split()
        self._order = [order.index(part) for part in ("shift", "scale", "gate")]
        self._gates = GATES[c.gate], GATES[c.mlp_gate or c.gate]

        self.skip_norm = nn.LayerNorm(2 * width, eps=c.norm_eps) if c.skip and c.skip_norm else None
        self.skip = nn.Linear(2 * width, width, bias=c.skip_bias) if c.skip else None
        self.attention_norm = ModulatedNorm(width, *norm)
        self.attention = SelfAttention(
            width, heads, size, **common, interleaved=c.rotary_interleaved, rotary_heads=c.rotary_heads
        )
        self.aligned_norm = nn.LayerNorm(c.aligned_dim, eps=c.norm_eps) if c.aligned_dim and c.aligned_norm else None
        self.aligned = nn.Linear(c.aligned_dim, width, bias=False) if c.aligned_dim else None
        self.cross_norm = ModulatedNorm(width, *norm) if c.context_dim else None
        self.context_norm = nn.LayerNorm(c.context_dim, eps=c.norm_eps) if c.context_dim and c.context_norm else None
        self.cross_attention: CrossAttention | None = None
        if c.context_dim:
            self.cross_attention = CrossAttention(
                width, c.context_dim, heads, size, context_heads=c.context_heads, **common
            )
        self.mlp_norm = ModulatedNorm(width, *norm)
        self.mlp = FeedForward(width, int(width * c.mlp_ratio), c.activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier initialization of linear maps, zero biases; with ``zero_init`` every branch gives zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if not self.config.zero_init:
            return
        ends = []
        if self.modulation is not None:
            self.modulation.reset_to_zero()
        for part, gate in ((self.attention.out, self.config.gate), (self.mlp.fc2, self.config.mlp_gate)):
            if (
                self.modulation is None or (gate or self.config.gate) != "g"
            ):  # otherwise its gate is zero, which is enough
                ends.append(part)
        ends += [self.aligned] if self.aligned is not None else []
        ends += [self.cross_attention.out] if self.cross_attention is not None else []
        for end in ends:
            nn.init.zeros_(end.weight)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        shared: Tensor | None = None,
        lengths: Tensor | None = None,
        rope: Rope | None = None,
        aligned: Tensor | None = None,
        context: Tensor | None = None,
        context_lengths: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """One step of the transformer.

        What lies past a length, NaN included, reaches nothing below it; what comes out there has no meaning. For
        finite gradients of the weights it should be finite, though: zero it once, before the first block
        (:class:`losatok_ext.models.DiT` does).

        Args:
            x: frames [B, T, C].
            condition: [B, condition_dim], or for each frame [B, T, condition_dim], after its activation (SiLU).
            shared: [B, 6 C] or [B, T, 6 C]: the modulation that all blocks share, with ``modulation="shared"``.
            lengths: [B] int64 frames of each item; None: all T.
            rope: (cos, sin) [T, rotary_dim / 2], of :class:`RotaryEmbedding`.
            aligned: time-aligned conditions [B, T, aligned_dim].
            context: [B, S, context_dim].
            context_lengths: [B] int64 of its rows; None: all S.
            skip: [B, T, C], the output of an earlier block.

        Returns:
            [B, T, C].

        Raises:
            ValueError: an input that the configuration asks for is missing, or one is given that it does not use.
        """
        c = self.config
        self._check("rope", rope, c.rotary_dim, f"rotary_dim={c.rotary_dim}")
        self._check("aligned", aligned, c.aligned_dim, f"aligned_dim={c.aligned_dim}")
        self._check("context", context, c.context_dim, f"context_dim={c.context_dim}")
        self._check("skip", skip, c.skip, f"skip={c.skip}")
        attention: list[Tensor | None] = [None] * 3
        mlp: list[Tensor | None] = [None] * 3
        if self.modulation is not None:
            parts = self.modulation(condition, shared)
            attention = [parts[index] for index in self._order]
            mlp = [parts[3 + index] for index in self._order]

        if self.skip is not None:
            both = torch.cat([x, skip], dim=-1)  # type: ignore[list-item]
            x = self.skip(both if self.skip_norm is None else self.skip_norm(both))
        shift, scale, gate = attention
        branch = self.attention(self.attention_norm(x, shift, scale), lengths, rope)
        x = x + branch if gate is None else ops.gated_residual(x, branch, self._gates[0](gate))
        if self.aligned is not None:
            assert aligned is not None
            x = x + self.aligned(aligned if self.aligned_norm is None else self.aligned_norm(aligned))
        if self.cross_attention is not None:
            assert context is not None
            assert self.cross_norm is not None
            context = context if self.context_norm is None else self.context_norm(context)
            x = x + self.cross_attention(self.cross_norm(x), context, lengths, context_lengths)
        shift, scale, gate = mlp
        branch = self.mlp(self.mlp_norm(x, shift, scale))
        return x + branch if gate is None else ops.gated_residual(x, branch, self._gates[1](gate))

    def _check(self, name: str, given: object, wanted: object, setting: str) -> None:
        if (given is None) == bool(wanted):
            fault = "should be given" if given is None else "should not be given"
            raise ValueError(f"{name} {fault}: the block is built with {setting}")
