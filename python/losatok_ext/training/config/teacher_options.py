"""Options of the teacher stage: how much of a clip is hidden, and what restores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from losatok_ext.configuration import Configuration, Positive, Range


@dataclass(frozen=True)
class MaskedAutoencoderOptions(Configuration):
    """The masked autoencoder; the defaults are those of He et al. 2022 (arXiv 2111.06377), scaled to the encoder."""

    mask_ratio: Annotated[float, Range(above=0, below=1)] = 0.75
    """Share of each clip's patches that is hidden."""
    normalise: bool = False
    """Restore patches normalised by their own mean and deviation. Loudness is then not learned."""
    decoder_dim: Annotated[int, Range(1, 65536)] | None = None
    """Width of the decoder, which is not part of the trained teacher. null takes half of the encoder's."""
    decoder_depth: Annotated[int, Range(1, 1024)] | None = None
    """Transformer blocks of the decoder. null takes a quarter of the encoder's, at least one."""
    statistics_seconds: Positive = 3600.0
    """Seconds of audio over which mean and deviation of each mel bin are measured at most, evenly chosen."""
