"""The labels of a corpus, as classes that a probe can tell apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from losatok_ext.errors import TrainingError
from losatok_ext.training.data.corpus import Corpus


class ClipLabels:
    """Class numbers by clip: ``"label"`` of the manifest or shard, else the clip's text, which in a folder is the name
    of the folder it lies in.

    Args:
        data: folder, manifest or shards that ``corpus`` was opened from, for messages.
        corpus: the clips.

    Raises:
        TrainingError: there are fewer than two labels, or as many as clips.
    """

    def __init__(self, data: str | Path, corpus: Corpus) -> None:
        labels = {clip.name: clip.label or clip.text for clip in corpus.clips}
        self.classes = sorted({label for label in labels.values() if label})
        if not 2 <= len(self.classes) < max(len(labels), 3):
            raise TrainingError(
                f"{data}: {len(labels)} clips have {len(self.classes)} different labels, of which nothing can be "
                'learned; give each line of the manifest a "label" that others share, or leave supervision.labels off'
            )
        numbers = {label: number for number, label in enumerate(self.classes)}
        self._of = {name: numbers.get(label, -1) for name, label in labels.items()}

    def of(self, names: Sequence[str]) -> Tensor:
        """[B] int64 classes of the clips of these names; -1 where one has no label."""
        return torch.tensor([self._of[name] for name in names], dtype=torch.int64)

    def digest(self) -> str:
        """A hash of which clip has which label."""
        lines = [*self.classes, *(f"{name}\t{number}" for name, number in sorted(self._of.items()))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
