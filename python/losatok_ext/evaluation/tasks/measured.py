"""What reports over recordings share: how much was measured, what could not be, and their plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch

from losatok_ext.errors import UserError
from losatok_ext.jobs.tokenize import sentence
from losatok_ext.models import LoSATokConfig
from losatok_ext.nn.losses import MultiScaleMelLoss
from losatok_ext.ops.dispatch import BackendUnavailableError
from losatok_ext.recordings.find import Failure, Source

S = TypeVar("S", bound="Sums")

MEL_DISTANCE = (
    "Mel distance: mean absolute difference of log10 mel spectrograms at windows of 32 to 2048 samples (1 is a factor "
    "of 10); latent error: root mean square relative to the latents' own about their mean"
)


@dataclass
class Sums:
    """What is added up over recordings: the fields of a subclass, numbers that begin at 0."""

    def add(self: S, other: S) -> None:
        """Add each field of ``other`` to its own."""
        for entry in dataclasses.fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))


@dataclass(kw_only=True)
class Measured:
    """A report over recordings that are measured one after the other.

    Attributes:
        recordings: that were measured.
        seconds: of audio in them.
        failures: recordings that could not be measured.
    """

    name: ClassVar[str]
    """Of the report, as its plain values have it."""

    recordings: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def measure(
        self,
        sources: Sequence[Source],
        work: Callable[[Source], float],
        progress: Callable[[Source], None] | None = None,
        debug: bool = False,
    ) -> None:
        """Call ``work``, which gives the seconds of audio that it measured, with each recording, and count.

        Args:
            sources: recordings.
            work: an error of it is collected and does not stop the others.
            progress: called after each recording.
            debug: let the first error through instead of collecting it.

        Raises:
            UserError: no recording can be measured.
            BackendUnavailableError: an op cannot run here.
        """
        for source in sources:
            try:
                seconds = work(source)
            except BackendUnavailableError:
                raise  # it would be the same for every recording
            except Exception as error:
                if debug:
                    raise
                self.failures.append(Failure(source.path, sentence(source.path, error)))
            else:
                self.recordings += 1
                self.seconds += seconds
            if progress is not None:
                progress(source)
        if not self.recordings:
            reason = f"; the first: {self.failures[0].message}" if self.failures else ""
            raise UserError(f"there are no recordings to measure{reason}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        values = dataclasses.asdict(self)
        values["failures"] = [{"path": str(f.path), "message": f.message} for f in self.failures]
        return {"report": self.name, "mel_distance": MEL_DISTANCE, **values}


def mel_distance(sample_rate: int, device: torch.device | str = "cpu") -> MultiScaleMelLoss:
    """What :data:`MEL_DISTANCE` says, of waveforms [B, N] at ``sample_rate`` (Hz) on ``device``."""
    windows, bins = LoSATokConfig.mel_loss_windows, LoSATokConfig.mel_loss_bins
    return MultiScaleMelLoss(windows, bins, sample_rate).to(device)
