"""The semantic branch of the tokenizer: the frozen semantic encoder, and the bottleneck behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from losatok_ext.models.tokenizer.chunked_encoder import ChunkedEncoder
from losatok_ext.models.tokenizer.nested import prefix_errors
from losatok_ext.nn.bottleneck import Bottleneck


class SemanticFeatures(NamedTuple):
    """What the semantic branch gives for B clips, at the rate of the semantic encoder."""

    low: Tensor
    """[B, T, d], the features through the bottleneck."""
    lengths: Tensor
    """[B] int64, tokens of each clip."""
    high: Tensor | None = None
    """[B, T, D], the features of the encoder, where they were asked for."""
    errors: Tensor | None = None
    """[B, T, P] float32, ``1 - cosine`` of the features restored from each of P prefixes, where there are prefixes."""


class SemanticBranch:
    """Audio to semantic features.

    Args:
        encoder: the semantic encoder; it takes no gradient.
        bottleneck: behind it.
    """

    def __init__(self, encoder: ChunkedEncoder, bottleneck: Bottleneck) -> None:
        self.encoder, self.bottleneck = encoder, bottleneck

    def __call__(
        self, audio: Tensor, lengths: Tensor, high: bool = False, prefixes: Sequence[int] = ()
    ) -> SemanticFeatures:
        """The semantic features of clips.

        Args:
            audio: [B, N] at the model's sample rate; what lies past a length is not read.
            lengths: [B] int64 samples.
            high: whether to keep the D-dimensional features, which for a long recording are larger than all else.
            prefixes: numbers of dimensions for which to measure how well they restore the features.
        """
        if high:
            features, tokens = self.encoder(audio, lengths)
            return self.of_features(features, tokens, prefixes)
        found, tokens = self.encoder(audio, lengths, lambda features: self._parts(features, prefixes))
        return SemanticFeatures(found[0], tokens, errors=found[1] if prefixes else None)

    def of_features(self, features: Tensor, lengths: Tensor, prefixes: Sequence[int] = ()) -> SemanticFeatures:
        """The same for given features of the encoder, with gradients to the bottleneck where it takes them.

        Args:
            features: [B, T, D].
            lengths: [B] int64 tokens.
            prefixes: as above.
        """
        low, *errors = self._parts(features, prefixes)
        return SemanticFeatures(low, lengths, features, errors[0] if errors else None)

    def _parts(self, features: Tensor, prefixes: Sequence[int]) -> tuple[Tensor, ...]:
        low = self.bottleneck.down(features)
        return (low, prefix_errors(self.bottleneck, features, low, prefixes)) if prefixes else (low,)
