"""Grouped quantizers of vector-quantize-pytorch as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from losatok_ext.nn.quantizers.base import Quantizer
from losatok_ext.nn.quantizers.config import GroupedConfig
from losatok_ext.nn.quantizers.convert.shared import Options, refuse
from losatok_ext.nn.quantizers.grouped import GroupedQuantizer

_OPTIONS: Options = (("accept_image_fmap", "accept_image_fmap", False),)


def grouped(module: Any, kind: str, each: Callable[[Any], Quantizer]) -> Quantizer:
    """A ``GroupedResidual...``, whose groups ``each`` converts."""
    refuse(module, kind, _OPTIONS)
    groups = [each(group) for group in module.rvqs]
    first = groups[0].config
    if any(group.config != first for group in groups):
        raise ValueError(f"{kind} has groups with different options, which losatok_ext.nn does not have")
    return GroupedQuantizer(GroupedConfig(module.groups, first), module.dim, groups)
