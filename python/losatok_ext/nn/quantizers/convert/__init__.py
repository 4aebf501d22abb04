"""From modules of the library vector-quantize-pytorch to ours, trained weights and statistics included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from losatok_ext.nn.quantizers.base import Quantizer
from losatok_ext.nn.quantizers.convert import codebooks, scalar
from losatok_ext.nn.quantizers.convert.grouped import grouped

__all__ = ["from_vector_quantize_pytorch"]

_CONVERTERS: dict[str, Callable[[Any], Quantizer]] = {
    "VectorQuantize": codebooks.vector,
    "ResidualVQ": codebooks.residual,
    "GroupedResidualVQ": lambda module: grouped(module, "GroupedResidualVQ", codebooks.residual),
    "SimVQ": codebooks.simple,
    "ResidualSimVQ": codebooks.residual_simple,
    "FSQ": scalar.finite,
    "ResidualFSQ": scalar.residual_finite,
    "GroupedResidualFSQ": lambda module: grouped(module, "GroupedResidualFSQ", scalar.residual_finite),
    "LFQ": scalar.lookup_free,
    "ResidualLFQ": scalar.residual_lookup_free,
    "GroupedResidualLFQ": lambda module: grouped(module, "GroupedResidualLFQ", scalar.residual_lookup_free),
}


def from_vector_quantize_pytorch(module: nn.Module) -> Quantizer:
    """Our quantizer with the options, weights and statistics of one of vector-quantize-pytorch.

    It chooses the same codes (but for equal distances), decodes them alike, and goes on training alike: gradients,
    moving means and the losses' values. Two things are drawn in another way: rows for a start and for revived codes,
    and which stages quantizer dropout leaves out, which theirs draws once per batch and ours per clip. With a mask,
    theirs takes the commitment loss before ``project_in`` and the normalization of ``use_cosine_sim``; ours takes it
    behind them, as both do without one.

    Args:
        module: a ``VectorQuantize``, ``SimVQ``, ``FSQ`` or ``LFQ`` of that library (held against version 1.32), or one
            of its ``Residual...`` or ``GroupedResidual...`` modules of these. The codes of groups, [G, B, T, Q] there,
            are [B, T, Q G] here, the first code of every group first: ``codes.permute(1, 2, 3, 0).flatten(2)``.

    Returns:
        A copy that shares no memory with ``module``, on its device and in its mode (training or eval).

    Raises:
        TypeError: a module of another class.
        ValueError: an option that ours does not have; the message names it.
    """
    for kind in type(module).__mro__:
        if kind.__module__.split(".")[0] == "vector_quantize_pytorch" and kind.__name__ in _CONVERTERS:
            with torch.no_grad():
                result = _CONVERTERS[kind.__name__](module)
            return result.train(module.training)
    raise TypeError(
        f"module should be one of {', '.join(_CONVERTERS)} of vector_quantize_pytorch, "
        f"got {type(module).__module__}.{type(module).__name__}"
    )
