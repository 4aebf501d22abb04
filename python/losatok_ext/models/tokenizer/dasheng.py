"""The semantic encoder: a Dasheng transformer over mel patches, as MiDashengLM has it, frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losatok_ext.audio.mel import SemanticMel
from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH, LoSATokConfig
from losatok_ext.nn.attention import TransformerBlock

TYPICAL_DECIBELS, TYPICAL_SPREAD = -25.0, 30.0
"""Mean and standard deviation of the mel decibels of the bundled recordings: for an encoder with random weights."""


class FrozenBatchNorm(nn.Module):
    """Batch normalisation over mel bins [..., M] by stored statistics, in training too, computed in float32."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(bins))
        self.bias = nn.Parameter(torch.zeros(bins))
        self.register_buffer("running_mean", torch.full((bins,), TYPICAL_DECIBELS))
        self.register_buffer("running_var", torch.full((bins,), TYPICAL_SPREAD**2))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x [..., M] float32 to the same."""
        scale = self.weight.float() * (self.running_var.float() + 1e-5).rsqrt()
        return x * scale + (self.bias.float() - self.running_mean.float() * scale)


class SemanticEncoder(nn.Module):
    """16 kHz audio to D-dimensional semantic features at 25 Hz. Its weights take no gradient and it stays in eval mode.

    Mel decibels are normalised per bin, cut into patches of 4 frames, and go through the transformer in chunks of
    ``config.chunk_frames``, each alone: positions restart, the last chunk stays short. Whole patches only: a clip of N
    samples has ``(N // hop + 1) // 4`` tokens.
    """

    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        dim, mels = config.embed_dim, config.semantic_mels
        self.chunk_tokens = config.chunk_frames // SEMANTIC_PATCH
        self.chunk_batch = config.chunk_batch
        self.mel = SemanticMel(config.semantic_n_fft, mels, config.hop_length, config.top_db, config.sample_rate)
        self.batch_norm = FrozenBatchNorm(mels)
        self.patch_embed = nn.Linear(mels * SEMANTIC_PATCH, dim)
        self.time_position = nn.Parameter(torch.empty(self.chunk_tokens, dim))
        self.frequency_position = nn.Parameter(torch.empty(dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, config.num_heads, dim * config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> SemanticEncoder:
        """Stays in eval mode: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, audio: Tensor, lengths: Tensor, project: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Features of each clip as if it were alone.

        Args:
            audio: [B, N]; what lies past a length is not read.
            lengths: [B] int64 samples. On the CPU they also decide which chunks need no work and which no mask; on a
                GPU nothing waits for them.
            project: applied to each group of chunks [n, T', D]; what it returns is kept instead of the features, which
                for a long recording are larger than all else.

        Returns:
            (features [B, T, D], token lengths [B] int64 on the device of ``audio``); zeros past a clip's tokens.
        """
        patches, token_lengths = self.patches(audio, lengths)
        tokens = patches.shape[1]
        on_host = None
        if lengths.device.type == "cpu":
            hop = self.mel.hop
            on_host = [(n // hop + 1) // SEMANTIC_PATCH if n > 0 else 0 for n in lengths.tolist()]
        columns = [
            self._encode_column(patches, start, token_lengths, on_host, project)
            for start in range(0, max(tokens, 1), self.chunk_tokens)
        ]
        return (columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)), token_lengths

    @torch.no_grad()
    def patches(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mel decibels of clips [B, N] in patches as the convolution's weight has them: [B, T, bins, 4] float32.

        With them the tokens of each clip [B] int64, on the device of ``audio``; what lies past them is undefined.
        """
        mel, frame_lengths = self.mel(audio, lengths.to(audio.device))
        tokens = mel.shape[1] // SEMANTIC_PATCH
        patches = mel[:, : tokens * SEMANTIC_PATCH].unflatten(1, (tokens, SEMANTIC_PATCH)).transpose(2, 3)
        return patches, frame_lengths.div(SEMANTIC_PATCH, rounding_mode="floor")

    def _encode_column(
        self, patches: Tensor, start: int, token_lengths: Tensor, on_host: list[int] | None, project: nn.Module | None
    ) -> Tensor:
        """The chunks of all clips that begin at token ``start``, ``chunk_batch`` at a time."""
        column = patches[:, start : start + self.chunk_tokens]
        batch, width = column.shape[:2]
        inside = (token_lengths - start).clamp(min=0, max=width)
        rows = list(range(batch)) if on_host is None else [b for b in range(batch) if on_host[b] > start]
        rows = rows if width else []
        result: Tensor | None = None
        for first in range(0, len(rows), self.chunk_batch):
            group = rows[first : first + self.chunk_batch]
            whole = on_host is not None and all(on_host[b] >= start + width for b in group)
            if len(group) == batch:  # all at once: nothing to pick, no list to copy to a GPU
                chunks, lengths = column, inside
            else:
                index = torch.tensor(group, device=column.device)
                chunks, lengths = column[index], inside[index]
            features = self.encode_chunks(chunks, None if whole else lengths)
            features = features if project is None else project(features)
            if not whole:
                kept = torch.arange(width, device=column.device) < lengths[:, None]
                features = torch.where(kept[:, :, None], features, 0.0)
            if len(group) == batch:
                return features
            if result is None:
                result = features.new_zeros(batch, width, features.shape[-1])
            result[index] = features
        if result is None:
            features = self.patch_embed.weight.new_zeros(batch, width, self.norm.normalized_shape[0])
            return features if project is None else project(features).zero_()
        return result

    def encode_chunks(self, patches: Tensor, lengths: Tensor | None) -> Tensor:
        """Patches [n, T', bins, 4] of mel decibels, T' up to ``chunk_tokens``, to features [n, T', D]; one chunk each.

        ``lengths`` [n] (tokens) marks what may be attended to; None means all. What comes out past a length is
        undefined.
        """
        x = self.embed(self.normalise(patches))
        return self.transform(x, lengths)

    def normalise(self, patches: Tensor) -> Tensor:
        """Patches [n, T', bins, 4] of decibels, each bin normalised, as vectors [n, T', 4 bins] float32."""
        with torch.autocast(patches.device.type, enabled=False):
            return self.batch_norm(patches.float().transpose(2, 3)).transpose(2, 3).flatten(2)

    def embed(self, normalised: Tensor) -> Tensor:
        """Vectors [n, T', 4 bins] to tokens [n, T', D] with their positions."""
        x = self.patch_embed(normalised.to(self.patch_embed.weight.dtype))
        return (x + (self.time_position[: x.shape[1]] + self.frequency_position)).to(x.dtype)

    def transform(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Tokens [n, T', D] to features [n, T', D]; ``lengths`` as in :meth:`encode_chunks`."""
        for block in self.blocks:
            x = block(x, lengths)
        return self.norm(x)


def init_semantic_encoder(encoder: SemanticEncoder) -> None:
    """Random weights: truncated normal of 0.02, zero biases, as vision transformers start."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(encoder.time_position, std=0.02)
    nn.init.trunc_normal_(encoder.frequency_position, std=0.02)
