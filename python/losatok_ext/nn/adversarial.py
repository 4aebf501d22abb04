"""Adversarial losses over the scores of discriminators, and feature matching.

A loss is the mean over views of the mean over the frames within clips: neither the number of discriminators nor padding
changes its scale. Computed in float32 (float64 for float64), under autocast too.

Sources: hinge: Lim and Ye 2017 (arXiv 1705.02894); least squares: Mao et al. 2017 (arXiv 1611.04076); feature matching:
Larsen et al. 2016 (arXiv 1512.09300), as an L1 distance in MelGAN (Kumar et al. 2019), normalised in EnCodec (Défossez
et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from losatok_ext.masks import valid_mask
from losatok_ext.nn.discriminators.base import Scores

_TERMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (lambda fake: -fake, lambda real: (1 - real).relu(), lambda fake: (1 + fake).relu()),
    "least_squares": (lambda fake: (1 - fake).square(), lambda real: (1 - real).square(), lambda fake: fake.square()),
}
"""The terms of each loss, as functions of a logit: the generator's for decoded audio, and the discriminator's for
recorded and for decoded audio."""

ADVERSARIAL_LOSSES = tuple(_TERMS)
"""Names of the adversarial losses."""


def generator_loss(fakes: Sequence[Scores], kind: str = "hinge") -> Tensor:
    """The adversarial loss of the generator: low where discriminators take decoded audio for recorded audio.

    Args:
        fakes: scores of the decoded audio, one for each view.
        kind: ``"hinge"``: the mean of ``-logit``; ``"least_squares"``: of ``(1 - logit)^2``.

    Returns:
        A scalar, float32 (float64 for float64).

    Raises:
        ValueError: an unknown kind, or no scores.
    """
    term, _, _ = _terms(kind, fakes)
    return _mean([_masked_mean(term(_logits(scores)), _last(scores)) for scores in fakes])


def discriminator_loss(reals: Sequence[Scores], fakes: Sequence[Scores], kind: str = "hinge") -> Tensor:
    """The loss of the discriminators: low where they tell decoded from recorded audio.

    Args:
        reals: scores of the recorded audio, one for each view.
        fakes: scores of the decoded audio, which should be detached.
        kind: ``"hinge"``: the means of ``max(1 - real, 0)`` and ``max(1 + fake, 0)``, added; ``"least_squares"``: of
            ``(1 - real)^2`` and ``fake^2``.

    Returns:
        A scalar, float32 (float64 for float64).

    Raises:
        ValueError: an unknown kind, or scores that do not belong together.
    """
    _, real_term, fake_term = _terms(kind, reals)
    return _mean(
        [
            _masked_mean(real_term(_logits(real)), _last(real)) + _masked_mean(fake_term(_logits(fake)), _last(fake))
            for real, fake in zip(reals, fakes, strict=True)
        ]
    )


def feature_matching_loss(reals: Sequence[Scores], fakes: Sequence[Scores], normalize: bool = False) -> Tensor:
    """Mean absolute difference between the feature maps of the discriminators for recorded and for decoded audio.

    Args:
        reals: scores of the recorded audio, one for each view; no gradient goes to them.
        fakes: scores of the decoded audio.
        normalize: divide the difference of each layer by the mean magnitude of its map for the recorded audio, so that
            layers with large values do not dominate.

    Returns:
        A scalar, float32 (float64 for float64).

    Raises:
        ValueError: no scores, or scores that do not belong together.
    """
    if not reals:
        raise ValueError("reals should hold the scores of at least one view, got none")
    views = []
    for real, fake in zip(reals, fakes, strict=True):
        layers = []
        for index, (theirs, ours) in enumerate(zip(real.maps, fake.maps, strict=True)):
            lengths = None if real.lengths is None else real.lengths[index]
            theirs, ours = _accurate(theirs.detach()), _accurate(ours)
            distance = _masked_mean((ours - theirs).abs(), lengths)
            layers.append(distance / _masked_mean(theirs.abs(), lengths).clamp(min=1e-8) if normalize else distance)
        views.append(_mean(layers))
    return _mean(views)


def _terms(kind: str, scores: Sequence[Scores]) -> tuple[Callable[[Tensor], Tensor], ...]:
    if kind not in _TERMS:
        raise ValueError(f"kind should be one of {', '.join(map(repr, _TERMS))}, got {kind!r}")
    if not scores:
        raise ValueError("the scores of at least one view are needed, got none")
    return _TERMS[kind]


def _logits(scores: Scores) -> Tensor:
    """[B, 1, T, W]."""
    return _accurate(scores.logits).unsqueeze(1)


def _last(scores: Scores) -> Tensor | None:
    return None if scores.lengths is None else scores.lengths[-1]


def _accurate(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def _masked_mean(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean of ``x`` [B, C, T, W] over the frames below ``lengths`` [B] (None: all T); 0 where there are no frames."""
    if lengths is None:
        return x.mean()
    valid = valid_mask(lengths, x.shape[2])
    count = valid.sum() * (x.shape[1] * x.shape[3])
    return torch.where(valid[:, None, :, None], x, 0.0).sum() / count.clamp(min=1)
