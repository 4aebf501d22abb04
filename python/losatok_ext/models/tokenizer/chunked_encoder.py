"""What all semantic encoders share: they encode long clips in chunks, and put together what is wanted of each chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from losatok_ext.masks import keep_valid
from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH

E = TypeVar("E", bound="ChunkedEncoder")


class Chunk(NamedTuple):
    """The features of the same stretch of some clips of a batch."""

    clips: Tensor | None
    """[n] int64, positions of the clips in the batch; None: all clips, in order."""
    start: int
    """First token of the stretch."""
    features: Tensor
    """[n, T', D]; undefined past the lengths."""
    lengths: Tensor | None
    """[n] int64, tokens of each clip in the stretch; None: all T'."""


class ChunkedEncoder(nn.Module):
    """Base of the semantic encoders. They are frozen: their weights take no gradient and they stay in eval mode.

    Attributes:
        dim: D, width of the features.
        hop: samples between mel frames.
    """

    dim: int
    hop: int

    def train(self: E, mode: bool = True) -> E:
        """Stay in eval mode."""
        return super().train(False)

    def token_counts(self, lengths: Tensor) -> Tensor:
        """Tokens of clips of ``lengths`` samples, int64: one for each whole patch of mel frames."""
        return torch.where(lengths > 0, (lengths // self.hop + 1) // SEMANTIC_PATCH, 0)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the features."""
        raise NotImplementedError

    def chunks(self, audio: Tensor, lengths: Tensor) -> Iterator[Chunk]:
        """The features of a batch, chunk by chunk. Chunks of clips without a token there may be left out.

        Args:
            audio: [B, N]; what lies past a length is not read.
            lengths: [B] int64 samples.
        """
        raise NotImplementedError

    @torch.no_grad()
    def forward(
        self, audio: Tensor, lengths: Tensor, function: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    ) -> tuple[Any, Tensor]:
        """Features of each clip, the same as if it were alone.

        Args:
            audio: [B, N]; what lies past a length is not read.
            lengths: [B] int64 samples. On the CPU they also decide which chunks need no work and no mask, and a GPU is
                not waited for.
            function: maps features [n, T', D] of a chunk to some tensors [n, T', C], which are kept instead of the
                features: for a long recording those are larger than all else.

        Returns:
            (features [B, T, D], or a tuple with each result of ``function`` put together, [B, T, C]; token lengths [B]
            int64 on the device of ``audio``); zeros past a clip's tokens.
        """
        if function is None:
            (features,), tokens = self._map_chunks(audio, lengths, lambda features: (features,))
            return features, tokens
        return self._map_chunks(audio, lengths, function)

    def _map_chunks(
        self, audio: Tensor, lengths: Tensor, function: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        batch = len(audio)
        size = int(self.token_counts(torch.tensor(audio.shape[1])))
        tokens = self.token_counts(lengths.to(audio.device))
        results: tuple[Tensor, ...] | None = None
        for chunk in self.chunks(audio, lengths):
            parts = tuple(keep_valid(part, chunk.lengths) for part in function(chunk.features))
            width = chunk.features.shape[1]
            if chunk.clips is None and width == size:
                return parts, tokens
            if results is None:
                results = tuple(part.new_zeros(batch, size, part.shape[-1]) for part in parts)
            for result, part in zip(results, parts, strict=True):
                stretch = result[:, chunk.start : chunk.start + width]
                if chunk.clips is None:
                    stretch.copy_(part)
                else:
                    stretch[chunk.clips] = part
        if results is None:
            nothing = torch.zeros(batch, size, self.dim, dtype=self.dtype, device=audio.device)
            results = tuple(part.zero_() for part in function(nothing))
        return results, tokens
