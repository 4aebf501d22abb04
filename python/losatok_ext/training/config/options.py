"""Options that every stage of training takes: data, optimizer, checkpoints, log."""

from __future__ import annotations

from dataclasses import dataclass, field

from losatok_ext.training.config.data_options import BalanceConfig
from losatok_ext.training.config.typed import require


@dataclass(frozen=True)
class DataConfig:
    """How audio becomes batches."""

    crop_seconds: float = 4.0
    """Length of a training crop in seconds. Shorter clips are taken whole."""
    cache_megabytes: int = 512
    """A corpus whose decoded audio fits (64 kB per second) is kept in memory; a larger one is read as needed."""
    workers: int = 2
    """Threads that read ahead; 0 reads in the training thread. What is read does not depend on it."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)

    def __post_init__(self) -> None:
        require(
            self.crop_seconds >= 0.04, f"data.crop_seconds should be at least 0.04 (one token), got {self.crop_seconds}"
        )
        require(self.cache_megabytes >= 0, f"data.cache_megabytes should not be negative, got {self.cache_megabytes}")
        require(0 <= self.workers <= 64, f"data.workers should lie within 0..64, got {self.workers}")


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
    """Largest norm of the whole gradient, of the model and of a critic alike; null does not clip."""
    accumulate: int = 1
    """A step's batch is computed in so many parts, one after another: less memory, the same step to rounding."""
    ema_decay: float | None = None
    """Decay of a moving mean of the weights, such as 0.999; validation and the final model then take the mean, which
    starts fast (``min(ema_decay, (1 + n) / (10 + n))`` after n steps). null keeps none."""
    critic_lr: float | None = None
    """Peak learning rate of a critic (the discriminators); null: ``lr``."""
    critic_betas: tuple[float, float] | None = None
    """Of a critic's AdamW; null: ``betas``."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optimizer.lr should be positive, got {self.lr}")
        require(
            all(0 <= beta < 1 for beta in self.betas), f"optimizer.betas should lie within 0..1, got {list(self.betas)}"
        )
        require(self.eps > 0, f"optimizer.eps should be positive, got {self.eps}")
        require(self.weight_decay >= 0, f"optimizer.weight_decay should not be negative, got {self.weight_decay}")
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps should not be negative, got {self.warmup_steps}")
        require(0 <= self.final_lr <= self.lr, f"optimizer.final_lr should lie within 0..lr, got {self.final_lr}")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optimizer.clip_norm should be positive or null, got {self.clip_norm}",
        )
        require(self.accumulate >= 1, f"optimizer.accumulate should be at least 1, got {self.accumulate}")
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"optimizer.ema_decay should lie between 0 and 1 or be null, got {self.ema_decay}",
        )
        require(
            self.critic_lr is None or self.critic_lr > 0,
            f"optimizer.critic_lr should be positive or null, got {self.critic_lr}",
        )
        require(
            self.critic_betas is None or all(0 <= beta < 1 for beta in self.critic_betas),
            f"optimizer.critic_betas should lie within 0..1 or be null, got {self.critic_betas}",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is written, and how many are kept."""

    every: int = 1000
    """Steps between checkpoints; one is written after the last step too."""
    keep: int = 3
    """The newest so many are kept."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"checkpoint.every should be at least 1, got {self.every}")
        require(self.keep >= 1, f"checkpoint.keep should be at least 1, got {self.keep}")


@dataclass(frozen=True)
class LogConfig:
    """What is written down while training."""

    every: int = 10
    """Steps between the lines of ``log.jsonl`` and TensorBoard scalars; the first and last are always written."""
    tensorboard: bool = False
    """Write TensorBoard scalars to ``OUTPUT/tensorboard`` (needs ``losatok-ext[train]``)."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"log.every should be at least 1, got {self.every}")
