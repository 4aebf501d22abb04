"""Both stages on a very small model: what trains, exact resume, kills, guards, and what a run refuses."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from losatok_ext.audio.samples import sample_folder
from losatok_ext.errors import CheckpointError, ConfigError, TrainingError
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.models.teachers.registry import open_teacher
from losatok_ext.training import read_log, train_sembo, train_tokenizer
from losatok_ext.training.config.recipes import demo_recipe
from losatok_ext.training.precompute.tokens import precompute_features
from losatok_ext.training.stages.tokenizer import TokenizerStage
from training_runs import (
    SPEECH,
    StoppedError,
    assert_same_reports,
    assert_same_weights,
    killed_config,
    small_run,
    stop_at,
    tokenizer_config,
    weights,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of stage one."""
    output = tmp_path_factory.mktemp("sembo")
    train_sembo(SPEECH, output, small_run())
    return output


def train(stage, output, trained, on_step=None, **more):
    if stage == "sembo":
        return train_sembo(SPEECH, output, small_run(**more), on_step=on_step)
    return train_tokenizer(SPEECH, output, tokenizer_config(trained, **more), on_step=on_step)


@pytest.mark.parametrize("stage", ["sembo", "tokenizer"])
def test_six_steps_are_three_and_three_more(stage, trained, tmp_path):
    reports = []
    result = train(stage, tmp_path / "straight", trained, reports.append)
    assert result.steps == 6
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(StoppedError):
        train(stage, tmp_path / "parts", trained, stop_at(5))  # steps 4 and 5 are lost, and done again
    resumed = []
    torch.manual_seed(1234)  # what the caller's generators hold must not matter
    train(stage, tmp_path / "parts", trained, resumed.append)
    assert [report.step for report in resumed] == [4, 5, 6]
    assert_same_reports(reports[3:], resumed)
    assert_same_weights(weights(tmp_path / "straight"), weights(tmp_path / "parts"))
    logs = [[{**line, "audio_rate": 0} for line in read_log(tmp_path / name)] for name in ("straight", "parts")]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("stage", ["sembo", "tokenizer"])
def test_a_stage_changes_its_own_weights_and_no_others(stage, trained, tmp_path):
    reports = []
    train(stage, tmp_path, trained, reports.append, steps=2)
    torch.manual_seed(0)
    before = (
        LoSATok(LoSATok.from_pretrained(tmp_path / "model").config).state_dict()
        if stage == "sembo"
        else weights(trained)
    )
    changed = {name.split(".")[0] for name, value in weights(tmp_path).items() if not torch.equal(value, before[name])}
    expected = {"sembo": {"bottleneck"}, "tokenizer": {"acoustic_encoder", "fc_a", "fc_mu", "fc_logvar", "decoder"}}
    assert changed == expected[stage]
    options = small_run().sembo if stage == "sembo" else small_run().tokenizer
    by_name = {f"sembo_{k}" if stage == "sembo" else k: w for k, w in dataclasses.asdict(options).items()}
    for absent in ("sembo_prefixes", "sembo_window", "quantizer", "adversarial", "feature_matching", "label"):
        by_name.pop(absent, None)  # what this model and run do not have
    for report in reports:
        assert report.total == pytest.approx(sum(w * report.losses[name] for name, w in by_name.items()), rel=1e-5)
        assert report.grad_norm > 0


@pytest.mark.parametrize("stage", ["sembo", "tokenizer"])
def test_the_loss_falls(stage, trained, tmp_path):
    train(stage, tmp_path, trained, steps=60, batch_size=8, optimizer={"lr": 5e-3}, checkpoint={"every": 60})
    totals = [line["total"] for line in read_log(tmp_path)]
    assert sum(totals[-10:]) < 0.8 * sum(totals[:10])


SCRIPT = """
import signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from training_runs import killed_config
from losatok_ext.training import train_tokenizer
def wait_at(report):
    if report.step == {wait_at}:
        signal.pause()
train_tokenizer({data!r}, {output!r}, killed_config({init!r}, {steps}), on_step=wait_at)
"""
"""A training run, which does not go past the step ``wait_at`` until it is killed."""


