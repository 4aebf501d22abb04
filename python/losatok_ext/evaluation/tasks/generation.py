"""How far generated clips lie from reference clips, in the features of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from losatok_ext.jobs.tokenize import sentence
from losatok_ext.recordings.find import Failure
from losatok_ext.recordings.labelled import Item

LEVELS = ("clip", "frame")
MAX_FRAMES = 20_000
"""Rows of either set at frame level; of more, every n-th is taken."""

_HALVES = 10  # of the reference, whose distances to each other are averaged


@dataclass(frozen=True)
class GenerationRow:
    """Distances in one feature space.

    Attributes:
        feature: its name; ``dims``: D.
        reference, generated: rows of either set.
        frechet, kernel: distances of the sets.
        extrapolated: Frechet distance at ever more generated clips; None for fewer than 9.
        halves_frechet, halves_kernel: mean distances of two halves of the reference, drawn 10 times: what clips of one
            kind score at half the number. None for fewer than 4 reference clips.
        warnings: what the figures cannot bear.
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
    """What generated clips were found to be.

    Attributes:
        rows: by feature.
        reference, generated: clips of either set that were used.
        clap_score: of generated clips; None where no CLAP model was given or no clip has a text.
        failures: clips that could not be used.
    """

    rows: list[GenerationRow]
    reference: list[Item]
    generated: list[Item]
    clap_score: ClapScore | None = None
    failures: list[Failure] = field(default_factory=list)


def clip_rows(features: FeatureSet, spec: Spec, level: str) -> list[Tensor]:
    """Rows [n_i, D] float64 of each clip: the mean of its frames, or at frame level the frames, thinned evenly to
    :data:`MAX_FRAMES` in all.

    Raises:
        UserError: ``spec`` is reduced: a reduction fitted to one set would favour it.
    """
    if spec.baseline is not None:
        raise UserError(f"--feature {spec}: distances are taken of whole features; leave out {spec.baseline}")
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
        feature: what they are, for the report.
        reference: rows of each clip.
        generated: likewise.
        samples: of the bootstrap over clips.
        seed: of all draws.

    Raises:
        UserError: fewer than two clips in a set.
        ValueError: different widths, or values that are not finite.
    """
    x, y = list(reference), list(generated)
    for name, clips in (("REFERENCE", x), ("GENERATED", y)):
        if len(clips) < 2:
            raise UserError(f"{name} has {len(clips)} clips that can be used; a distance between sets takes 2 of each")
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
    progress: Callable[[Item], None] | None = None,
    debug: bool = False,
) -> tuple[list[Item], list[Tensor], list[Failure]]:
    """Items that CLAP could embed, their embeddings [1, D], and those it could not.

    Args:
        clap: the model.
        items: recordings.
        sample_rate: Hz that they are read at: that of the model under test, so that no set has what the other cannot.
        progress: called after each item.
        debug: let the first error through instead of collecting it.
    """
    used, rows, failures = [], [], []
    for item in items:
        try:
            rows.append(clap.audio(read_audio(item.path, sample_rate), sample_rate)[None].double())
            used.append(item)
        except Exception as error:
            if debug:
                raise
            failures.append(Failure(item.path, sentence(item.path, error)))
        if progress is not None:
            progress(item)
    return used, rows, failures


def clap_score(clap: Clap, items: Sequence[Item], rows: Sequence[Tensor]) -> ClapScore | None:
    """How well clips fit their texts.

    Args:
        clap: the model.
        items: clips; those with a ``"text"`` count.
        rows: their embeddings, as :func:`clap_rows` gives them.
    """
    told = [(item.values["text"], row[0]) for item, row in zip(items, rows, strict=True) if item.values.get("text")]
    if not told:
        return None
    texts = clap.texts([text for text, _ in told]).double()
    cosine = (texts * torch.stack([row for _, row in told])).sum(1)
    return ClapScore(float(cosine.mean()), float(cosine.std()) if len(told) > 1 else None, len(told))
