"""The configuration of a training run: one for all stages, from a file, the command line or Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from losatok_ext.configuration import Configuration, Count, Range, from_layers, parse_assignments, read_yaml
from losatok_ext.errors import ConfigError
from losatok_ext.nn.quantizers import QuantizerConfig
from losatok_ext.training.config.data_options import AugmentConfig
from losatok_ext.training.config.options import CheckpointConfig, DataConfig, LogConfig, OptimizerConfig
from losatok_ext.training.config.stage_options import GeneratorOptions, SemBoWeights, TokenizerWeights
from losatok_ext.training.config.teacher_options import MaskedAutoencoderOptions
from losatok_ext.training.config.tokenizer_options import DiscriminatorOptions, SupervisionOptions
from losatok_ext.training.config.validation_options import ValidationConfig


@dataclass(frozen=True)
class TrainConfig(Configuration):
    """A training run, of any stage. Keys are those of the YAML file, and of ``--set`` with dots.

    The first sentence under a field is the help line of its command-line option, where ``losatok train`` has one.

    Raises:
        ConfigError: a value of the wrong kind or out of its range, or ``init`` together with ``preset``, ``model`` or
            ``teacher``.
    """

    preset: Literal["tiny", "base", "wide"] | None = None
    """Size of the model; ``wide`` is a generator's only. null is ``base``, the published size, where there is no
    ``init``."""
    model: dict[str, Any] = field(default_factory=dict)
    """Keys of ``LoSATokConfig``, for a generator of ``DiTConfig``, that replace the preset's."""
    teacher: str | None = None
    """SemBo: the teacher by name, as :func:`losatok_ext.models.teachers.registry.open_teacher` takes it. null is a
    frozen Dasheng of the preset's size with seeded random weights."""
    init: str | None = None
    """Model folder to start from, instead of a preset. A tokenizer starts from the folder that ``train sembo`` wrote, a
    generator from another generator."""
    quantizer: QuantizerConfig | None = None
    """Tokenizer: a quantizer to train with the rest (``kind``: vq, rvq, fsq, lfq or affine, and keys of its
    configuration), in place of the one that the model of ``init`` may have."""
    steps: Count | None = None
    """Optimizer steps. null takes the paper's: 100 000 for SemBo and a generator, 1 000 000 for a tokenizer; a teacher
    takes 400 000."""
    batch_size: Count = 16
    """Crops per step."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of new weights, of the order of clips, of crops and of sampling noise."""
    device: str = "auto"
    """Device to train on: cpu, cuda or cuda:N; auto is the GPU where torch sees one, else the CPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network: with bfloat16 it runs under autocast. Weights, losses and the optimizer stay
    float32."""
    max_skipped: Count = 10
    """Steps in a row whose losses or gradient are not finite, after which training stops. Each of them is skipped."""
    data: DataConfig = field(default_factory=DataConfig)
    """How audio becomes batches."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How crops of recordings are varied."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW, the learning rate, accumulation, and the moving mean of the weights."""
    masked_autoencoder: MaskedAutoencoderOptions = field(default_factory=MaskedAutoencoderOptions)
    """Teacher: how much of a clip is hidden, and what restores it."""
    sembo: SemBoWeights = field(default_factory=SemBoWeights)
    """SemBo: weights of the losses."""
    tokenizer: TokenizerWeights = field(default_factory=TokenizerWeights)
    """Tokenizer: weights of the losses."""
    discriminator: DiscriminatorOptions = field(default_factory=DiscriminatorOptions)
    """Tokenizer: the networks that the decoder trains against."""
    supervision: SupervisionOptions = field(default_factory=SupervisionOptions)
    """Tokenizer: what teaches the latents, besides reconstruction."""
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    """Generator: what it learns from, and how."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation: on what, and how often."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the state is written, and how many states are kept."""
    log: LogConfig = field(default_factory=LogConfig)
    """What is written down."""

    def __post_init__(self) -> None:
        if isinstance(self.quantizer, Mapping) and not self.quantizer:
            object.__setattr__(self, "quantizer", None)  # how runs of 0.1 wrote down that there is none
        super().__post_init__()

    def _check_fit(self) -> None:
        for name in ("preset", "model", "teacher"):
            self._require(
                self.init is None or not getattr(self, name),
                name,
                f"left out where init is given (the model of {self.init} decides it)",
            )

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        assignments: Iterable[str] = (),
        base: TrainConfig | None = None,
    ) -> TrainConfig:
        """The configuration of a YAML file, then of ``options`` (nested), then of ``assignments`` (``"a.b=c"``): later
        ones win.

        Args:
            path: the YAML file; None: none.
            options: nested mappings.
            assignments: as ``--set`` takes them; values are read as YAML.
            base: what the file starts from, instead of the defaults.

        Raises:
            ConfigError: the file cannot be read, or a key or value does not fit; the message names where it stood.
        """
        layers: list[tuple[str, Mapping[str, Any]]] = [] if path is None else [(str(path), read_yaml(Path(path)))]
        layers += [("options", options or {}), ("--set", parse_assignments(assignments))]
        return from_layers(cls, base.to_dict() if base else {}, layers)

    def torch_device(self) -> torch.device:
        """The device to train on.

        Raises:
            ConfigError: ``device`` is not a torch device, or this machine does not have it.
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
"""Keys that may change when a run continues: they do not change what is learned (device and accumulation change the
rounding)."""


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key was then, is now`` for each key in which two :meth:`TrainConfig.to_dict` differ, except
    :data:`FREE_KEYS`."""
    found = []
    for key in sorted(set(then) | set(now)):
        name, a, b = prefix + key, then.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, name + ".")
        elif a != b and name not in FREE_KEYS:
            found.append(f"{name} was {a!r}, is now {b!r}")
    return found
