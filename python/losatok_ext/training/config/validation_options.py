"""Options of validation: on what, how often, and what is shown of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from losatok_ext.configuration import Configuration, Count, Range, Whole


@dataclass(frozen=True)
class ValidationConfig(Configuration):
    """Losses on clips that are not trained on, and what the model makes of some of them."""

    data: str | None = None
    """Folder or manifest of clips to validate on."""
    share: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the training data that is held out instead, chosen by the clips' names. 0 holds nothing out."""
    every: Count = 1000
    """Steps between validations. The last step is validated too."""
    clips: Count = 64
    """Crops that the losses are means over, rounded up to whole batches. They are always the same."""
    shown: Whole = 4
    """Clips whose audio and mel pictures are written to TensorBoard."""

    def _check_fit(self) -> None:
        self._require(
            self.data is None or self.share == 0,
            "share",
            "0 where validation data are given: validate on other clips, or on a held-out share",
        )

    @property
    def wanted(self) -> bool:
        """Whether there is anything to validate on."""
        return self.data is not None or self.share > 0
