"""The configuration of a quantizer for each group of features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from losatok_ext.configuration import Range
from losatok_ext.errors import ConfigError
from losatok_ext.nn.quantizers.config.base import QuantizerConfig
from losatok_ext.nn.quantizers.config.codebooks import ResidualVQConfig


@dataclass(frozen=True)
class GroupedConfig(QuantizerConfig):
    """A quantizer for each of several equal groups of features: :class:`losatok_ext.nn.GroupedQuantizer`.

    Attributes:
        groups: G, which has to divide the features of the latent.
        each: the quantizer of every group; any kind but ``"grouped"``.
    """

    kind: ClassVar[str] = "grouped"

    groups: Annotated[int, Range(1, 1024)] = 2
    each: QuantizerConfig = field(default_factory=ResidualVQConfig)

    def _check_fit(self) -> None:
        self._require(not isinstance(self.each, GroupedConfig), "each", "of another kind: groups have no groups")

    def check_dim(self, dim: int) -> None:
        """Raise ConfigError unless ``groups`` divide ``dim`` features."""
        if dim % self.groups:
            raise ConfigError(f"groups should divide the {dim} features of the latent, got {self.groups}")
        self.each.check_dim(dim // self.groups)
