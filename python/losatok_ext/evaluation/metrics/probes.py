"""Two probes of features, linear and nearest neighbours. Neither has settings for the user to tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""L2 penalties of the linear probe; the best one on the validation set is taken."""
NEIGHBOURS = (1, 3, 5, 10, 20)
"""Numbers of neighbours; the best one on the validation set is taken."""

_TEMPERATURE = 0.07  # of the neighbours' votes (Wu et al. 2018)
_BLOCK = 4096  # rows whose neighbours are searched at once


class Data(NamedTuple):
    """Features ``x`` [n, D] float64 and their classes ``y`` [n] int64."""

    x: Tensor
    y: Tensor


class Score(NamedTuple):
    """The result of a probe on a test set, and the setting that was chosen on the validation set.

    Attributes:
        accuracy: share of rows that are classified correctly.
        balanced: the same share of each class of the test set, mean over classes.
        setting: L2 penalty, or number of neighbours.
    """

    accuracy: float
    balanced: float
    setting: float


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """``train`` [n, D] and the others minus the mean of ``train``, divided by its standard deviation, in float64.

    A dimension that is constant in ``train`` becomes 0.
    """
    x = train.double()
    mean, spread = x.mean(0), x.std(0, unbiased=False)
    constant = spread <= 1e-9 * mean.abs().clamp(min=1e-12)
    scale = torch.where(constant, 0.0, 1 / spread.clamp(min=1e-300))
    return [(values.double() - mean) * scale for values in (train, *others)]


def fit_logistic(data: Data, classes: int, penalty: float, start: Tensor | None = None) -> Tensor:
    """Multinomial logistic regression: weights [D + 1, classes] float64, the last row the biases.

    The minimum of the mean cross-entropy plus ``penalty / 2`` times the squared norm of the weights (without biases)
    is found by L-BFGS from ``start`` (None: zeros). It is unique up to a shift of all biases.

    Raises:
        RuntimeError: L-BFGS did not converge (an entry of the gradient is still above 1e-4).
    """
    weights = torch.zeros(data.x.shape[1] + 1, classes, dtype=torch.float64) if start is None else start.clone()
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=2000,
        max_eval=4000,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = data.x @ weights[:-1] + weights[-1]
        value = F.cross_entropy(logits, data.y) + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
        loss()
    assert weights.grad is not None
    left = float(weights.grad.abs().max())
    if not left <= 1e-4:
        raise RuntimeError(f"logistic regression did not converge: a gradient of {left:.1e} is left")
    return weights.detach()


def neighbour_votes(train: Data, x: Tensor, classes: int, count: int) -> Tensor:
    """Votes [n, classes] of the ``count`` rows of ``train`` that are nearest to each row of ``x`` [n, D] by cosine.

    Each votes for its class with ``exp(cosine / 0.07)``. Source: Wu et al. 2018, "Unsupervised feature learning via
    non-parametric instance discrimination", section 3.4.
    """
    count = min(count, len(train.x))
    base = F.normalize(train.x, dim=1)
    votes = []
    for rows in x.split(_BLOCK):
        cosine, nearest = (F.normalize(rows, dim=1) @ base.t()).topk(count, dim=1)
        block = torch.zeros(len(rows), classes, dtype=torch.float64)
        votes.append(block.scatter_add_(1, train.y[nearest], ((cosine - 1) / _TEMPERATURE).exp()))
    return torch.cat(votes)


def linear_probe(train: Data, validation: Data, test: Data, classes: int) -> Score:
    """The score on ``test`` of a linear probe with the penalty that is best on ``validation``.

    It is fitted to ``train`` with each penalty, then to ``train`` and ``validation`` with the best one.
    """
    start: Tensor | None = None
    scores = {}
    for penalty in sorted(PENALTIES, reverse=True):
        start = fit_logistic(train, classes, penalty, start)
        logits = validation.x @ start[:-1] + start[-1]
        loss = float(F.cross_entropy(logits, validation.y))
        scores[penalty] = (_accuracy(logits, validation.y), -loss)
    chosen = max(scores, key=lambda penalty: scores[penalty])
    weights = fit_logistic(_joined(train, validation), classes, chosen, start)
    return _score(test.x @ weights[:-1] + weights[-1], test.y, classes, chosen)


def neighbour_probe(train: Data, validation: Data, test: Data, classes: int) -> Score:
    """The score on ``test`` of nearest neighbours, with the number of neighbours that is best on ``validation``.

    Of equally good numbers the smallest is taken. Neighbours of ``test`` come from ``train`` and ``validation``.
    """
    scores = {k: _accuracy(neighbour_votes(train, validation.x, classes, k), validation.y) for k in NEIGHBOURS}
    chosen = max(NEIGHBOURS, key=lambda k: (scores[k], -k))
    votes = neighbour_votes(_joined(train, validation), test.x, classes, chosen)
    return _score(votes, test.y, classes, chosen)


PROBES: dict[str, Callable[[Data, Data, Data, int], Score]] = {"linear": linear_probe, "knn": neighbour_probe}


def majority(train: Tensor, test: Tensor, classes: int) -> float:
    """Accuracy on ``test`` [m] of always predicting the class that is most frequent in ``train`` [n]."""
    return float((test == torch.bincount(train, minlength=classes).argmax()).double().mean())


def _joined(*parts: Data) -> Data:
    return Data(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))


def _accuracy(scores: Tensor, y: Tensor) -> float:
    return float((scores.argmax(1) == y).double().mean())


def _score(scores: Tensor, y: Tensor, classes: int, setting: float) -> Score:
    right = (scores.argmax(1) == y).double()
    return Score(float(right.mean()), balanced_accuracy(right, y, classes), setting)


def balanced_accuracy(right: Tensor, y: Tensor, classes: int) -> float:
    """Mean over the classes in ``y`` [n] of the mean of ``right`` [n] (1 or 0) over the rows of each."""
    counts = torch.bincount(y, minlength=classes).double()
    hits = torch.bincount(y, weights=right.double(), minlength=classes)
    return float((hits / counts)[counts > 0].mean())
