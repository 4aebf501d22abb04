"""What simple classifiers (probes) can predict from features, over several splits of the clips by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.baselines import take_moments
from losatok_ext.evaluation.metrics.probes import PROBES, Data, Score, majority, standardise
from losatok_ext.evaluation.metrics.splits import TEST, TRAIN, VALIDATION, split_by_source
from losatok_ext.evaluation.reporting.numbers import mean_and_spread
from losatok_ext.evaluation.tasks.features import FeatureSet, Spec
from losatok_ext.recordings.labelled import Item

LEVELS = ("clip", "frame")
POOLS = ("mean", "mean+std")
SOURCES = ("source", "speaker", "voice")
"""Keys of a manifest that clips are split by: the first that is there."""
MAX_FRAMES = 20_000
"""At most as many frames of each part of a split at frame level, and to fit a reduction to."""

_LEAST = 3  # sources that a class needs: one in each part of a split


@dataclass(frozen=True)
class Task:
    """A classification task: the clips, the class of each, and its source.

    Attributes:
        label: key of the manifest.
        classes: names.
        clips: indices into the feature set.
        labels: class of each of ``clips``.
        sources: source of each of ``clips``, such as the speaker.
        source_key: key of the manifest that names the source; ``"clip"`` where each clip is its own source.
        left_out: classes with too few sources -> their number of sources.
    """

    label: str
    classes: tuple[str, ...]
    clips: tuple[int, ...]
    labels: tuple[int, ...]
    sources: tuple[str, ...]
    source_key: str
    left_out: dict[str, int]


class OverSeeds(NamedTuple):
    """A figure over seeds: mean, sample standard deviation (None for one seed), and the value of each seed."""

    mean: float
    spread: float | None
    each: list[float]


@dataclass(frozen=True)
class ProbeRow:
    """One probe of one feature.

    Attributes:
        feature: its name, as in ``--feature``.
        dims: input dimensions of the probe.
        probe: a name of ``PROBES``.
        accuracy, balanced: accuracy, and mean accuracy over classes.
        settings: what was chosen on the validation set, seed by seed.
    """

    feature: str
    dims: int
    probe: str
    accuracy: OverSeeds
    balanced: OverSeeds
    settings: list[float]


@dataclass
class ProbeResult:
    """What :func:`evaluate_probe` found for one task.

    Attributes:
        task: the task.
        level: ``"clip"`` or ``"frame"``.
        seeds: of the splits.
        majority: accuracy of always predicting the most frequent class.
        test_rows: rows of the test set, seed by seed.
        unseen: test rows left out because the training set has none of their class, seed by seed.
        rows: one per feature and probe.
    """

    task: Task
    level: str
    seeds: list[int]
    majority: OverSeeds
    test_rows: list[int]
    unseen: list[int]
    rows: list[ProbeRow] = field(default_factory=list)


def find_task(items: Sequence[Item], label: str, source: str | None = None, segments: bool = False) -> Task:
    """The task of predicting ``label``.

    Args:
        items: of a feature set, in its order.
        label: key of the manifest; items without it are left out.
        source: key of the manifest that names the source of a clip; ``"clip"``: each clip is its own source; None: the
            first of :data:`SOURCES` that an item has and that is not the label. An item without it is its own source.
        segments: the classes are the labels of segments, and items without segments are left out; ``label`` is then
            only the name of the task.

    Raises:
        UserError: no item has the label, or fewer than two classes have three sources.
    """
    part = [i for i, item in enumerate(items) if (item.segments if segments else label in item.values)]
    if not part:
        keys = sorted({key for item in items for key in item.values} - {"path"})
        raise UserError(
            f"no clip has a {label!r}; --label takes a key of the manifest: {', '.join(keys) or 'there is none'}"
        )
    if source is None:
        candidates = (key for key in SOURCES if key != label and any(key in items[i].values for i in part))
        source = next(candidates, "clip")
    elif source != "clip" and not any(source in items[i].values for i in part):
        raise UserError(f"no clip with a {label!r} has a {source!r}; --source takes a key of the manifest, or clip")
    sources = [items[i].values.get(source, f"clip {items[i].name}") for i in part]
    if segments:
        names = sorted({segment.label for i in part for segment in items[i].segments})
        return Task(label, tuple(names), tuple(part), (0,) * len(part), tuple(sources), source, {})
    values = [items[i].values[label] for i in part]
    found = {value: {s for v, s in zip(values, sources, strict=True) if v == value} for value in set(values)}
    left_out = {value: len(own) for value, own in sorted(found.items()) if len(own) < _LEAST}
    classes = sorted(set(found) - set(left_out))
    if len(classes) < 2:
        counts = ", ".join(f"{value} {len(own)}" for value, own in sorted(found.items())[:8])
        raise UserError(
            f"{label!r} has {len(classes)} classes with at least {_LEAST} sources (by {source}: {counts}), and a probe "
            f"needs 2; give more clips{'' if source == 'clip' else ', or --source clip to split by clip'}"
        )
    kept = [k for k, value in enumerate(values) if value not in left_out]
    return Task(
        label,
        tuple(classes),
        tuple(part[k] for k in kept),
        tuple(classes.index(values[k]) for k in kept),
        tuple(sources[k] for k in kept),
        source,
        left_out,
    )


def evaluate_probe(
    features: FeatureSet,
    task: Task,
    specs: Sequence[Spec],
    *,
    level: str = "clip",
    pool: str = "mean",
    seeds: Sequence[int] = range(5),
    segments: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ProbeResult:
    """Train and test the probes on each feature and each seed's split.

    Reductions are fitted to the training clips of each split. At clip level the frames of a clip are pooled to one row;
    at frame level each frame is a row with the class of its clip, or with ``segments`` the class of the segment that
    its middle lies in (frames outside of all segments are left out).

    Args:
        features: with every base of ``specs``.
        task: from :func:`find_task` for ``features.items``.
        specs: features to probe.
        level: ``"clip"`` or ``"frame"``.
        pool: ``"mean"``, or ``"mean+std"`` (mean and standard deviation), over the frames of a clip.
        seeds: one split for each.
        segments: take classes from segments; needs ``level="frame"`` and a frame rate.
        progress: called with the name of each feature when it is done.

    Raises:
        ValueError: an unknown level or pool, or no seed.
        UserError: a split without training, validation or test rows of two classes.
    """
    if level not in LEVELS or pool not in POOLS or not seeds:
        raise ValueError(f"level should be one of {LEVELS}, pool one of {POOLS}, seeds not empty; got {level}, {pool}")
    splits = [split_by_source(task.labels, task.sources, seed) for seed in seeds]
    classes = [_segment_classes(features, task, clip, specs[0].base) for clip in task.clips] if segments else None
    scores: dict[tuple[str, str], list[Score]] = {}
    dims: dict[str, int] = {}
    common, rows, unseen = [], [], []
    for spec in specs:
        clips = [features.load_one(clip, spec.base) for clip in task.clips]
        for seed, split in zip(seeds, splits, strict=True):
            reduced = _reduced(clips, spec, split, seed)
            parts, missing = _parts(reduced, task, split, level, pool, classes, seed)
            train, validation, test = parts
            dims[str(spec)] = train.x.shape[1]
            if spec is specs[0]:
                common.append(majority(train.y, test.y, len(task.classes)))
                rows.append(len(test.y))
                unseen.append(missing)
            for name, probe in PROBES.items():
                scores.setdefault((str(spec), name), []).append(probe(train, validation, test, len(task.classes)))
        if progress is not None:
            progress(str(spec))
    result = ProbeResult(task, level, list(seeds), _over_seeds(common), rows, unseen)
    for (feature, name), found in scores.items():
        accuracy, balanced = _over_seeds([s.accuracy for s in found]), _over_seeds([s.balanced for s in found])
        result.rows.append(ProbeRow(feature, dims[feature], name, accuracy, balanced, [s.setting for s in found]))
    return result


def _over_seeds(values: list[float]) -> OverSeeds:
    mean, spread, _ = mean_and_spread(values)
    assert mean is not None
    return OverSeeds(mean, spread, values)


def _reduced(clips: list[Tensor], spec: Spec, split: Tensor, seed: int) -> list[Tensor]:
    reduction = spec.reduction()
    if reduction is None:
        return clips
    train = torch.cat([clip for clip, place in zip(clips, split.tolist(), strict=True) if place == TRAIN])
    reduction.fit(take_moments(train[_choose(len(train), seed)]))
    return [reduction.transform(clip) for clip in clips]


def _choose(count: int, seed: int) -> Tensor:
    """Indices of at most MAX_FRAMES of ``count`` rows, in order."""
    if count <= MAX_FRAMES:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:MAX_FRAMES].sort().values


def _segment_classes(features: FeatureSet, task: Task, clip: int, base: str) -> Tensor:
    """The class of each frame of a clip by where its middle lies: [T] int64, -1 outside of all segments."""
    if features.frame_rate is None:
        raise UserError("segments are in seconds, and .npy files have no frame rate; give recordings or latent files")
    middles = (torch.arange(len(features.load_one(clip, base))) + 0.5) / features.frame_rate
    classes = torch.full(middles.shape, -1, dtype=torch.int64)
    for segment in features.items[clip].segments:
        classes[(middles >= segment.start) & (middles < segment.end)] = task.classes.index(segment.label)
    return classes


def _parts(
    clips: list[Tensor], task: Task, split: Tensor, level: str, pool: str, segments: list[Tensor] | None, seed: int
) -> tuple[list[Data], int]:
    """Standardised training, validation and test data, and how many test rows have a class that training lacks."""
    xs: list[list[Tensor]] = [[], [], []]
    ys: list[list[Tensor]] = [[], [], []]
    for index, (clip, place) in enumerate(zip(clips, split.tolist(), strict=True)):
        x = clip.double() if level == "frame" else _pooled(clip, pool)
        y = torch.full((len(x),), task.labels[index], dtype=torch.int64)
        if segments is not None:
            known = segments[index] >= 0
            x, y = x[known], segments[index][known]
        xs[place].append(x)
        ys[place].append(y)
    parts = []
    for place, name in ((TRAIN, "training"), (VALIDATION, "validation"), (TEST, "test")):
        if not sum(len(y) for y in ys[place]):
            raise UserError(
                f"{task.label!r} by {task.source_key}: nothing is left for {name}; give more clips, or --source clip"
            )
        x, y = torch.cat(xs[place]), torch.cat(ys[place])
        chosen = _choose(len(x), seed)
        parts.append(Data(x[chosen], y[chosen]))
    train, validation, test = parts
    seen = torch.zeros(len(task.classes), dtype=torch.bool)
    seen[train.y] = True
    if int(seen.sum()) < 2 or not bool(seen[test.y].any()) or not bool(seen[validation.y].any()):
        raise UserError(
            f"{task.label!r} by {task.source_key}: a split has fewer than two classes to learn, or none of them "
            "to test; give more clips, or --source clip"
        )
    test_seen, validation_seen = seen[test.y], seen[validation.y]
    x, validation_x, test_x = standardise(train.x, validation.x[validation_seen], test.x[test_seen])
    data = [Data(x, train.y), Data(validation_x, validation.y[validation_seen]), Data(test_x, test.y[test_seen])]
    return data, int((~test_seen).sum())


def _pooled(clip: Tensor, pool: str) -> Tensor:
    """The frames of a clip as one row: [1, D] float64, or [1, 2 D] with standard deviations."""
    frames = clip.double()
    mean = frames.mean(0)
    return (mean if pool == "mean" else torch.cat([mean, frames.std(0, unbiased=False)]))[None]


def class_counts(task: Task) -> dict[str, int]:
    """Number of clips of each class."""
    counts = Counter(task.labels)
    return {name: counts[index] for index, name in enumerate(task.classes)}
