"""The base class of all quantizers: their results, the shapes that they take, and the linear maps around them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from losatok_ext.masks import valid_mask, zero_past
from losatok_ext.nn.quantizers.config import QuantizerConfig
from losatok_ext.nn.quantizers.stages import draw_stages
from losatok_ext.ops import checks


class Quantized(NamedTuple):
    """The result of a quantizer.

    Attributes:
        quantized: the shape and dtype of the latents; 0 past a length. How its gradient reaches the
            latents depends on the kind of quantizer.
        codes: int64, [...] for latents [..., d], or [..., n] for n codes per token; -1 past a length.
        losses: weighted float32 (float64) scalars by name; a training step adds their sum to its loss. Empty in eval
            mode, and for quantizers without losses.
    """

    quantized: Tensor
    codes: Tensor
    losses: dict[str, Tensor]


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of distances, losses and statistics: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def frame_mask(lengths: Tensor | None, time: int) -> Tensor | None:
    """[B, T, 1] bool: True below ``lengths`` [B]; None if all frames are valid."""
    return None if lengths is None else valid_mask(lengths, time).unsqueeze(-1)


class Quantizer(nn.Module):
    """The base of all quantizers: latents [..., d] to codes and back.

    Args:
        config: of the kind.
        dim: d, features of the latents.
        inner_dim: number of features that are quantized. If it differs from d, the linear maps ``project_in`` and
            ``project_out`` map to it and back.
        code_dim: whether codes have a last dimension for several codes per token.

    A subclass defines ``_quantize``, ``_encode``, ``_decode``, ``codebook_size`` and ``bits_per_token``.
    """

    def __init__(self, config: QuantizerConfig, dim: int, inner_dim: int, code_dim: bool) -> None:
        super().__init__()
        if type(dim) is not int or dim < 1:
            raise ValueError(f"dim should be a positive whole number, the features of the latents, got {dim!r}")
        config.check_dim(dim)
        self.config = config
        self.dim, self.inner_dim, self.code_dim = dim, inner_dim, code_dim
        self.project_in = nn.Linear(dim, inner_dim) if inner_dim != dim else None
        self.project_out = nn.Linear(inner_dim, dim) if inner_dim != dim else None

    @property
    def codebook_size(self) -> int:
        """Number of different values of a code."""
        raise NotImplementedError

    @property
    def bits_per_token(self) -> float:
        """Bits of a token's codes, if all codes are equally likely."""
        raise NotImplementedError

    def _quantize(self, x: Tensor, lengths: Tensor | None, used: Tensor | None = None) -> Quantized:
        """x [B, T, inner_dim] in any floating dtype, ``used`` from :meth:`_draw_stages`; codes [B, T] or [B, T, n]."""
        raise NotImplementedError

    def _encode(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _decode(self, codes: Tensor) -> Tensor:
        """Codes [...] or [..., n] to float32 [..., inner_dim]."""
        raise NotImplementedError

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Quantized:
        """Quantize latents. In training mode the losses are computed too, and codebooks learn.

        Args:
            x: [..., d]; float32, bfloat16, float16 or float64. With ``lengths``, [B, T, d].
            lengths: [B] int64, valid tokens of each clip, or None for T. Values past a length, even NaN, have no
                effect.

        Raises:
            TypeError: an argument has a wrong type or dtype; the message names it.
            ValueError: shapes or devices do not fit, or lengths are outside 0..T (checked on the CPU only).
            BackendUnavailableError: see :func:`losatok_ext.use_backend`.
        """
        lengths, frames = self._enter(x, lengths)
        used = self._draw_stages(frames.shape[0], frames.device) if self.training else None
        quantized, codes, losses = self._forward(frames, lengths, used)
        return Quantized(quantized.view(x.shape), self._shaped(codes, x), losses)

    def _draw_stages(self, batch: int, device: torch.device) -> Tensor | None:
        """[B] int64, number of stages that each clip uses in a training step; None: all use all."""
        return draw_stages(self.config, batch, device)

    def _forward(self, frames: Tensor, lengths: Tensor | None, used: Tensor | None) -> Quantized:
        """The result of :meth:`forward` for ``frames`` [B, T, d]."""
        inner = self._inner(frames, lengths)
        with torch.autocast(frames.device.type, enabled=False):
            quantized, codes, losses = self._quantize(inner, lengths, used)
        quantized = quantized.to(inner.dtype)
        if self.project_out is not None:
            quantized = zero_past(self.project_out(quantized), frame_mask(lengths, frames.shape[1]))
        return Quantized(quantized.to(frames.dtype), codes, losses)

    @torch.no_grad()
    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The codes of ``x`` [..., d]: int64 [...] or [..., n], -1 past a length. Codebooks do not learn, in any mode.

        Raises:
            TypeError: an argument has a wrong type or dtype.
            ValueError: shapes or devices do not fit, or lengths are outside 0..T (checked on the CPU only).
            BackendUnavailableError: see :func:`losatok_ext.use_backend`.
        """
        lengths, frames = self._enter(x, lengths)
        return self._shaped(self._codes_of(frames, lengths), x)

    def _codes_of(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        """The result of :meth:`encode` for ``frames`` [B, T, d]."""
        inner = self._inner(frames, lengths)
        with torch.autocast(frames.device.type, enabled=False):
            return self._encode(inner, lengths)

    def decode(self, codes: Tensor) -> Tensor:
        """The quantized latents [..., d] of ``codes``; zeros where codes are -1.

        Args:
            codes: int64 [...], or [..., n], from :meth:`encode`.

        Returns:
            [..., d] in the dtype of ``project_out`` if there is one, else in float32 (float64 for a float64 codebook).

        Raises:
            TypeError: codes that are not integers.
            ValueError: codes out of range (checked on the CPU only), or of the wrong shape.
            BackendUnavailableError: see :func:`losatok_ext.use_backend`.
        """
        codes = checks.integers("codes", codes)
        if self.code_dim and codes.dim() == 0:
            raise ValueError("codes should have shape [..., n], n codes to a token, got a scalar")
        values = self._decode(codes)
        if self.project_out is None:
            return values
        first = codes[..., :1] if self.code_dim else codes.unsqueeze(-1)
        return zero_past(self.project_out(values.to(self.project_out.weight.dtype)), first >= 0)

    def _enter(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Checked lengths, and ``x`` as [B, T, d]."""
        lengths = checks.rows(x, lengths)
        if x.shape[-1] != self.dim:
            raise ValueError(f"x should have dim = {self.dim} features (its last size), got {x.shape[-1]}")
        return lengths, checks.as_batch(x)

    def _inner(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        """``frames`` [B, T, d] as [B, T, inner_dim]."""
        if self.project_in is None:
            return frames
        # Zeros before the map: otherwise the gradient of the weight would be NaN * 0.
        return self.project_in(zero_past(frames, frame_mask(lengths, frames.shape[1])))

    def _check_code_dim(self, codes: Tensor, count: int) -> None:
        if codes.shape[-1] != count:
            raise ValueError(f"codes should have shape [..., {count}], all codes of a token, got {list(codes.shape)}")

    def _shaped(self, codes: Tensor, x: Tensor) -> Tensor:
        return codes.view((*x.shape[:-1], codes.shape[-1]) if self.code_dim else x.shape[:-1])

    def extra_repr(self) -> str:
        """The configuration, for the module's printout."""
        return f"dim={self.dim}, {self.config}"
