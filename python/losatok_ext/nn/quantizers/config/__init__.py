"""The configuration of a quantizer: one dataclass for each kind."""

from collections.abc import Mapping
from typing import Any

from losatok_ext.nn.quantizers.config.base import CONFIGS, QuantizerConfig, StagedConfig
from losatok_ext.nn.quantizers.config.codebooks import CodebookConfig, ResidualVQConfig, SimVQConfig, VQConfig
from losatok_ext.nn.quantizers.config.grouped import GroupedConfig
from losatok_ext.nn.quantizers.config.scalar import (
    AffineConfig,
    FSQConfig,
    LFQConfig,
    ResidualFSQConfig,
    ResidualLFQConfig,
)

__all__ = [
    "CONFIGS",
    "AffineConfig",
    "CodebookConfig",
    "FSQConfig",
    "GroupedConfig",
    "LFQConfig",
    "QuantizerConfig",
    "ResidualFSQConfig",
    "ResidualLFQConfig",
    "ResidualVQConfig",
    "SimVQConfig",
    "StagedConfig",
    "VQConfig",
    "quantizer_config",
]


def quantizer_config(values: Mapping[str, Any]) -> QuantizerConfig:
    """The quantizer that ``values`` describe, as :meth:`QuantizerConfig.to_dict` writes them.

    Args:
        values: ``"kind"`` (one of ``CONFIGS``, such as ``"vq"``) and fields of that kind; those left out take their
            defaults.

    Raises:
        ConfigError: no or an unknown kind, an unknown key, or a value that does not fit.
    """
    return QuantizerConfig.from_dict(values)
