"""The LoSATok model that a run starts from: that of ``init``, or a new one of a preset."""

from __future__ import annotations

import torch

from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.storage.folders import TOKENIZER, open_folder
from losatok_ext.training.config.train import TrainConfig


def starting_config(config: TrainConfig) -> LoSATokConfig:
    """What :func:`starting_model` builds.

    Raises:
        ConfigError: ``model`` holds a key or value that does not fit.
        CheckpointError: ``init`` cannot be read.
    """
    if config.init is not None:
        return open_folder(config.init, TOKENIZER).config(LoSATokConfig)
    try:
        return LoSATokConfig.preset(config.preset or "base", **config.model)
    except ConfigError as error:
        raise ConfigError(f"model: {error}") from None


def starting_model(config: TrainConfig) -> LoSATok:
    """The model of ``init``, or a new one of the preset whose weights ``seed`` decides. Raises as
    :func:`starting_config`."""
    if config.init is not None:
        return LoSATok.from_pretrained(config.init)
    model_config = starting_config(config)
    torch.manual_seed(config.seed)
    return LoSATok(model_config)
