"""Distances between generated clips and reference clips, in the features of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from losatok_ext.audio.files import read_audio
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.clap import Clap
from losatok_ext.evaluation.metrics.distances import (
    Interval,
    bootstrap,
    extrapolated_frechet,
    frechet_distance,
    kernel_distance,
)
from losatok_ext.evaluation.tasks.features import FeatureSet, Spec
from losatok_ext.evaluation.tasks.measured import Progress, for_each
from losatok_ext.recordings.find import Failure
from losatok_ext.recordings.labelled import Item

LEVELS = ("clip", "frame")
MAX_FRAMES = 20_000
"""At most as many rows of each set at frame level; of more, every n-th is taken."""

_HALVES = 10  # random divisions of the reference into two halves


@dataclass(frozen=True)
class GenerationRow:
    """Distances in one feature space.

    Attributes:
        feature: its name.
        dims: D.
        reference, generated: rows of each set.
        frechet, kernel: distances of the sets.
        extrapolated: Frechet distance extrapolated to infinitely many generated clips; None for fewer than 9.
        halves_frechet, halves_kernel: mean distances between two random halves of the reference: what clips of the same
            distribution have at half the number. None for fewer than 4 reference clips.
        warnings: reasons to distrust the figures.
    """

    feature: str
    dims: int
    reference: int
    generated: int
    frechet: Interval
    kernel: Interval
    extrapolated: float | None
    halves_frechet: float | None
    halves_kernel: float | None
    warnings: list[str]


class ClapScore(NamedTuple):
    """Cosine of clips and their texts: mean, standard deviation over clips (None for one), and how many have a text."""

    mean: float
    spread: float | None
    clips: int


@dataclass
class GenerationResult:
    """Distances and scores of generated clips.

    Attributes:
        rows: one per feature.
        reference, generated: clips of each set that were used.
        clap_score: of the generated clips; None without a CLAP model or without texts.
        failures: clips that could not be used.
    """

    rows: list[GenerationRow]
    reference: list[Item]
    generated: list[Item]
    clap_score: ClapScore | None = None
    failures: list[Failure] = field(default_factory=list)


def clip_rows(features: FeatureSet, spec: Spec, level: str) -> list[Tensor]:
    """Rows [n_i, D] float64 of each clip: the mean of its frames, or at frame level the frames themselves.

    Args:
        features: of the clips.
        spec: the feature.
        level: ``"clip"`` or ``"frame"``. Of more than :data:`MAX_FRAMES` frames in all, every n-th is taken.

    Raises:
        UserError: ``spec`` has a reduction; fitted to one set, it would favour that set.
    """
    if spec.baseline is not None:
        raise UserError(f"--feature {spec}: distances are computed on complete features; leave out {spec.baseline}")
    clips = [clip.double() for clip in features.load(spec.base)]
    if level == "clip":
        return [clip.mean(0, keepdim=True) for clip in clips]
    step = -(-sum(map(len, clips)) // MAX_FRAMES)
    return [clip[::step] for clip in clips]


def compare(
    feature: str, reference: Sequence[Tensor], generated: Sequence[Tensor], samples: int = 100, seed: int = 0
) -> GenerationRow:
    """Distances of ``generated`` to ``reference``, lists of rows [n_i, D] of each clip.

    Args:
        feature: its name, for the report.
        reference: rows of each clip.
        generated: rows of each clip.
        samples: bootstrap samples over clips, at least 2.
        seed: of all random draws.

    Raises:
        UserError: fewer than two clips in a set.
        ValueError: the sets differ in D, or have values that are not finite.
    """
    x, y = list(reference), list(generated)
    for name, clips in (("REFERENCE", x), ("GENERATED", y)):
        if len(clips) < 2:
            raise UserError(f"{name} has {len(clips)} usable clips; a distance between sets needs 2 of each")
    rows = [sum(map(len, clips)) for clips in (x, y)]
    dims = x[0].shape[1]
    warnings = []
    if min(rows) <= dims:
        warnings.append(
            f"{min(rows)} rows of {dims} dimensions: the Frechet distance is far too large; compare sets of equal size "
            "only, or trust the kernel distance"
        )
    elif min(rows) < 10 * dims:
        warnings.append(f"{min(rows)} rows are few for {dims} dimensions: the Frechet distance is too large")
    if min(len(x), len(y)) < 50:
        warnings.append(f"{min(len(x), len(y))} clips are few: intervals are wide, and themselves uncertain")
    frechet = bootstrap(frechet_distance, x, y, samples, seed)
    halves = _halves(x, seed)
    return GenerationRow(
        feature,
        dims,
        rows[0],
        rows[1],
        frechet._replace(low=max(frechet.low, 0.0)),
        bootstrap(kernel_distance, x, y, samples, seed),
        extrapolated_frechet(x, y, seed=seed) if len(y) >= 9 else None,
        None if halves is None else halves[0],
        None if halves is None else halves[1],
        warnings,
    )


def _halves(clips: list[Tensor], seed: int) -> tuple[float, float] | None:
    """Mean Frechet and kernel distances of random halves of clips."""
    if len(clips) < 4:
        return None
    generator = torch.Generator().manual_seed(seed)
    totals = [0.0, 0.0]
    for _ in range(_HALVES):
        order = torch.randperm(len(clips), generator=generator).tolist()
        middle = len(clips) // 2
        one, other = (torch.cat([clips[i] for i in part]) for part in (order[:middle], order[middle:]))
        totals = [totals[0] + frechet_distance(one, other), totals[1] + kernel_distance(one, other)]
    return totals[0] / _HALVES, totals[1] / _HALVES


def clap_rows(
    clap: Clap,
    items: Sequence[Item],
    sample_rate: int,
    progress: Progress | None = None,
    debug: bool = False,
) -> tuple[list[Item], list[Tensor], list[Failure]]:
    """Items that CLAP could embed, their embeddings [1, D], and the items that it could not.

    Args:
        clap: the model.
        items: recordings.
        sample_rate: Hz that they are read at: that of the tokenizer, so that both sets have the same bandwidth.
        progress: called after each item.
        debug: raise the first error instead of collecting it.
    """
    used: list[Item] = []
    rows: list[Tensor] = []

    def work(item: Item) -> None:
        rows.append(clap.audio(read_audio(item.path, sample_rate), sample_rate)[None].double())
        used.append(item)

    failures = for_each(items, work, progress, debug)
    return used, rows, failures


def clap_score(clap: Clap, items: Sequence[Item], rows: Sequence[Tensor]) -> ClapScore | None:
    """Cosine of clips and their texts; None where no clip has a text.

    Args:
        clap: the model.
        items: clips; those without a ``"text"`` are left out.
        rows: their embeddings [1, D], as :func:`clap_rows` returns them.
    """
    described = [
        (item.values["text"], row[0]) for item, row in zip(items, rows, strict=True) if item.values.get("text")
    ]
    if not described:
        return None
    texts = clap.texts([text for text, _ in described]).double()
    cosine = (texts * torch.stack([row for _, row in described])).sum(1)
    return ClapScore(float(cosine.mean()), float(cosine.std()) if len(described) > 1 else None, len(described))
