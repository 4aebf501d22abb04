"""The decoder: tokens to a waveform, by upsampling, a ConvNeXt backbone and an inverse STFT head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losatok_ext.masks import keep_valid
from losatok_ext.models.tokenizer.config import LoSATokConfig
from losatok_ext.nn.convnext import ConvNeXtBackbone
from losatok_ext.nn.istft import ISTFTHead

BLOCK_TOKENS = 750
"""Tokens decoded at once in inference (30 s at 25 Hz), so that long recordings need little memory."""


class Decoder(nn.Module):
    """Latents [B, T, d] to audio [B, samples_per_token T].

    The upsampler is a transposed convolution whose kernel size equals its stride: one matrix product per token.
    """

    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        self.factor = config.upsample_tokens
        self.samples_per_token = config.samples_per_token
        self.upsample_weight = nn.Parameter(torch.empty(config.latent_dim, config.embed_dim, self.factor))
        self.upsample_bias = nn.Parameter(torch.zeros(config.embed_dim))
        self.backbone = ConvNeXtBackbone(
            config.embed_dim, config.decoder_dim, config.decoder_depth, config.decoder_hidden
        )
        self.head = ISTFTHead(config.decoder_dim, config.istft_n_fft, config.istft_hop)
        frames = 3 * (1 + config.decoder_depth) + config.istft_n_fft // config.istft_hop
        self.context_tokens = -(-frames // self.factor)

    def forward(self, z: Tensor, lengths: Tensor | None = None) -> Tensor:
        """z [B, T, d] to audio [B, samples_per_token T] float32; zeros from ``lengths`` [B] on (None: all valid)."""
        if z.shape[0] * z.shape[1] == 0:
            return z.new_zeros(z.shape[0], z.shape[1] * self.samples_per_token, dtype=torch.float32)
        x = keep_valid(z, lengths) @ self.upsample_weight.transpose(1, 2).flatten(1)
        x = x.unflatten(2, (self.factor, -1)).flatten(1, 2) + self.upsample_bias
        frames = None if lengths is None else lengths * self.factor
        return self.head(self.backbone(x, frames), frames)

    def decode_long(self, z: Tensor, lengths: Tensor | None = None, block_tokens: int = BLOCK_TOKENS) -> Tensor:
        """The result of :meth:`forward` in bounded memory: ``block_tokens`` at a time, each block with its context."""
        tokens, context, size = z.shape[1], self.context_tokens, self.samples_per_token
        if tokens <= block_tokens + 2 * context:
            return self(z, lengths)
        audio = z.new_empty(z.shape[0], tokens * size, dtype=torch.float32)
        for start in range(0, tokens, block_tokens):
            stop = min(start + block_tokens, tokens)
            left, right = max(start - context, 0), min(stop + context, tokens)
            inside = None if lengths is None else (lengths - left).clamp(min=0, max=right - left)
            block = self(z[:, left:right], inside)
            audio[:, start * size : stop * size] = block[:, (start - left) * size : (stop - left) * size]
        return audio


def init_decoder(decoder: Decoder) -> None:
    """Random weights: truncated normal with deviation 0.02, zero biases. Magnitudes start near ``exp(-1)``."""
    for module in decoder.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(decoder.upsample_weight, std=decoder.upsample_weight.shape[0] ** -0.5)
    with torch.no_grad():
        decoder.head.out.bias[: decoder.head.out.out_features // 2] = -1.0
