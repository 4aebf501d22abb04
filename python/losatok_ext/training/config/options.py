"""Options that every stage of training takes: data, optimizer, checkpoints, log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from losatok_ext.configuration import Configuration, Count, NonNegative, Positive, Range, Whole
from losatok_ext.training.config.data_options import BalanceConfig

Beta = Annotated[float, Range(least=0, below=1)]


@dataclass(frozen=True)
class DataConfig(Configuration):
    """How audio becomes batches."""

    crop_seconds: Annotated[float, Range(0.04, 86400)] = 4.0
    """Length of a training crop in seconds, at least one token. Shorter clips are taken whole."""
    cache_megabytes: Whole = 512
    """Megabytes of decoded audio (64 kB per second) that are kept in memory. A corpus that fits is read once; a larger
    one is read as needed."""
    workers: Annotated[int, Range(0, 64)] = 2
    """Threads that read ahead. 0 reads in the training thread. The batches do not depend on it."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    """How often crops come from each domain."""


@dataclass(frozen=True)
class OptimizerConfig(Configuration):
    """AdamW with the paper's betas and learning rate (arXiv 2605.27840, training details)."""

    lr: Positive = 1e-4
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.8, 0.99)
    """Decay of AdamW's moving means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the root of the mean square of the gradient."""
    weight_decay: NonNegative = 0.01
    """Decoupled decay of matrices and kernels. Biases, norms and scales are not decayed."""
    warmup_steps: Whole = 1000
    """Steps of linear warm-up. At most a tenth of the run is used."""
    final_lr: NonNegative = 0.0
    """Learning rate at the end of the cosine, at most ``lr``."""
    clip_norm: Positive | None = 1.0
    """Largest norm of the whole gradient, of the model and of a critic alike. null does not clip."""
    accumulate: Count = 1
    """Equal parts in which a step's batch is computed, one after another: less memory, the same step to rounding."""
    ema_decay: Annotated[float, Range(above=0, below=1)] | None = None
    """Decay of a moving mean of the weights, such as 0.999. Validation and the final model then take the mean. It
    starts fast: after n steps the decay is ``min(ema_decay, (1 + n) / (10 + n))``. null keeps no mean."""
    critic_lr: Positive | None = None
    """Peak learning rate of a critic (the discriminators). null takes ``lr``."""
    critic_betas: tuple[Beta, Beta] | None = None
    """Betas of a critic's AdamW. null takes ``betas``."""

    def _check_fit(self) -> None:
        self._require(self.final_lr <= self.lr, "final_lr", f"within 0..lr ({self.lr})")


@dataclass(frozen=True)
class CheckpointConfig(Configuration):
    """When the state is written, and how many states are kept."""

    every: Count = 1000
    """Steps between checkpoints. One is written after the last step too."""
    keep: Count = 3
    """Number of checkpoints to keep, the newest."""


@dataclass(frozen=True)
class LogConfig(Configuration):
    """What is written down while training."""

    every: Count = 10
    """Steps between the lines of ``log.jsonl`` and TensorBoard scalars. The first and the last step always have one."""
    tensorboard: bool = False
    """Write TensorBoard scalars to ``OUTPUT/tensorboard`` (needs the extra ``train``)."""
