"""Two processes learn what one learns of the same batches, however these are cut; a lost one ends in a sentence."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from critic_stage import CriticStage
from losatok_ext.errors import ConfigError, TrainingError
from losatok_ext.models.teachers.registry import open_teacher
from losatok_ext.training import TrainConfig, read_log, train_generator, train_sembo, train_teacher, train_tokenizer
from losatok_ext.training.precompute.tokens import precompute_features
from losatok_ext.training.run import train
from small_models import save_model, tone
from training_ranks import run_jobs
from training_runs import DIT, MODEL, weights


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of different lengths, so that what the parts of a batch count is different too."""
    folder = tmp_path_factory.mktemp("clips")
    for i, samples in enumerate((7000, 3000, 9000, 1500, 4200, 12000)):
        soundfile.write(folder / f"{i}.wav", tone(samples, i).numpy().astype(np.float32), 16000)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), mel_loss_windows=(128,), mel_loss_bins=(10,))


@pytest.fixture(scope="module")
def features(clips, tokenizer, tmp_path_factory):
    """The clips with what the tokenizer's teacher gives for them."""
    folder = tmp_path_factory.mktemp("features")
    precompute_features(clips, folder, open_teacher(str(tokenizer)), audio=True)
    return folder


def config(steps=4, optimizer=None, **more):
    # A large eps: where a gradient is rounding alone, AdamW would make steps of full length of it.
    return {
        "steps": steps,
        "batch_size": 4,
        "device": "cpu",
        "data": {"crop_seconds": 0.5},
        "optimizer": {"lr": 1e-2, "eps": 1e-3, "warmup_steps": 0, **(optimizer or {})},
        "discriminator": {"kinds": []},
        "checkpoint": {"every": 2},
        "log": {"every": 1},
        **more,
    }


def new(**more):
    return config(preset="tiny", model=MODEL, **more)


def assert_same_learning(one, other, losses=1e-4, grown=1e-4):
    """Losses agree, and the weights to a small part of how far training moved them."""
    lines = [[{k: v for k, v in line.items() if k != "audio_rate"} for line in read_log(run)] for run in (one, other)]
    assert len(lines[0]) == len(lines[1])
    for a, b in zip(*lines, strict=True):
        assert a == pytest.approx(b, rel=losses, abs=1e-7)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=grown, atol=grown * 1e-1, msg=lambda m, n=name: f"{n}: {m}"
        )


STAGES = {
    "sembo": train_sembo,
    "tokenizer": train_tokenizer,
    "stored": train_tokenizer,
    "generator": train_generator,
    "teacher": train_teacher,
    "critic": partial(train, CriticStage),
}


def settings(stage, tokenizer, **more):
    if stage in ("tokenizer", "stored"):
        return config(init=str(tokenizer), **more)
    if stage == "generator":
        return config(preset="tiny", model=DIT, generator={"tokenizer": str(tokenizer)}, **more)
    return new(**more)


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_in_parts_is_the_batch(stage, clips, features, tokenizer, tmp_path):
    for parts in (1, 4):
        values = settings(stage, tokenizer, optimizer={"accumulate": parts, "ema_decay": 0.9})
        STAGES[stage](features if stage == "stored" else clips, tmp_path / str(parts), TrainConfig.from_dict(values))
    assert_same_learning(tmp_path / "1", tmp_path / "4")


@pytest.mark.parametrize("window", [1, 12, 1000])
def test_a_batch_in_parts_is_the_batch_with_a_window(window, clips, tmp_path):
    """Pairs within the window are what the relation is a mean over, so they are what parts weigh by."""
    for parts in (1, 4):
        values = new(optimizer={"accumulate": parts}, sembo={"reconstruction": 0.0, "window": window})
        train_sembo(clips, tmp_path / str(parts), TrainConfig.from_dict(values))
    assert_same_learning(tmp_path / "1", tmp_path / "4")