def start(data, output, init, steps, wait_at=None):
    code = SCRIPT.format(
        tests=str(Path(__file__).parents[2]),
        data=str(data),
        output=str(output),
        init=str(init),
        steps=steps,
        wait_at=wait_at,
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


@pytest.mark.parametrize("stored", [False, True], ids=["recordings", "stored features"])
def test_killed_at_any_moment_it_goes_on_exactly(stored, trained, tmp_path):
    steps, straight, killed = 40, tmp_path / "straight", tmp_path / "killed"
    checkpoints, data = killed / "checkpoints", SPEECH
    if stored:
        data = tmp_path / "features"
        precompute_features(SPEECH, data, open_teacher(str(trained)), audio=True)
    train_tokenizer(data, straight, killed_config(trained, steps))
    seen = []
    for kill, at in enumerate((4, 14, 24)):
        process = start(data, killed, trained, steps, wait_at=at + 6)
        wait_for(lambda at=at: any(int(p.name[5:]) >= at for p in checkpoints.glob("step-*")), process)
        time.sleep(0.011 * kill)  # in one of the steps up to the one where it waits
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "model").exists()
        names = sorted(p.name for p in checkpoints.glob("step-*"))
        for name in names:
            state = json.loads((checkpoints / name / "state.json").read_text())
            assert state["step"] == int(name[5:])
            for part in ("model", "optimizer", "ema"):
                assert load_file(checkpoints / name / f"{part}.safetensors")
        seen.append(max(names))
    assert seen == sorted(set(seen))
    finished = start(data, killed, trained, steps)
    _, errors = finished.communicate()
    assert finished.returncode == 0, errors
    assert_same_weights(weights(straight), weights(killed))
    assert sorted(p.name for p in checkpoints.iterdir()) == [
        ".lock",
        "digests.json",
        "frozen.safetensors",
        "run.json",
        "step-00000038",
        "step-00000040",
    ]
    logs = [[{**line, "audio_rate": 0} for line in read_log(output)] for output in (straight, killed)]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[1]] == list(range(1, steps + 1))
    assert [line["step"] for line in logs[1] if "validation/total" in line] == [10, 20, 30, 40]


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_it_finishes_the_step_and_keeps_it(which, trained, tmp_path, request):
    before = signal.signal(which, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    request.addfinalizer(lambda: signal.signal(which, before))

    def interrupt(report):
        if report.step == 2:
            os.kill(os.getpid(), which)

    with pytest.raises(KeyboardInterrupt):
        train("tokenizer", tmp_path, trained, interrupt)
    assert signal.getsignal(which) == signal.SIG_DFL
    assert [p.name for p in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000003"]
    assert train("tokenizer", tmp_path, trained).steps == 6


def test_a_finished_run_returns_at_once_and_mends_its_model(trained, tmp_path):
    before = weights(trained)
    (trained / "model" / "model.safetensors").unlink()
    result = train_sembo(SPEECH, trained, small_run())
    assert (result.steps, result.last) == (6, None)
    assert_same_weights(before, weights(trained))


def test_global_generators_are_left_alone(trained, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train("tokenizer", tmp_path, trained, steps=1)
    assert torch.equal(torch.rand(3), expected)


def poison(monkeypatch, steps):
    """Make the mel loss NaN at these calls, from 0."""
    calls = iter(range(10**6))
    compute = TokenizerStage.losses

    def poisoned(self, batch, step):
        losses = compute(self, batch, step)
        return losses | {"mel": losses["mel"] * float("nan")} if next(calls) in steps else losses

    monkeypatch.setattr(TokenizerStage, "losses", poisoned)


def test_a_step_that_is_not_finite_is_skipped_and_counted(trained, tmp_path, monkeypatch):
    poison(monkeypatch, {1, 3, 4})
    reports = []
    result = train("tokenizer", tmp_path, trained, reports.append, max_skipped=3)
    assert result.skipped == 3
    assert [report.finite for report in reports] == [True, False, True, False, False, True]
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    assert [line["mel"] == "nan" for line in read_log(tmp_path)] == [False, True, False, True, True, False]


def test_too_many_of_them_stop_training_and_keep_the_state(trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, {2, 3, 4, 5})
        with pytest.raises(TrainingError, match=r"stopped at step 5: 3 steps in a row .* mel nan.* lower optimizer.lr"):
            train("tokenizer", tmp_path, trained, max_skipped=3)
    kept = load_file(tmp_path / "checkpoints" / "step-00000005" / "model.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    assert train("tokenizer", tmp_path, trained, max_skipped=3).skipped == 3


def test_bfloat16_trains_with_float32_losses_and_weights(trained, tmp_path):
    reports = []
    for stage in ("sembo", "tokenizer"):
        train(stage, tmp_path / stage, trained, reports.append, steps=2, precision="bfloat16")
        assert {value.dtype for value in weights(tmp_path / stage).values() if value.is_floating_point()} == {
            torch.float32
        }
    full = []
    for stage in ("sembo", "tokenizer"):
        train(stage, tmp_path / f"{stage}32", trained, full.append, steps=2)
    for low, high in zip(reports, full, strict=True):
        assert low.total == pytest.approx(high.total, rel=0.05)
        assert low.total != high.total


def test_a_clip_shorter_than_a_crop_and_a_silent_one_train(tmp_path, trained):
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "silent.wav", np.zeros(3000), 16000)
    soundfile.write(tmp_path / "short.wav", np.ones(700) * 0.1, 16000)
    result = train_tokenizer(tmp_path, tmp_path / "run", tokenizer_config(trained, steps=3, batch_size=2))
    assert result.skipped == 0
    result = train_sembo(tmp_path, tmp_path / "run-sembo", small_run(steps=3, batch_size=2))
    assert result.skipped == 0


def test_another_configuration_or_corpus_does_not_go_on(trained, tmp_path):
    with pytest.raises(TrainingError, match=r"another configuration \(optimizer.lr was 0.001, is now 0.002\)"):
        train_sembo(SPEECH, trained, small_run(optimizer={"lr": 2e-3}))
    with pytest.raises(TrainingError, match="the recordings are not those"):
        train_sembo(sample_folder() / "music", trained, small_run())
    with pytest.raises(TrainingError, match="holds a run of train sembo; choose another folder for train tokenizer"):
        train_tokenizer(SPEECH, trained, tokenizer_config(trained))


def test_two_processes_do_not_share_a_folder(trained, tmp_path):
    def second(report):
        train("tokenizer", tmp_path, trained)

    with pytest.raises(TrainingError, match="another process is training in this folder"):
        train("tokenizer", tmp_path, trained, second)


def test_a_run_that_cannot_start_leaves_no_trace(tmp_path, trained):
    output = tmp_path / "out"
    with pytest.raises(ConfigError, match="train tokenizer needs init"):
        train_tokenizer(SPEECH, output, small_run())
    with pytest.raises(CheckpointError, match="gone"):
        train_tokenizer(SPEECH, output, tokenizer_config(tmp_path / "gone"))
    with pytest.raises(TrainingError, match="no such folder or manifest"):
        train_sembo(tmp_path / "nothing", output, small_run())
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        train_sembo(SPEECH, output, small_run(teacher=str(tmp_path / "weights.pth")))
    with pytest.raises(ConfigError, match=r"model: .*depht"):
        train_sembo(SPEECH, output, small_run(model={"depht": 3}))
    assert not output.exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot write the run's folder"):
        train_sembo(SPEECH, tmp_path / "file", small_run())


def test_a_teacher_file_is_the_teacher(tmp_path):
    torch.manual_seed(99)
    model = LoSATok(LoSATok.from_pretrained(_run(tmp_path / "plain") / "model").config)
    from safetensors.torch import save_file

    published = {name: value.clone() for name, value in model.to_reference_state_dict().items()}
    save_file(published, tmp_path / "published.safetensors")
    names = {
        n.replace("semantic_encoder.encoder.", "audio_encoder."): v
        for n, v in published.items()
        if n.startswith("semantic_encoder.encoder.")
    }
    save_file(names, tmp_path / "midashenglm.safetensors")
    for file in ("published", "midashenglm"):
        got = weights(_run(tmp_path / file, teacher=str(tmp_path / f"{file}.safetensors")))
        for name, value in model.semantic_encoder.state_dict().items():
            assert torch.equal(got[f"semantic_encoder.{name}"], value), name


def _run(output, **more):
    train_sembo(SPEECH, output, small_run(steps=1, **more))
    return output


def test_tensorboard_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_sembo(SPEECH, tmp_path, small_run(steps=3, log={"every": 1, "tensorboard": True}))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"sembo/loss/total", "sembo/loss/sembo_relation", "sembo/training/lr", "sembo/training/grad_norm"} <= set(
        tags
    )
    assert [event.step for event in events.Scalars("sembo/loss/total")] == [1, 2, 3]


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"pip install 'losatok-ext\[train\]'"):
        train_sembo(SPEECH, tmp_path, small_run(steps=3, log={"every": 1, "tensorboard": True}))


@pytest.mark.gpu
def test_on_a_gpu_it_trains_and_goes_on(tmp_path):
    options = {"device": "cuda", "precision": "bfloat16"}
    train_sembo(SPEECH, tmp_path / "sembo", small_run(**options))
    reports = []
    with pytest.raises(StoppedError):
        train("tokenizer", tmp_path / "run", tmp_path / "sembo", stop_at(4), **options)
    train("tokenizer", tmp_path / "run", tmp_path / "sembo", reports.append, **options)
    assert [report.step for report in reports] == [4, 5, 6]
    assert all(report.finite for report in reports)


def test_the_demo_recipe_fits_the_bundled_clips(tmp_path):
    sembo, tokenizer = demo_recipe(tmp_path / "sembo" / "model", device="cpu", scale=0.002)
    assert (sembo.steps, tokenizer.steps) == (1, 5)
    train_sembo(sample_folder(), tmp_path / "sembo", sembo)
    assert train_tokenizer(sample_folder(), tmp_path / "tokenizer", tokenizer).skipped == 0
    config = LoSATok.from_pretrained(tmp_path / "tokenizer" / "model").config
    assert config == LoSATokConfig.preset("tiny")
