"""Discriminators by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from losatok_ext.nn.discriminators.base import Discriminator, Scores
from losatok_ext.nn.discriminators.multi_frequency import MultiFrequencyDiscriminator
from losatok_ext.nn.discriminators.multi_period import MultiPeriodDiscriminator
from losatok_ext.nn.discriminators.multi_resolution import MultiResolutionDiscriminator
from losatok_ext.nn.discriminators.multi_scale_stft import MultiScaleSTFTDiscriminator

DISCRIMINATORS: dict[str, type[Discriminator]] = {
    "mfd": MultiFrequencyDiscriminator,
    "mpd": MultiPeriodDiscriminator,
    "mrd": MultiResolutionDiscriminator,
    "msstft": MultiScaleSTFTDiscriminator,
}
"""The kinds by name; each takes ``scale``, a factor of its numbers of channels."""


class Discriminators(nn.ModuleDict):
    """Several kinds on the same audio; :meth:`forward` gives the scores of all their views in one list.

    Args:
        kinds: keys of :data:`DISCRIMINATORS`, each at most once.
        scale: factor of the published numbers of channels; networks for a CPU take 1/16 or less.

    Raises:
        ValueError: there is no kind, an unknown or a repeated one, or the scale is not positive.
    """

    def __init__(self, kinds: Sequence[str], scale: float = 1.0) -> None:
        unknown = [kind for kind in kinds if kind not in DISCRIMINATORS]
        if unknown or not kinds or len(set(kinds)) < len(kinds):
            known = ", ".join(map(repr, DISCRIMINATORS))
            raise ValueError(f"kinds should be one or more of {known}, each once, got {list(kinds)}")
        if not scale > 0:
            raise ValueError(f"scale should be positive, got {scale}")
        super().__init__({kind: DISCRIMINATORS[kind](scale=scale) for kind in kinds})

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> list[Scores]:
        """The scores of clips [B, N] by every view of every kind; see :meth:`Discriminator.forward`."""
        return [scores for discriminator in self.values() for scores in discriminator(audio, lengths)]
