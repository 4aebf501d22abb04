"""What a training run is told: one typed configuration for all stages, from a file, the command line or Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from losatok_ext.errors import ConfigError
from losatok_ext.training.config import typed
from losatok_ext.training.config.data_options import AugmentConfig
from losatok_ext.training.config.options import CheckpointConfig, DataConfig, LogConfig, OptimizerConfig
from losatok_ext.training.config.stage_options import GeneratorOptions, SemBoWeights, TokenizerWeights
from losatok_ext.training.config.teacher_options import MaskedAutoencoderOptions
from losatok_ext.training.config.tokenizer_options import DiscriminatorOptions, SupervisionOptions
from losatok_ext.training.config.typed import require
from losatok_ext.training.config.validation_options import ValidationConfig


@dataclass(frozen=True)
class TrainConfig:
    """A training run, of any stage. Keys are those of the YAML file, and of ``--set`` with dots.

    Raises:
        ConfigError: a value out of its range, or ``init`` together with ``preset``, ``model`` or ``teacher``.
    """

    preset: Literal["tiny", "base", "wide"] | None = None
    """Size of the model; ``base``, the published one, where neither this nor ``init`` is given. ``wide`` is a
    generator's only."""
    model: dict[str, Any] = field(default_factory=dict)
    """Keys of ``LoSATokConfig``, for a generator of ``DiTConfig``, that replace the preset's."""
    teacher: str | None = None
    """SemBo: the teacher by name, as :func:`losatok_ext.models.teachers.registry.open_teacher` takes it. Without it the
    teacher is a frozen Dasheng of the preset's size with seeded random weights."""
    init: str | None = None
    """Model folder to start from. The tokenizer stage needs one that ``train sembo`` wrote; a generator may go on from
    another."""
    quantizer: dict[str, Any] = field(default_factory=dict)
    """Tokenizer: a quantizer to train with the rest (``kind``: vq, rvq, fsq, lfq or affine, and keys of its
    configuration), in place of the one that the model of ``init`` may have."""
    steps: int | None = None
    """Optimizer steps; null takes the paper's (SemBo, generator 100 000, tokenizer 1 000 000); a teacher's 400 000."""
    batch_size: int = 16
    """Crops per step."""
    seed: int = 0
    """Decides new weights, the order of clips, crops and sampling noise."""
    device: str = "auto"
    """A torch device such as ``cpu`` or ``cuda:1``; ``auto`` is the GPU where torch sees one, else the CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16`` runs the network under autocast; weights, losses and the optimizer stay float32."""
    max_skipped: int = 10
    """Steps whose losses or gradient are not finite are skipped; after so many in a row training stops."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    masked_autoencoder: MaskedAutoencoderOptions = field(default_factory=MaskedAutoencoderOptions)
    sembo: SemBoWeights = field(default_factory=SemBoWeights)
    tokenizer: TokenizerWeights = field(default_factory=TokenizerWeights)
    discriminator: DiscriminatorOptions = field(default_factory=DiscriminatorOptions)
    supervision: SupervisionOptions = field(default_factory=SupervisionOptions)
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 1, f"steps should be at least 1, got {self.steps}")
        require(self.batch_size >= 1, f"batch_size should be at least 1, got {self.batch_size}")
        require(0 <= self.seed < 2**63, f"seed should lie within 0..2^63-1, got {self.seed}")
        require(self.max_skipped >= 1, f"max_skipped should be at least 1, got {self.max_skipped}")
        if self.init is not None:
            for name in ("preset", "model", "teacher"):
                require(
                    not getattr(self, name),
                    f"{name} cannot be given together with init: the folder {self.init} decides it",
                )

    @staticmethod
    def from_dict(values: Mapping[str, Any], source: str = "config") -> TrainConfig:
        """The configuration that nested ``values`` describe; ``source`` begins error messages.

        Raises:
            ConfigError: an unknown key, a value of the wrong kind or out of range.
        """
        return typed.build(TrainConfig, values, source)

    @staticmethod
    def load(
        path: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        assignments: Iterable[str] = (),
        base: TrainConfig | None = None,
    ) -> TrainConfig:
        """The configuration of a YAML file, then of ``options`` (nested), then of ``assignments`` (``"a.b=c"``): later
        ones win.

        Args:
            base: what the file starts from, instead of the defaults.

        Raises:
            ConfigError: the file cannot be read, or a key or value does not fit; the message names where it stood.
        """
        values = base.to_dict() if base else {}
        source = "config"
        layers = [] if path is None else [(str(path), typed.read_yaml(Path(path)))]
        layers += [("options", dict(options or {})), ("--set", typed.parse_assignments(assignments))]
        for name, layer in layers:
            if layer:
                typed.fit(TrainConfig, layer, name)  # each alone, so that the message names where it stood
                values, source = typed.merge(values, layer), name
        return typed.build(TrainConfig, values, source)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, fit for JSON and YAML; :meth:`from_dict` reads them back."""
        return _plain(dataclasses.asdict(self))

    def torch_device(self) -> torch.device:
        """The device to train on.

        Raises:
            ConfigError: ``device`` is no torch device, or is not there.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ConfigError(f"device should be auto, cpu, cuda or cuda:N, got {self.device!r}") from None
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"device should be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"device {self.device} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
                "devices; use device cpu"
            )
        return device


def _plain(value: Any) -> Any:
    """``value`` with lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    return [_plain(below) for below in value] if isinstance(value, tuple | list) else value


FREE_KEYS = (
    "device",
    "data.workers",
    "optimizer.accumulate",
    "validation.data",
    "validation.every",
    "validation.clips",
    "validation.shown",
    "checkpoint.every",
    "checkpoint.keep",
    "log.every",
    "log.tensorboard",
)
"""Keys that may change when a run goes on: they do not change what is learned (device and accumulation only in
rounding)."""


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key was then, is now`` for each key in which two :meth:`TrainConfig.to_dict` differ, but :data:`FREE_KEYS`."""
    found = []
    for key in sorted(set(then) | set(now)):
        name, a, b = prefix + key, then.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, name + ".")
        elif a != b and name not in FREE_KEYS:
            found.append(f"{name} was {a!r}, is now {b!r}")
    return found
