"""Configurations of runs that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from losatok_ext.nn.flow_matching import ConditionDropout, SpanMasking
from losatok_ext.training.config.options import CheckpointConfig, DataConfig, OptimizerConfig
from losatok_ext.training.config.stage_options import GeneratorOptions
from losatok_ext.training.config.tokenizer_options import DiscriminatorOptions
from losatok_ext.training.config.train import TrainConfig


def demo_recipe(init: str | Path, device: str = "auto", scale: float = 1.0) -> tuple[TrainConfig, TrainConfig]:
    """Both stages of the tiny preset on the 48 bundled clips, in two to three minutes on two CPU cores.

    Measured (two AMD EPYC cores, float32, November 2026): 15 and 50 ms per step. The mel distance of reconstructed
    clips, mean over all 48, falls from 1.48 to 0.26. Many small steps fit best: for the same audio seen, 400 steps of 8
    crops of 1.28 s end at 0.41, 1600 of 4 crops of 0.64 s at 0.31 (means over 12 clips); learning rates of 2e-3 and
    4e-3 give the same, 5e-4 less. There are no discriminators: they would take several times as long.

    Args:
        init: the model folder that the first stage will write, from which the second starts.
        device: to train on.
        scale: trains for this many times the steps (at least one).

    Returns:
        The configurations of ``train_sembo`` and ``train_tokenizer``.
    """
    checkpoint = CheckpointConfig(every=200, keep=1)
    sembo = TrainConfig(
        preset="tiny",
        device=device,
        steps=max(round(300 * scale), 1),
        batch_size=8,
        data=DataConfig(crop_seconds=1.28),
        optimizer=OptimizerConfig(lr=4e-3),
        checkpoint=checkpoint,
    )
    tokenizer = TrainConfig(
        init=str(init),
        device=device,
        steps=max(round(2400 * scale), 1),
        batch_size=4,
        data=DataConfig(crop_seconds=0.64),
        optimizer=OptimizerConfig(lr=2e-3),
        discriminator=DiscriminatorOptions(kinds=()),
        checkpoint=checkpoint,
    )
    return sembo, tokenizer


def demo_generator_recipe(tokenizer: str | Path, device: str = "auto", scale: float = 1.0) -> TrainConfig:
    """A small generator on the latents of the 48 bundled clips, in about four minutes of processor time.

    It memorises these clips; two and a half minutes of audio are too few for more. For the text of one of them it
    generates that sentence. Measured (one thread, float32, November 2026): 0.12 s of
    processor time per step. A run of 1200 steps, on a tokenizer that had trained for 800, ended at a loss of 0.2; for
    five of ten texts the result was nearest to a recording of that text, by mean and deviation in each mel bin.

    Args:
        tokenizer: the tokenizer's model folder.
        device: to train on.
        scale: trains for this many times the steps (at least one).

    Returns:
        The configuration of ``train_generator``.
    """
    return TrainConfig(
        preset="tiny",
        model={"width": 128, "depth": 5, "heads": 2, "text_dim": 64, "text_layers": 1},
        device=device,
        steps=max(round(2000 * scale), 1),
        batch_size=8,
        data=DataConfig(crop_seconds=2.56),
        optimizer=OptimizerConfig(lr=2e-3),
        generator=GeneratorOptions(
            tokenizer=str(tokenizer),
            dropout=ConditionDropout(joint=0.1),
            masking=SpanMasking(whole=0.6, fraction=(0.1, 0.5)),
        ),
        checkpoint=CheckpointConfig(every=200, keep=1),
    )


def tiny_recipe(folder: str | Path, device: str = "auto", scale: float = 1.0) -> dict[str, TrainConfig]:
    """How the bundled ``tiny`` model was trained, on three hours of rendered speech, music and sounds.

    Its losses are mel, semantic and KL: at this size discriminators cost more time than they are worth. See
    ``tools/bundled_model.py``, which renders the recordings, trains, measures and exports.

    Args:
        folder: the runs' folder: ``folder/teacher``, ``folder/sembo`` and ``folder/tokenizer``.
        device: to train on.
        scale: trains for this many times the steps (at least one).

    Returns:
        The configurations of ``train_teacher``, ``train_sembo`` and ``train_tokenizer`` by name of the stage.
    """

    def stage(steps: int, batch_size: int, crop_seconds: float, lr: float, **more: Any) -> TrainConfig:
        return TrainConfig(
            device=device,
            steps=max(round(steps * scale), 1),
            batch_size=batch_size,
            data=DataConfig(crop_seconds=crop_seconds, cache_megabytes=1000),
            optimizer=OptimizerConfig(lr=lr),
            checkpoint=CheckpointConfig(every=500),
            **more,
        )

    folder = Path(folder)
    return {
        "teacher": stage(8000, 16, 2.56, 1e-3, preset="tiny"),
        "sembo": stage(1500, 16, 2.56, 4e-3, init=str(folder / "teacher")),
        "tokenizer": stage(
            14000,
            8,
            1.28,
            2e-3,
            init=str(folder / "sembo"),
            precision="bfloat16",
            discriminator=DiscriminatorOptions(kinds=()),
        ),
    }
