"""Training: one loop that all stages share, and one module for each stage."""

from losatok_ext.training.config.train import TrainConfig
from losatok_ext.training.engine.log import read_log
from losatok_ext.training.engine.prepared_run import RunStart
from losatok_ext.training.engine.reports import Best, StepReport, Validation
from losatok_ext.training.run import TrainResult, train_generator, train_sembo, train_teacher, train_tokenizer

__all__ = [
    "Best",
    "RunStart",
    "StepReport",
    "TrainConfig",
    "TrainResult",
    "Validation",
    "read_log",
    "train_generator",
    "train_sembo",
    "train_teacher",
    "train_tokenizer",
]
