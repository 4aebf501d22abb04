"""The semantic encoder of the published model: the Dasheng transformer over mel patches of MiDashengLM, frozen."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from losatok_ext.audio.mel import SemanticMel
from losatok_ext.models.tokenizer.chunked_encoder import Chunk, ChunkedEncoder
from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH, LoSATokConfig
from losatok_ext.nn.attention import TransformerBlock

TYPICAL_DECIBELS, TYPICAL_SPREAD = -25.0, 30.0
"""Mean and standard deviation of the mel decibels of the bundled recordings, for encoders with random weights."""


class FrozenBatchNorm(nn.Module):
    """Batch normalization over mel bins [..., M] with stored statistics, also in training; computed in float32."""

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


class SemanticEncoder(ChunkedEncoder):
    """16 kHz audio to D-dimensional semantic features at 25 Hz. Its weights take no gradient and it stays in eval mode.

    The mel spectrogram in decibels is normalised per bin, cut into patches of 4 frames, and goes through the
    transformer in chunks of ``config.chunk_frames``. Each chunk is encoded alone, with positions from 0; the last chunk
    of a clip may be shorter. A clip of N samples has ``(N // hop + 1) // 4`` tokens, one for each whole patch.
    """

    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        dim, mels = config.embed_dim, config.semantic_mels
        self.dim, self.hop = dim, config.hop_length
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

    @torch.no_grad()
    def patches(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The mel spectrogram of clips in decibels, cut into patches.

        Args:
            audio: [B, N].
            lengths: [B] int64 samples.

        Returns:
            (patches [B, T, bins, 4] float32, in the order of the published convolution's weight; tokens of each clip
            [B] int64, on the device of ``audio``). Patches past a clip's tokens are undefined.
        """
        mel, frame_lengths = self.mel(audio, lengths.to(audio.device))
        tokens = mel.shape[1] // SEMANTIC_PATCH
        patches = mel[:, : tokens * SEMANTIC_PATCH].unflatten(1, (tokens, SEMANTIC_PATCH)).transpose(2, 3)
        return patches, frame_lengths.div(SEMANTIC_PATCH, rounding_mode="floor")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the features."""
        return self.patch_embed.weight.dtype

    @torch.no_grad()
    def chunks(self, audio: Tensor, lengths: Tensor) -> Iterator[Chunk]:
        """See :meth:`ChunkedEncoder.chunks`; ``chunk_batch`` clips at a time."""
        patches, token_lengths = self.patches(audio, lengths)
        counts = self.token_counts(lengths).tolist() if lengths.device.type == "cpu" else None
        for start in range(0, patches.shape[1], self.chunk_tokens):
            column = patches[:, start : start + self.chunk_tokens]
            batch, width = column.shape[:2]
            inside = (token_lengths - start).clamp(min=0, max=width)
            clips = [clip for clip in range(batch) if counts is None or counts[clip] > start]
            for first in range(0, len(clips), self.chunk_batch):
                group = clips[first : first + self.chunk_batch]
                index = None
                part, part_lengths = column, inside
                if len(group) < batch:  # else there is nothing to pick, and no list to copy to a GPU
                    index = torch.tensor(group, device=column.device)
                    part, part_lengths = column[index], inside[index]
                full = counts is not None and all(counts[clip] >= start + width for clip in group)
                valid = None if full else part_lengths
                yield Chunk(index, start, self.encode_chunks(part, valid), valid)

    def encode_chunks(self, patches: Tensor, lengths: Tensor | None) -> Tensor:
        """Encode one chunk of each of n clips.

        Args:
            patches: [n, T', bins, 4] of mel decibels, T' up to ``chunk_tokens``.
            lengths: [n] int64 tokens; what lies past is not attended to. None: all T'.

        Returns:
            Features [n, T', D]; undefined past a length.
        """
        x = self.embed(self.normalise(patches))
        return self.transform(x, lengths)

    def normalise(self, patches: Tensor) -> Tensor:
        """Normalise each bin of patches [n, T', bins, 4] of decibels; vectors [n, T', 4 bins] float32."""
        with torch.autocast(patches.device.type, enabled=False):
            return self.batch_norm(patches.float().transpose(2, 3)).transpose(2, 3).flatten(2)

    def embed(self, normalised: Tensor) -> Tensor:
        """Vectors [n, T', 4 bins] to tokens [n, T', D], position embeddings added."""
        x = self.patch_embed(normalised.to(self.patch_embed.weight.dtype))
        return (x + (self.time_position[: x.shape[1]] + self.frequency_position)).to(x.dtype)

    def transform(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Tokens [n, T', D] to features [n, T', D]; ``lengths`` as in :meth:`encode_chunks`."""
        for block in self.blocks:
            x = block(x, lengths)
        return self.norm(x)


def init_semantic_encoder(encoder: SemanticEncoder) -> None:
    """Random weights: truncated normal with deviation 0.02, zero biases, as for vision transformers."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(encoder.time_position, std=0.02)
    nn.init.trunc_normal_(encoder.frequency_position, std=0.02)
