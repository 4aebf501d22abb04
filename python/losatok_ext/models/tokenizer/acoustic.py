"""The acoustic encoder: one layer over mel patches."""

from __future__ import annotations

from torch import Tensor, nn

from losatok_ext.audio.mel import AcousticMel
from losatok_ext.models.tokenizer.config import LoSATokConfig


class AcousticEncoder(nn.Module):
    """16 kHz audio to D-dimensional acoustic features at the token rate: log mel -> patches -> linear -> LayerNorm.

    A clip of N samples has ``(N // hop + 1) // patch`` tokens, one for each whole patch; ``patch`` is the number of mel
    frames per token.
    """

    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        self.patch = config.acoustic_patch
        self.mel = AcousticMel(config.acoustic_n_fft, config.acoustic_mels, config.hop_length, config.sample_rate)
        self.patch_embed = nn.Linear(config.acoustic_mels * self.patch, config.embed_dim)
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-5)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """audio [B, N] and lengths [B] (int64 samples) to (features [B, T, D], token lengths [B] int64)."""
        mel, frame_lengths = self.mel(audio, lengths)
        tokens = mel.shape[1] // self.patch
        # In the order of the published convolution's weight: bins first, then frames.
        patches = mel[:, : tokens * self.patch].unflatten(1, (tokens, self.patch)).transpose(2, 3).flatten(2)
        features = self.norm(self.patch_embed(patches.to(self.patch_embed.weight.dtype)))
        return features, frame_lengths.div(self.patch, rounding_mode="floor")
