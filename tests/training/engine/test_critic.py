"""The critic's step: when each side learns, its own optimizer and log, and that it goes on exactly."""

import pytest
import torch
from safetensors.torch import load_file

from critic_stage import START, CriticStage
from losatok_ext.training import read_log
from losatok_ext.training.run import train
from training_runs import SPEECH, StoppedError, small_run, stop_at


def config(**more):
    rates = {"lr": 1e-3, "critic_lr": 3e-3, "critic_betas": [0.5, 0.9], "ema_decay": 0.9}
    return small_run(**{"optimizer": rates} | more)


def run(output, on_step=None, stages=None, **more):
    def make(data, config, device):
        stage = CriticStage(data, config, device)
        if stages is not None:
            stages.append(stage)
        return stage

    return train(make, SPEECH, output, config(**more), on_step=on_step)


def part(output, step, name):
    return load_file(output / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def test_both_sides_learn_from_its_start_on(tmp_path):
    stages, reports = [], []
    run(tmp_path, reports.append, stages)
    (stage,) = stages
    assert stage.runs == 6  # once per step
    assert stage.frozen == [True] * (6 - START)
    for report in reports:
        began = report.step > START
        assert ("discriminator" in report.losses, report.critic_grad_norm is not None) == (began, began)
        weights = {k: w for k, w in stage.weights.items() if k in report.losses}
        assert report.total == pytest.approx(sum(w * report.losses[k] for k, w in weights.items()), rel=1e-5)
    assert ["critic_grad_norm" in line for line in read_log(tmp_path)] == [report.step > START for report in reports]
    first, last = (part(tmp_path, step, "critic") for step in (3, 6))
    # But the last bias, whose gradient cancels within the hinges' margins.
    assert {name for name in first if not torch.equal(first[name], last[name])} >= first.keys() - {"2.bias"}
    assert part(tmp_path, 6, "critic_optimizer")["0.weight/step"] == 6 - START


def test_it_goes_on_exactly(tmp_path):
    run(tmp_path / "straight")
    with pytest.raises(StoppedError):
        run(tmp_path / "parts", stop_at(5))
    run(tmp_path / "parts")
    for name in ("model", "optimizer", "ema", "critic", "critic_optimizer"):
        one, other = (part(tmp_path / run_, 6, name) for run_ in ("straight", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name


def test_a_critic_that_is_not_finite_stops_both_sides(tmp_path, monkeypatch):
    losses = CriticStage.critic_losses

    def poisoned(self):
        found = losses(self)
        return {name: loss * float("nan") for name, loss in found.items()} if self.runs == 3 else found

    monkeypatch.setattr(CriticStage, "critic_losses", poisoned)
    reports = []
    result = run(tmp_path, reports.append, steps=3, checkpoint={"every": 1})
    assert result.skipped == 1
    assert [report.finite for report in reports] == [True, True, False]
    for name in ("model", "critic", "ema"):
        one, other = (part(tmp_path, step, name) for step in (2, 3))
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
