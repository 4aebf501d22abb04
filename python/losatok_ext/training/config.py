"""What a training run is told: one typed configuration for all stages, from a file, the command line or Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from losatok_ext.errors import ConfigError
from losatok_ext.nn.flow_matching import ConditionDropout, FlowMatching, SpanMasking
from losatok_ext.training import typed


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class DataConfig:
    """How audio becomes batches."""

    crop_seconds: float = 4.0
    """Length of a training crop in seconds. Shorter clips are taken whole."""
    cache_megabytes: int = 512
    """A corpus whose decoded audio fits (64 kB per second) is kept in memory; a larger one is read as needed."""
    workers: int = 2
    """Threads that read ahead; 0 reads in the training thread. What is read does not depend on it."""

    def __post_init__(self) -> None:
        _require(
            self.crop_seconds >= 0.04, f"data.crop_seconds should be at least 0.04 (one token), got {self.crop_seconds}"
        )
        _require(self.cache_megabytes >= 0, f"data.cache_megabytes should not be negative, got {self.cache_megabytes}")
        _require(0 <= self.workers <= 64, f"data.workers should lie within 0..64, got {self.workers}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with the paper's betas and learning rate (arXiv 2605.27840, training details)."""

    lr: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.8, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Decoupled decay of matrices and kernels; biases, norms and scales are not decayed."""
    warmup_steps: int = 1000
    """Steps of linear warm-up; at most a tenth of the run is used."""
    final_lr: float = 0.0
    """Where the cosine ends."""
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; null does not clip."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"optimizer.lr should be positive, got {self.lr}")
        _require(
            all(0 <= beta < 1 for beta in self.betas), f"optimizer.betas should lie within 0..1, got {list(self.betas)}"
        )
        _require(self.eps > 0, f"optimizer.eps should be positive, got {self.eps}")
        _require(self.weight_decay >= 0, f"optimizer.weight_decay should not be negative, got {self.weight_decay}")
        _require(self.warmup_steps >= 0, f"optimizer.warmup_steps should not be negative, got {self.warmup_steps}")
        _require(0 <= self.final_lr <= self.lr, f"optimizer.final_lr should lie within 0..lr, got {self.final_lr}")
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optimizer.clip_norm should be positive or null, got {self.clip_norm}",
        )


@dataclass(frozen=True)
class SemBoWeights:
    """Weights of the SemBo losses; the paper's by default."""

    reconstruction: float = 1e3
    relation: float = 1.0

    def __post_init__(self) -> None:
        _check_weights("sembo", self)


@dataclass(frozen=True)
class TokenizerWeights:
    """Weights of the tokenizer losses; the paper's by default (without its GAN)."""

    mel: float = 45.0
    semantic_high: float = 45.0
    semantic_low: float = 45.0
    kl: float = 1e-2
    quantizer: float = 1.0
    """Of the losses of a quantizer, where the model has one; they are weighted among themselves by its own options."""

    def __post_init__(self) -> None:
        _check_weights("tokenizer", self)


def _check_weights(group: str, weights: Any) -> None:
    values = dataclasses.asdict(weights)
    for name, value in values.items():
        _require(value >= 0, f"{group}.{name} should not be negative, got {value}")
    _require(any(values.values()), f"{group}: every weight is 0, so there is nothing to train")


@dataclass(frozen=True)
class GeneratorOptions:
    """The generator stage: what it learns from, and how."""

    tokenizer: str | None = None
    """Folder of the LoSATok model whose latents are generated; needed for recordings, checked for latent files."""
    context: bool = True
    """Train for editing: parts of each clip are given as a time-aligned condition, see :class:`SpanMasking`."""
    flow: FlowMatching = field(default_factory=FlowMatching)
    dropout: ConditionDropout = field(default_factory=ConditionDropout)
    masking: SpanMasking = field(default_factory=SpanMasking)
    statistics_seconds: float = 36000.0
    """The latents' mean and deviation are measured over so much of the data at most, evenly chosen."""

    def __post_init__(self) -> None:
        _require(
            self.statistics_seconds > 0,
            f"generator.statistics_seconds should be positive, got {self.statistics_seconds}",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is written, and how many are kept."""

    every: int = 1000
    """Steps between checkpoints; one is written after the last step too."""
    keep: int = 3
    """The newest so many are kept."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"checkpoint.every should be at least 1, got {self.every}")
        _require(self.keep >= 1, f"checkpoint.keep should be at least 1, got {self.keep}")


@dataclass(frozen=True)
class LogConfig:
    """What is written down while training."""

    every: int = 10
    """Steps between the lines of ``log.jsonl`` and TensorBoard scalars; the first and last are always written."""
    tensorboard: bool = False
    """Write TensorBoard scalars to ``OUTPUT/tensorboard`` (needs ``losatok-ext[train]``)."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"log.every should be at least 1, got {self.every}")


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
    """SemBo: file of published LoSATok or MiDashengLM weights, whose semantic encoder is the teacher. Without it the
    teacher is a frozen Dasheng of the preset's size with seeded random weights."""
    init: str | None = None
    """Model folder to start from. The tokenizer stage needs one that ``train sembo`` wrote; a generator may go on from
    another."""
    quantizer: dict[str, Any] = field(default_factory=dict)
    """Tokenizer: a quantizer to train with the rest (``kind``: vq, rvq, fsq, lfq or affine, and keys of its
    configuration), in place of the one that the model of ``init`` may have."""
    steps: int | None = None
    """Optimizer steps; null takes the paper's (SemBo 100 000, tokenizer 1 000 000, generator 100 000)."""
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
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sembo: SemBoWeights = field(default_factory=SemBoWeights)
    tokenizer: TokenizerWeights = field(default_factory=TokenizerWeights)
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        _require(self.steps is None or self.steps >= 1, f"steps should be at least 1, got {self.steps}")
        _require(self.batch_size >= 1, f"batch_size should be at least 1, got {self.batch_size}")
        _require(0 <= self.seed < 2**63, f"seed should lie within 0..2^63-1, got {self.seed}")
        _require(self.max_skipped >= 1, f"max_skipped should be at least 1, got {self.max_skipped}")
        if self.init is not None:
            for name in ("preset", "model", "teacher"):
                _require(
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
    "checkpoint.every",
    "checkpoint.keep",
    "log.every",
    "log.tensorboard",
)
"""Keys that may change when a run goes on: they do not change what is computed (a device only in rounding)."""


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
