"""Options of the teacher stage: how much of a clip is hidden, and what restores it."""

from __future__ import annotations

from dataclasses import dataclass

from losatok_ext.training.config.typed import require


@dataclass(frozen=True)
class MaskedAutoencoderOptions:
    """The masked autoencoder; the defaults are those of He et al. 2022 (arXiv 2111.06377), scaled to the encoder."""

    mask_ratio: float = 0.75
    """Share of each clip's patches that is hidden."""
    normalise: bool = False
    """Restore patches normalised by their own mean and deviation: loudness is not learned then."""
    decoder_dim: int | None = None
    """Width of the decoder that is thrown away afterwards; null takes half of the encoder's."""
    decoder_depth: int | None = None
    """Its transformer blocks; null takes a quarter of the encoder's, at least one."""
    statistics_seconds: float = 3600.0
    """Mean and deviation of each mel bin are measured over so much of the data at most, evenly chosen."""

    def __post_init__(self) -> None:
        group = "masked_autoencoder"
        require(0 < self.mask_ratio < 1, f"{group}.mask_ratio should lie between 0 and 1, got {self.mask_ratio}")
        for name in ("decoder_dim", "decoder_depth"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{group}.{name} should be at least 1 or null, got {value}")
        require(
            self.statistics_seconds > 0,
            f"{group}.statistics_seconds should be positive, got {self.statistics_seconds}",
        )
