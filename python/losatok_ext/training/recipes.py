"""Named settings that were measured to work."""

from __future__ import annotations

from pathlib import Path

from losatok_ext.training.config import TrainConfig


def demo_recipe(init: str | Path, device: str = "auto", scale: float = 1.0) -> tuple[TrainConfig, TrainConfig]:
    """Both stages of the tiny preset on the 48 bundled clips, in two to three minutes on two CPU cores.

    Args:
        init: the model folder that the first stage will write, from which the second starts.
        device: to train on.
        scale: trains for this many times the steps (at least one).

    Returns:
        The configurations of ``train_sembo`` and ``train_tokenizer``.
    """
    common = {"device": device, "checkpoint": {"every": 200, "keep": 1}, "log": {"every": 10}}
    sembo = {
        "preset": "tiny",
        "steps": 300,
        "batch_size": 8,
        "data": {"crop_seconds": 1.28},
        "optimizer": {"lr": 2e-3},
    }
    tokenizer = {
        "init": str(init),
        "steps": 700,
        "batch_size": 8,
        "data": {"crop_seconds": 1.28},
        "optimizer": {"lr": 2e-3},
    }
    for stage in (sembo, tokenizer):
        stage["steps"] = max(round(stage["steps"] * scale), 1)
    return (
        TrainConfig.from_dict(common | sembo, "demo_recipe"),
        TrainConfig.from_dict(common | tokenizer, "demo_recipe"),
    )
