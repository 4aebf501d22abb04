"""How compressible features are, and what a semantic bottleneck keeps of them compared with PCA and channel merging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from losatok_ext import ops
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics import rank
from losatok_ext.evaluation.metrics.baselines import BASELINES, take_moments
from losatok_ext.evaluation.tasks.features import FeatureSet
from losatok_ext.models import LoSATok

SHARES = (0.9, 0.95, 0.99)
"""Shares of the variance for which the fewest principal axes are reported."""


@dataclass(frozen=True)
class Spectrum:
    """How the variance of features is distributed over their principal axes.

    Attributes:
        feature: its name.
        group: a value of the key that clips are grouped by, or ``all``.
        clips, frames: number of clips and frames in it.
        dims: D.
        effective_rank, participation_ratio: see :mod:`losatok_ext.evaluation.metrics.rank`.
        axes_for: fewest principal axes that hold each of :data:`SHARES` of the variance.
        explained: share of the variance that the first 1, 2, ..., D axes hold.
    """

    feature: str
    group: str
    clips: int
    frames: int
    dims: int
    effective_rank: float
    participation_ratio: float
    axes_for: dict[float, int]
    explained: list[float]


@dataclass(frozen=True)
class Reduction:
    """What a reduction of features to d dimensions keeps, measured on clips that it was not fitted to.

    Attributes:
        method: ``pca``, ``merge`` or ``SemBo``.
        dims: d.
        explained: share of the variance that the restored frames explain; below 0 where the mean would be closer.
        cosine: cosine of restored and original frames, mean over frames.
        relation: time-relation loss of the d dimensions: mean squared difference of the cosines of all pairs of frames
            of a clip, mean over clips by frames.
    """

    method: str
    dims: int
    explained: float
    cosine: float
    relation: float


@dataclass
class Analysis:
    """What :func:`analyze` found.

    Attributes:
        spectra: by feature and group.
        reduced: the feature that was reduced; ``""`` for none.
        reductions: by method and d.
        fitted_clips, measured_clips: the two halves of the clips.
    """

    spectra: list[Spectrum]
    reduced: str = ""
    reductions: list[Reduction] = field(default_factory=list)
    fitted_clips: int = 0
    measured_clips: int = 0


def analyze(
    features: FeatureSet,
    names: Sequence[str],
    key: str = "domain",
    dims: Sequence[int] = (),
    reduced: str = "",
    model: LoSATok | None = None,
) -> Analysis:
    """Spectra of features by group, and reductions of one of them.

    Args:
        features: with all of ``names``.
        names: features whose spectra are computed.
        key: of the manifest; clips are grouped by its values, besides the group of all clips. Groups of fewer than two
            frames are left out.
        dims: dimensions to reduce to; those that are not below the feature's are left out.
        reduced: the feature to reduce. Reductions are fitted to every other clip and measured on the rest (a single
            clip serves for both).
        model: whose SemBo is measured too, at its own width, where ``reduced`` is ``"semantic"``.

    Raises:
        UserError: fewer than two frames.
    """
    values = [item.values.get(key) for item in features.items]
    groups = {"all": list(range(len(values)))}
    for value in sorted({value for value in values if value is not None}):
        groups[value if value != "all" else f"{key} all"] = [i for i, own in enumerate(values) if own == value]
    if len(groups) == 2 and len(groups["all"]) == len(list(groups.values())[1]):
        del groups[list(groups)[1]]  # one group of all clips says nothing new
    found = Analysis([])
    for name in names:
        clips = features.load(name)
        if sum(map(len, clips)) < 2:
            raise UserError("there are fewer than 2 frames of features; give more clips")
        for group, members in groups.items():
            own = [clips[i] for i in members]
            if sum(map(len, own)) >= 2:
                found.spectra.append(_spectrum(name, group, own))
    if reduced:
        clips = features.load(reduced)
        fitted, measured = (clips[::2], clips[1::2]) if len(clips) > 1 else (clips, clips)
        found.reduced, found.fitted_clips, found.measured_clips = reduced, len(fitted), len(measured)
        found.reductions = _reductions(fitted, measured, dims, model if reduced == "semantic" else None)
    return found


def _spectrum(name: str, group: str, clips: Sequence[Tensor]) -> Spectrum:
    moments = take_moments(clips)
    variances = moments.variances()
    return Spectrum(
        name,
        group,
        len(clips),
        moments.count,
        moments.width,
        rank.effective_rank(variances),
        rank.participation_ratio(variances),
        {share: rank.dimensions_for(variances, share) for share in SHARES},
        rank.explained_variance(variances).tolist(),
    )


def _reductions(
    fitted: Sequence[Tensor], measured: Sequence[Tensor], dims: Sequence[int], model: LoSATok | None
) -> list[Reduction]:
    moments = take_moments(fitted)
    results = []
    for name, kind in BASELINES.items():
        for width in sorted(set(dims)):
            if width < moments.width:
                own = kind(width).fit(moments)
                pairs = [(low := own.transform(clip), own.restore(low)) for clip in measured]
                results.append(_kept(name, width, measured, pairs))
    if model is not None:
        with torch.no_grad():
            device, dtype = model.device, model.fc_mu.weight.dtype
            pairs = []
            for clip in measured:
                low = model.bottleneck.down(clip.to(device, dtype))
                pairs.append((low.float().cpu(), model.bottleneck.up(low).float().cpu()))
        results.append(_kept("SemBo", model.config.latent_dim, measured, pairs))
    return results


def _kept(method: str, dims: int, clips: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> Reduction:
    total = take_moments(clips)
    error = cosine = relation = 0.0
    for clip, (low, restored) in zip(clips, pairs, strict=True):
        error += float((restored.double() - clip.double()).square().sum())
        cosine += float(torch.nn.functional.cosine_similarity(restored.double(), clip.double(), dim=1).sum())
        relation += len(clip) * float(ops.time_relation_loss(low[None].double(), clip[None].double()))
    variance = float(total.covariance.trace())
    explained = 1 - error / total.count / variance if variance > 0 else 1.0
    return Reduction(method, dims, explained, cosine / total.count, relation / total.count)
