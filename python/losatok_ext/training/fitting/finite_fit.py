"""Fitting FSQ levels to latents of a trained model: directions, scales, and the linear map back."""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext import ops
from losatok_ext.nn.quantizers import FSQ

_GAINS = [0.3 * 1.12**step for step in range(24)]  # 0.3 to 4: of a component of variance 1, before tanh


@torch.no_grad()
def fit_levels(quantizer: FSQ, rows: Tensor) -> None:
    """Set both linear maps of ``quantizer`` so that its error on ``rows`` is small.

    The map to the levels is the principal components of the rows; the one with the largest variance goes to the
    dimension with the most levels. Each is scaled by the best of 24 gains. The map back is a least-squares fit.

    Args:
        quantizer: with fewer dimensions than the latent.
        rows: [n, d] float32, more than the quantizer has dimensions.
    """
    assert quantizer.project_in is not None
    assert quantizer.project_out is not None
    levels = list(quantizer.config.levels) * quantizer.config.num_codebooks
    values = rows.double()
    mean = values.mean(0)
    spread, directions = torch.linalg.eigh((values - mean).t() @ (values - mean) / len(rows))
    order = sorted(range(len(levels)), key=lambda i: -levels[i])
    chosen = torch.empty(len(levels), rows.shape[1], dtype=torch.float64, device=rows.device)
    for rank, dimension in enumerate(order):
        direction = directions[:, -1 - rank]
        sign = torch.sign(direction[direction.abs().argmax()])  # of the two that are as good, always the same
        component = (values - mean) @ direction
        deviation = spread[-1 - rank].clamp(min=0).sqrt().clamp(min=1e-12)
        gain = _best_gain((component / deviation).float(), levels[dimension])
        chosen[dimension] = sign * direction * gain / deviation
    quantizer.project_in.weight.copy_(chosen)
    quantizer.project_in.bias.copy_(-(chosen @ mean))
    inner = quantizer.project_in(rows).view(-1, len(quantizer.config.levels))
    quantized = ops.fsq_quantize(inner, quantizer.config.levels)[0].view(len(rows), -1).double()
    known = torch.cat((quantized, torch.ones_like(quantized[:, :1])), dim=1)
    # The normal equations with a small ridge: a level that is never reached would make them singular.
    gram = known.t() @ known + 1e-9 * len(rows) * torch.eye(known.shape[1], dtype=known.dtype, device=known.device)
    back = torch.linalg.solve(gram, known.t() @ values)
    quantizer.project_out.weight.copy_(back[:-1].t())
    quantizer.project_out.bias.copy_(back[-1])


def _best_gain(component: Tensor, levels: int) -> float:
    """The scale before tanh at which ``levels`` levels explain the most of ``component`` [n], of variance 1."""
    scaled = component.unsqueeze(1) * torch.tensor(_GAINS, device=component.device)
    quantized = ops.fsq_quantize(scaled.reshape(-1, 1), [levels])[0].view_as(scaled).double()
    centred = quantized - quantized.mean(0)
    explained = (centred * component.double().unsqueeze(1)).sum(0).square() / centred.square().sum(0).clamp(min=1e-12)
    return _GAINS[int(explained.argmax())]
