"""The breakdown of training steps: parts add up, one inside another counts once, and the document has the table."""

import json

import pytest
import torch
from torch import nn

import report
import training_breakdown
from training_breakdown import BACKENDS, Clock


def test_a_part_inside_another_counts_once(monkeypatch):
    clock, now = Clock(torch.device("cpu")), [0.0]
    monkeypatch.setattr(training_breakdown.time, "perf_counter", lambda: now[0])
    with clock.part("outer"):
        now[0] += 2.0
        for _ in range(2):
            with clock.part("inner"):
                now[0] += 1.0
        now[0] += 0.5
    clock.prefix = "critic: "
    with clock.part("outer"):
        now[0] += 0.25
    assert clock.parts == {"inner": 2.0, "outer": 2.5, "critic: outer": 0.25}


def test_a_watched_module_is_timed_until_the_stack_closes():
    clock, module = Clock(torch.device("cpu")), nn.Linear(2, 2)
    with training_breakdown.ExitStack() as stack:
        clock.watch(module, "linear", stack)
        with clock.part("rest"):
            module(torch.zeros(1, 2))
    assert set(clock.parts) == {"linear", "rest"}
    before = dict(clock.parts)
    module(torch.zeros(1, 2))
    assert clock.parts == before


@pytest.fixture
def _small(monkeypatch):
    sizes = {"batch_size": 1, "crop_seconds": 0.16, "channels": 1 / 64}
    monkeypatch.setitem(training_breakdown.SIZES, "tiny", sizes)


@pytest.mark.usefixtures("_small")
def test_every_stage_is_measured_kept_and_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    document = tmp_path / "docs" / "training.md"
    document.write_text("before\n<!-- measured: steps -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    training_breakdown.main(
        ["--device", "cpu", "--steps", "1", "--seconds", "0", "--results", str(tmp_path / "results")]
    )
    (path,) = (tmp_path / "results").glob("*/training/*.json")
    result = json.loads(path.read_text())
    assert list(result["stages"]) == list(training_breakdown.STAGES)
    for stage, found in result["stages"].items():
        assert list(found) == list(BACKENDS)
        ours, plain = found.values()
        assert list(ours) == list(plain)
        assert {"data", "network and losses", "backward", "optimizer"} <= set(ours)
        assert ("decoder" in ours) == stage.startswith("tokenizer")
        heard = ("sembo", "tokenizer", "generator")
        assert ("semantic encoder" in ours) == (stage.startswith(heard) and stage != "tokenizer, stored features")
        critic = {"critic: discriminators", "critic: losses", "critic: backward", "critic: optimizer", "discriminators"}
        assert critic & set(ours) == (critic if stage == "tokenizer, mfd" else set())
        assert all(spent > 0 for spent in (*ours.values(), *plain.values()))
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert training_breakdown.table(result) in text
    assert training_breakdown.table(result) in capsys.readouterr().out
    assert report.load([]) == []