@pytest.fixture(scope="module")
def together(clips, features, tokenizer, tmp_path_factory):
    """Every job of this file that takes two processes: name -> (its folder, what its processes said)."""
    folder = tmp_path_factory.mktemp("jobs")
    bad = new(batch_size=3)
    wanted = {
        "sembo": {"config": new(optimizer={"ema_decay": 0.9}, validation={"share": 0.3, "every": 2, "clips": 4})},
        "tokenizer": {"config": settings("tokenizer", tokenizer, optimizer={"accumulate": 2})},
        "stored": {
            "stage": "tokenizer",
            "data": str(features),
            "config": settings("stored", tokenizer, optimizer={"accumulate": 2}),
        },
        "generator": {"config": settings("generator", tokenizer)},
        "critic": {"config": new()},
        "sharded": {"stage": "critic", "sharded": True, "config": new(optimizer={"ema_decay": 0.9})},
        "uneven": {"stage": "sembo", "config": bad},
        "one device": {"stage": "sembo", "config": new(device="cuda:0")},
    }
    jobs = [{"stage": name, "data": str(clips), "output": str(folder / name), **job} for name, job in wanted.items()]
    said = run_jobs(folder, jobs)
    return {name: (jobs[i]["output"], said[i]) for i, name in enumerate(wanted)}


def finished(job):
    output, said = job
    assert [code for code, _ in said] == [0, 0], said
    return Path(output)


@pytest.mark.parametrize("stage", ["sembo", "tokenizer", "stored", "generator", "critic"])
def test_two_processes_learn_what_one_does(stage, together, clips, features, tokenizer, tmp_path):
    more = {"sembo": {"validation": {"share": 0.3, "every": 2, "clips": 4}, "optimizer": {"ema_decay": 0.9}}}
    values = settings(stage, tokenizer, **more.get(stage, {}))
    STAGES[stage](features if stage == "stored" else clips, tmp_path, TrainConfig.from_dict(values))
    assert_same_learning(finished(together[stage]), tmp_path)


def test_sharded_weights_learn_the_same(together, clips, tokenizer, tmp_path):
    STAGES["critic"](clips, tmp_path, TrainConfig.from_dict(new(optimizer={"ema_decay": 0.9})))
    assert_same_learning(finished(together["sharded"]), tmp_path)


def test_a_lost_process_ends_in_a_sentence_and_the_run_goes_on(clips, tokenizer, tmp_path):
    values = settings("tokenizer", tokenizer)
    job = {"stage": "tokenizer", "data": str(clips), "output": str(tmp_path / "lost"), "config": values}
    (said,) = run_jobs(tmp_path, [{**job, "kill_at": 3}])
    (code, text), (killed, _) = said
    assert killed == -9
    assert code == 2
    assert "process 0 of 2 lost the others" in text
    assert "the last checkpoint is intact" in text
    assert [path.name for path in (tmp_path / "lost" / "checkpoints").glob("step-*")] == ["step-00000002"]
    # One process may go on with what two began.
    train_tokenizer(clips, tmp_path / "lost", TrainConfig.from_dict(values))
    train_tokenizer(clips, tmp_path / "straight", TrainConfig.from_dict(values))
    assert_same_learning(tmp_path / "lost", tmp_path / "straight")


def test_what_cannot_be_shared_out_is_said_by_all(together, clips, tmp_path):
    for name, message in (
        ("uneven", "batch_size 3 cannot be cut into 2 equal parts (2 processes x optimizer.accumulate 1)"),
        ("one device", "device is cuda:0, and several processes train: each takes a device of its own"),
    ):
        _, said = together[name]
        for code, text in said:
            assert code == 2
            assert message in text
    with pytest.raises(ConfigError, match=r"batch_size 4 cannot be cut into 3 equal parts \(1 processes x"):
        train_sembo(clips, tmp_path / "run", TrainConfig.from_dict(new(optimizer={"accumulate": 3})))
    assert not (tmp_path / "run").exists()


def test_accelerate_is_asked_for_by_name_where_several_processes_need_it(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    train_sembo(clips, tmp_path / "one", TrainConfig.from_dict(new(steps=1)))  # one process does without
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        TrainingError, match=r"several processes needs Accelerate .* pip install 'losatok-ext\[train\]'"
    ):
        train_sembo(clips, tmp_path / "two", TrainConfig.from_dict(new(steps=1)))
    assert not (tmp_path / "two").exists()
