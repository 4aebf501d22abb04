"""Measurements of the trained models: probes of their features, spectra of their reconstructions, ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from losatok_ext.audio.files import read_audio
from losatok_ext.evaluation.metrics.rank import Moments, effective_rank, explained_variance
from losatok_ext.evaluation.metrics.spectra import log_band_score
from losatok_ext.evaluation.tasks.features import FeatureSet, extract, parse_spec
from losatok_ext.evaluation.tasks.probe import evaluate_probe, find_task
from losatok_ext.models import LoSATok
from losatok_ext.recordings.labelled import Item

TASKS = ("digit", "voice", "instrument", "event")
"""Labels of the corpus: the spoken digit (tested on voices that were not trained on), the voice, the instrument, and
the sound event."""
SPLITS = {"digit": range(12)}
"""Seeds of the splits of a task; 0 to 2 for the other tasks. The four voices that speak digits differ much from each
other, and only with so many splits each of them is tested."""
DOMAINS = ("speech", "music", "environment")


def probes(features: FeatureSet, names: Sequence[str], tasks: Sequence[str] = TASKS) -> dict[str, dict[str, float]]:
    """Accuracy of a linear probe of each feature at clip level, by feature and task: a mean over :data:`SPLITS`."""
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    specs = [parse_spec(name) for name in names]
    for label in tasks:
        task = find_task(features.items, label)
        for row in evaluate_probe(features, task, specs, seeds=SPLITS.get(label, range(3))).rows:
            if row.probe == "linear":
                found[row.feature][label] = row.accuracy.mean
    return found


def chance(items: Sequence[Item], tasks: Sequence[str] = TASKS) -> dict[str, float]:
    """Accuracy of always giving the most frequent answer, by task."""
    labels = {task: [item.values[task] for item in items if task in item.values] for task in tasks}
    return {task: max(map(found.count, set(found))) / len(found) for task, found in labels.items()}


def features_of(model: LoSATok, items: Sequence[Item], names: Sequence[str], folder: Path) -> FeatureSet:
    """Features of all clips, kept in ``folder``."""
    return extract(model, items, [parse_spec(name).base for name in names], folder)


def ranks(features: FeatureSet, name: str) -> dict[str, dict[str, float]]:
    """By domain: effective rank, and the share of the variance in the first tenth of the dimensions."""
    moments: dict[str, Moments] = {}
    for index, item in enumerate(features.items):
        frames = features.load_one(index, name)
        moments.setdefault(item.domain, Moments(frames.shape[1])).add(frames)
    found = {}
    for domain, values in moments.items():
        variances = values.variances()
        tenth = explained_variance(variances)[max(values.width // 10, 1) - 1]
        found[domain] = {"effective_rank": effective_rank(variances), "tenth": float(tenth)}
    return found


def spectra(model: LoSATok, items: Sequence[Item]) -> float:
    """Log-band distance of reconstructed clips to the originals, divided by that of a constant spectrum."""
    pairs = []
    with torch.inference_mode():
        for item in items:
            audio = read_audio(item.path, model.sample_rate)
            pairs.append((model.reconstruct(audio)[0], audio))
    return log_band_score(pairs).ratio
