"""Short training runs of a very small model on the bundled speech, shared by tests."""

import pytest
import torch
from safetensors.torch import load_file

from losatok_ext.audio.samples import sample_folder
from losatok_ext.training import TrainConfig

MODEL = {
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "latent_dim": 8,
    "bottleneck_dim": 16,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_hidden": 32,
    "mel_loss_windows": [128],
    "mel_loss_bins": [10],
}
DIT = {"width": 32, "depth": 2, "heads": 2, "text_dim": 32, "text_layers": 1, "time_features": 16, "text_bytes": 64}
SPEECH = sample_folder() / "speech"


def small_run(steps=6, **more):
    values = {
        "preset": "tiny",
        "model": MODEL,
        "steps": steps,
        "batch_size": 3,
        "device": "cpu",
        "data": {"crop_seconds": 0.4},
        "optimizer": {"lr": 1e-3},
        "discriminator": {"kinds": []},
        "checkpoint": {"every": 3, "keep": 2},
        "log": {"every": 1},
    }
    return TrainConfig.from_dict(values | more)


def tokenizer_config(init, **more):
    return small_run(preset=None, model={}, init=str(init), **more)


def killed_config(init, steps):
    """With all that has a state: accumulated parts, a moving mean, a held-out share."""
    return tokenizer_config(
        init,
        steps=steps,
        optimizer={"lr": 1e-3, "accumulate": 3, "ema_decay": 0.9},
        validation={"share": 0.2, "every": 10, "clips": 3},
        checkpoint={"every": 2, "keep": 2},
    )


def weights(output):
    return load_file(output / "model" / "model.safetensors")


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_same_reports(some, others):
    """Every step of one run gave, bit for bit, what it gave in the other."""
    for one, other in zip(some, others, strict=True):
        for name in ("step", "losses", "total", "grad_norm", "critic_grad_norm", "lr"):
            assert getattr(one, name) == getattr(other, name), (one.step, name)


def assert_alike_reports(some, others):
    """The steps of two runs on the same sound gave the same, up to roundings of what was kept between."""
    for one, other in zip(some, others, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=2e-3)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=2e-2)


class StoppedError(Exception):
    pass


def stop_at(step):
    def on_step(report):
        if report.step == step:
            raise StoppedError

    return on_step
