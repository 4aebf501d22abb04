"""A linear classifier of a clip's features, whose loss supervises the features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext.masks import keep_valid


class LabelProbe(nn.Module):
    """Mean over a clip's frames -> linear -> cross-entropy, the clip's label as the target.

    Args:
        dim: features of a frame.
        classes: number of different labels.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, classes)

    def forward(self, features: Tensor, lengths: Tensor | None, labels: Tensor) -> Tensor:
        """The cross-entropy in nats, mean over the labelled clips with frames: a float32 scalar; 0 if there are none.

        Args:
            features: [B, T, dim]; computed in float32, also under autocast.
            lengths: [B] int64 frames (None: all T). Values past a length, even NaN, are not read.
            labels: [B] int64 class of each clip; -1 where it has none.
        """
        with torch.autocast(features.device.type, enabled=False):
            total = keep_valid(features.float(), lengths).sum(1)
            if lengths is None:
                lengths = torch.full_like(labels, features.shape[1])
            logits = self.linear(total / lengths.clamp(min=1)[:, None])
            labels = torch.where(lengths > 0, labels, -1)
            nats = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
            return nats / (labels >= 0).sum().clamp(min=1)
