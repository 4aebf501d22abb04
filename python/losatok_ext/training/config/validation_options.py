"""Options of validation: on what, how often, and what is shown of it."""

from __future__ import annotations

from dataclasses import dataclass

from losatok_ext.training.config.typed import require


@dataclass(frozen=True)
class ValidationConfig:
    """Losses on clips that are not trained on, and what the model makes of some of them."""

    data: str | None = None
    """Folder or manifest of clips to validate on."""
    share: float = 0.0
    """Hold so much of the training data out instead, chosen by the clips' names. 0: nothing."""
    every: int = 1000
    """Steps between validations; the last step is validated too."""
    clips: int = 64
    """Crops that the losses are means over: always the same, as many as a whole number of batches has."""
    shown: int = 4
    """Clips of which TensorBoard gets audio and mel pictures."""

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, f"validation.share should lie within 0..1, got {self.share}")
        require(
            self.data is None or self.share == 0,
            "validation.data and validation.share cannot both be given: validate on a folder, or on a held-out share",
        )
        require(self.every >= 1, f"validation.every should be at least 1, got {self.every}")
        require(self.clips >= 1, f"validation.clips should be at least 1, got {self.clips}")
        require(self.shown >= 0, f"validation.shown should not be negative, got {self.shown}")

    @property
    def wanted(self) -> bool:
        """Whether there is anything to validate on."""
        return self.data is not None or self.share > 0
