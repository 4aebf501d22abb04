"""Mean and standard deviation of vectors (latents, mel frames) over a corpus, in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from losatok_ext.errors import TrainingError, UserError
from losatok_ext.training.data.corpus import LONG_SECONDS, Corpus


class RunningMoments:
    """Mean and standard deviation of each dimension of vectors, in one pass and float64.

    Batches are merged by the update of Chan, Golub and LeVeque 1983 (equations 1.5), which does not cancel where the
    mean is large against the deviation, as sums of squares would.

    Args:
        dim: of the vectors.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._squares = torch.zeros(dim, dtype=torch.float64)

    def update(self, vectors: Tensor) -> None:
        """Add ``vectors`` [N, dim]."""
        if len(vectors) == 0:
            return
        vectors = vectors.detach().to("cpu", torch.float64)
        mean = vectors.mean(0)
        squares = (vectors - mean).square().sum(0)
        away = mean - self._mean
        total = self.count + len(vectors)
        self._squares += squares + away.square() * (self.count * len(vectors) / total)
        self._mean += away * (len(vectors) / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """[dim] float32."""
        return self._mean.float()

    @property
    def std(self) -> Tensor:
        """[dim] float32, the population standard deviation; 1 in a dimension that never changes."""
        deviation = (self._squares / max(self.count, 1)).sqrt().float()
        return torch.where(deviation > 0, deviation, 1.0)


def measure(corpus: Corpus, seconds: float, vectors: Callable[[Tensor], Tensor], what: str) -> RunningMoments:
    """Mean and deviation of vectors that are computed from evenly chosen clips; of a long clip, from its middle 30 s.

    Args:
        corpus: the clips.
        seconds: of audio, at most.
        vectors: computes the vectors [n, dim] of a clip [N] (of latents [T, d]).
        what: the name of the vectors, for the message.

    Raises:
        TrainingError: fewer than two vectors came out.
    """
    share = min(seconds / corpus.seconds, 1.0)
    count = max(round(len(corpus.clips) * share), 1)
    moments: RunningMoments | None = None
    problems: list[str] = []
    for i in range(count):
        index = i * len(corpus.clips) // count
        try:
            clip = corpus.crop(index, round(LONG_SECONDS * corpus.sample_rate), 0.5)
        except UserError as error:
            problems.append(str(error))
            continue
        rows = vectors(clip)
        moments = moments or RunningMoments(rows.shape[-1])
        moments.update(rows)
    if moments is None or moments.count < 2:
        raise TrainingError(" ".join([f"no {what} can be measured in these recordings;", *problems[:1]]))
    return moments
