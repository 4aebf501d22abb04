"""Checkpoints that were damaged: named, with the command that goes on; the one before only when asked."""

import json

import pytest

from losatok_ext.cli import main
from losatok_ext.errors import CheckpointError
from losatok_ext.training import read_log, train_sembo
from losatok_ext.training.engine.checkpoint import DIGESTS
from training_runs import SPEECH, assert_same_weights, small_run, weights

CONFIG = small_run(steps=4, checkpoint={"every": 2, "keep": 2})


@pytest.fixture
def run(tmp_path):
    """A finished run of four steps, with checkpoints of steps 2 and 4."""
    train_sembo(SPEECH, tmp_path / "run", CONFIG)
    return tmp_path / "run"


def newest(run):
    return run / "checkpoints" / "step-00000004"


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_bit_is_named_and_the_checkpoint_before_goes_on(run, tmp_path, name):
    whole = weights(run)
    flip_a_bit(newest(run) / name)
    says = (
        rf"step-00000004: the checkpoint is damaged \(the content of {name} is not what was written\); --from previous"
    )
    with pytest.raises(CheckpointError, match=says + r" .* goes on from the one before it, of step 2"):
        train_sembo(SPEECH, run, CONFIG)
    steps = []
    train_sembo(SPEECH, run, CONFIG, on_step=steps.append, resume="previous")
    assert [step.step for step in steps] == [3, 4]
    assert_same_weights(whole, weights(run))
    assert [line["step"] for line in read_log(run)] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["frozen.safetensors", "run.json"])
def test_a_flipped_bit_in_what_all_checkpoints_share(run, name):
    flip_a_bit(run / "checkpoints" / name)
    with pytest.raises(CheckpointError, match=rf"(?s){name}.*start in another folder"):
        train_sembo(SPEECH, run, CONFIG)


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_file_is_named(run, name, digests):
    (newest(run) / name).unlink()
    if not digests:
        (newest(run) / DIGESTS).unlink()
    with pytest.raises(CheckpointError, match=rf"the checkpoint is damaged \({name} is missing\)"):
        train_sembo(SPEECH, run, CONFIG)


@pytest.mark.parametrize("content", ["{}", "[]", "null", "3", "{", "[" * 100_000, ""])
@pytest.mark.parametrize("name", ["state.json", "run.json", DIGESTS])
def test_other_json_is_refused_in_one_sentence(run, name, content, capsys):
    folder = run / "checkpoints" if name == "run.json" else newest(run)
    (run / "checkpoints" / DIGESTS).unlink()
    if name == "state.json":
        (newest(run) / DIGESTS).unlink()
    (folder / name).write_text(content)
    if name == DIGESTS and content == "{}":
        train_sembo(SPEECH, run, CONFIG)
        return
    with pytest.raises(CheckpointError, match="damaged"):
        train_sembo(SPEECH, run, CONFIG)


def test_runs_without_digests_go_on(run):
    for path in (run / "checkpoints").rglob(DIGESTS):
        path.unlink()
    assert train_sembo(SPEECH, run, CONFIG).last is None


def test_the_command_line_goes_on_from_the_checkpoint_before(run, capsys):
    arguments = ["train", "sembo", str(SPEECH), "-o", str(run)]
    config = run.parent / "config.json"
    config.write_text(json.dumps(CONFIG.to_dict()))
    flip_a_bit(newest(run) / "model.safetensors")
    assert main([*arguments, "--config", str(config)]) == 2
    assert "--from previous" in capsys.readouterr().err
    assert main([*arguments, "--config", str(config), "--from", "previous"]) == 0
    assert main([*arguments, "--config", str(config), "--from", "oldest"]) == 2


def test_there_may_be_none_before(tmp_path):
    config = small_run(steps=2, checkpoint={"every": 2})
    train_sembo(SPEECH, tmp_path, config)
    with pytest.raises(CheckpointError, match="there is no checkpoint before that of step 2"):
        train_sembo(SPEECH, tmp_path, config, resume="previous")
    with pytest.raises(ValueError, match="resume should be one of newest, previous"):
        train_sembo(SPEECH, tmp_path, config, resume="oldest")
    (tmp_path / "checkpoints" / "step-00000002" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="there is none before it: start in another folder"):
        train_sembo(SPEECH, tmp_path, config)
