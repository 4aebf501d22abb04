"""Dividing labelled clips into training, validation and test so that no source is in two of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TRAIN, VALIDATION, TEST = 0, 1, 2
SHARES = (0.6, 0.2, 0.2)
"""Shares of the clips: training, validation, test."""

_ORDER = (TRAIN, TEST, VALIDATION)  # of splits that need a class equally, the first gets it


def split_by_source(labels: Sequence[int], sources: Sequence[str], seed: int) -> Tensor:
    """Which split each clip is in: [n] int64 of TRAIN, VALIDATION and TEST.

    All clips of a source go to the same split. Sources are taken from the largest to the smallest, shuffled by ``seed``
    within a size. Each goes to a split that its classes are missing in, otherwise to the one where they are furthest
    below the split's share. So a class is in all three splits if it has three sources with no other class.

    Args:
        labels: class of each clip, from 0.
        sources: what each clip comes from; clips of one source stay together.
        seed: of the shuffle.
    """
    generator = torch.Generator().manual_seed(seed)
    members: dict[str, list[int]] = {}
    for clip, source in enumerate(sources):
        members.setdefault(source, []).append(clip)
    groups = [members[source] for source in sorted(members)]
    order = torch.randperm(len(groups), generator=generator).tolist()
    order.sort(key=lambda index: -len(groups[index]))
    classes = max(labels) + 1
    totals = torch.bincount(torch.tensor(labels), minlength=classes).double().clamp(min=1)
    wanted = torch.tensor(SHARES, dtype=torch.float64)[:, None] * totals
    held = torch.zeros(3, classes, dtype=torch.float64)
    places = torch.zeros(len(labels), dtype=torch.int64)
    for index in order:
        own = torch.bincount(torch.tensor([labels[clip] for clip in groups[index]]), minlength=classes).double()
        missing = ((held == 0) & (own > 0)).sum(1)
        need = ((wanted - held) * own / totals).sum(1)
        place = max(_ORDER, key=lambda split: (int(missing[split]), float(need[split]), -_ORDER.index(split)))
        held[place] += own
        places[groups[index]] = place
    return places
