"""The semantic bottleneck (SemBo): D-dimensional teacher features to d dimensions and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losatok_ext import ops

FACTORED_FRAMES = 128
"""Above this number of frames the time relation may use its factored form, which needs the teacher's energy."""


class Projection(nn.Module):
    """Two linear layers with GELU (erf) between: ``[..., in] -> [..., hidden] -> [..., out]``, as one fused op."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        return ops.bottleneck_project(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


class Bottleneck(nn.Module):
    """SemBo: :attr:`down` D -> hidden -> d and :attr:`up` d -> hidden -> D, with its two losses.

    Args:
        dim: D, width of the teacher's features.
        hidden_dim: width between.
        latent_dim: d.
    """

    def __init__(self, dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.down = Projection(dim, hidden_dim, latent_dim)
        self.up = Projection(latent_dim, hidden_dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """features [..., D] to low [..., d]."""
        return self.down(features)

    def restore(self, low: Tensor) -> Tensor:
        """low [..., k] to restored features [..., D]; k < d: the first k dimensions, the others zero."""
        up = self.up
        return ops.bottleneck_project(low, up.fc1.weight[:, : low.shape[-1]], up.fc1.bias, up.fc2.weight, up.fc2.bias)

    def losses(
        self,
        features: Tensor,
        lengths: Tensor | None = None,
        window: int | None = None,
        high_energy: Tensor | None = None,
        prefixes: Sequence[int] = (),
    ) -> dict[str, Tensor]:
        """Both losses of SemBo, unweighted.

        Args:
            features: teacher features [B, T, D]; they take no gradient.
            lengths: [B] int64 tokens, or None when all T are valid.
            window: keep only pairs of frames at most this far apart in the time relation (None: all pairs).
            high_energy: ``ops.gram_energy(features, lengths, window)``, if it is already known.
            prefixes: numbers of dimensions that should be usable alone; both losses are means over them. Empty: all d.

        Returns:
            ``sembo_reconstruction``: mean squared difference of the L2-normalised restored and teacher features
            (``2 (1 - cos) / D``); ``sembo_relation``: mean squared difference of the Gram matrices over time.
        """
        features = features.detach()
        low = self.down(features)
        up = self.up
        sizes = tuple(prefixes) or (low.shape[-1],)
        if high_energy is None and window is None and len(sizes) > 1 and low.shape[1] > FACTORED_FRAMES:
            high_energy = ops.gram_energy(features, lengths)  # the same for every prefix
        reconstruction, relation = [], []
        for size in sizes:
            # The same as zeros in the other dimensions, with smaller matrix products.
            part = low[..., :size]
            weights = up.fc1.weight[:, :size], up.fc1.bias, up.fc2.weight, up.fc2.bias
            reconstruction.append(ops.normalized_reconstruction_loss(part, features, *weights, lengths=lengths))
            relation.append(
                ops.time_relation_loss(part, features, lengths=lengths, window=window, high_energy=high_energy)
            )
        return {
            "sembo_reconstruction": torch.stack(reconstruction).mean(),
            "sembo_relation": torch.stack(relation).mean(),
        }


def upsample_tokens(x: Tensor, factor: int, lengths: Tensor) -> Tensor:
    """Linear interpolation over time to ``factor`` times the rate, each clip held constant beyond its own ends.

    New token j sits at ``(j + 0.5) / factor - 0.5`` old tokens (``align_corners=False``).

    Args:
        x: [B, T, C].
        factor: whole number; 1 returns ``x``.
        lengths: [B] int64 old tokens.

    Returns:
        [B, factor T, C]; new lengths are ``factor * lengths``.
    """
    if factor == 1 or x.shape[1] == 0:
        return x
    position = (torch.arange(x.shape[1] * factor, device=x.device, dtype=torch.float32) + 0.5) / factor - 0.5
    position = position.clamp(min=0.0)
    low = position.long()
    weight = (position - low)[:, None].to(x.dtype)
    last = (lengths - 1).clamp(min=0)[:, None]
    rows = torch.arange(len(x), device=x.device)[:, None]
    return torch.lerp(x[rows, torch.minimum(low, last)], x[rows, torch.minimum(low + 1, last)], weight)
