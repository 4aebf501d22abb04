"""The labels of clips, as classes that a probe can tell apart."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from losatok_ext.errors import TrainingError
from losatok_ext.training.data.corpus import C, Corpus


def with_labels(corpus: C) -> C:
    """``corpus`` with a label for each clip: that of its manifest or shard, else the clip's text, which in a folder is
    the name of the folder that the file lies in.

    Args:
        corpus: the clips.
    """
    clips = tuple(dataclasses.replace(clip, label=clip.label or clip.text) for clip in corpus.clips)
    return dataclasses.replace(corpus, clips=clips)


class LabelClasses:
    """The different labels of the clips that are trained on, numbered in the order of the alphabet.

    Args:
        data: what ``corpus`` was opened from, for the message.
        corpus: clips with labels (:func:`with_labels`).

    Raises:
        TrainingError: there are fewer than two labels, or as many as clips.
    """

    def __init__(self, data: str | Path, corpus: Corpus) -> None:
        self.names = sorted({clip.label for clip in corpus.clips if clip.label})
        count = len(corpus.clips)
        if not 2 <= len(self.names) < max(count, 3):
            raise TrainingError(
                f"{data}: {count} clips have {len(self.names)} different labels, of which nothing can be learned; give "
                'each line of the manifest a "label" that others share, or leave supervision.labels off'
            )
        self._numbers = {label: number for number, label in enumerate(self.names)}

    def numbers(self, labels: Sequence[str]) -> Tensor:
        """[B] int64: the class of each label; -1 for ``""`` and for a label that no clip of the training data has."""
        return torch.tensor([self._numbers.get(label, -1) for label in labels], dtype=torch.int64)

    def digest(self, corpus: Corpus) -> str:
        """A hash of which clip of ``corpus`` has which label."""
        labels = sorted((clip.name, self._numbers.get(clip.label, -1)) for clip in corpus.clips)
        lines = [*self.names, *(f"{name}\t{number}" for name, number in labels)]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
