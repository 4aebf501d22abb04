"""What the configurations of all kinds of quantizers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from losatok_ext.configuration import Configuration, Count, Range, Share

CONFIGS: dict[str, type[QuantizerConfig]] = {}
"""The configuration of each kind; a subclass with a ``kind`` of its own adds itself."""


@dataclass(frozen=True)
class QuantizerConfig(Configuration):
    """Base of the configurations of all kinds. A mapping says by ``kind`` which one it describes.

    Raises:
        ConfigError: a value of the wrong kind, or values that do not fit together.
    """

    kind: ClassVar[str]
    """Names the kind in :meth:`to_dict`, such as ``"vq"``; the keys of ``CONFIGS`` are all kinds."""

    later: ClassVar[frozenset[str]] = frozenset()
    """Fields of this class that are younger than the kinds which have them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            CONFIGS[cls.kind] = cls

    @classmethod
    def variants(cls) -> Mapping[str, type[QuantizerConfig]]:
        """The configuration of each kind."""
        return {kind: config for kind, config in CONFIGS.items() if issubclass(config, cls)}

    def to_dict(self) -> dict[str, Any]:
        """``"kind"`` and all fields by name, of what JSON and YAML have; :meth:`from_dict` reads them back.

        A field that is younger than its kind is left out while it has its default, so that models and files from before
        keep their fingerprints.
        """
        later = {name for kind in type(self).__mro__ for name in kind.__dict__.get("later", ())}
        values = super().to_dict()
        return {
            name: value for name, value in values.items() if name not in later or value != getattr(type(self), name)
        }

    def check_dim(self, dim: int) -> None:
        """Raise ConfigError where latents of ``dim`` features cannot be quantized so."""


@dataclass(frozen=True)
class StagedConfig(QuantizerConfig):
    """Base of the kinds that give a token several codes, each for what the codes before it leave over.

    Attributes:
        stages: Q, codes per token.
        dropout: share of the clips of a training batch that use only the first stages, as many as drawn for each clip.
        min_stages: smallest number of stages that such a clip uses.
        dropout_multiple_of: the number drawn is rounded up to a multiple of this (and down to Q): fewer numbers of
            stages are then trained, each of them more often.
        stage_gradients: each stage passes its own gradient on, and the latent gets the sum over the stages, as in
            vector-quantize-pytorch: straight-through then multiplies the gradient by the number of stages. False: the
            gradient is that of the sum of the codes, once.
    """

    later: ClassVar[frozenset[str]] = frozenset({"dropout_multiple_of"})

    stages: Annotated[int, Range(1, 1024)] = 8
    dropout: Share = 0.0
    min_stages: Count = 1
    dropout_multiple_of: Count = 1
    stage_gradients: bool = False

    def _check_fit(self) -> None:
        super()._check_fit()
        for name in ("min_stages", "dropout_multiple_of"):
            self._require(getattr(self, name) <= self.stages, name, f"at most the number of stages ({self.stages})")
