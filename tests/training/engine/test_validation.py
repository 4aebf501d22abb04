"""Validation and the moving mean of the weights: what they find, and that they change nothing of the run."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from losatok_ext.audio.samples import sample_folder
from losatok_ext.errors import TrainingError
from losatok_ext.nn import noise
from losatok_ext.training import read_log, train_sembo, train_tokenizer
from losatok_ext.training.data.corpus import open_corpus
from losatok_ext.training.engine.dimension_statistics import DimensionStatistics
from losatok_ext.training.engine.ema import decay_at
from losatok_ext.training.engine.validation import hold_out
from losatok_ext.training.stages.base import ClipLatents
from training_runs import SPEECH, small_run, tokenizer_config, weights


def config(init, **more):
    return tokenizer_config(init, **{"batch_size": 4, "checkpoint": {"every": 2}} | more)


def test_validation_changes_nothing_and_is_the_same_every_time(sembo, tmp_path):
    music = str(sample_folder() / "music")
    checked = {"data": music, "every": 2, "clips": 4, "shown": 1}
    train_tokenizer(SPEECH, tmp_path / "plain", config(sembo))
    settings = config(sembo, validation=checked, log={"every": 1, "tensorboard": True})
    result = train_tokenizer(SPEECH, tmp_path / "checked", settings)
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "checked")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    lines = read_log(tmp_path / "checked")
    validated = [line for line in lines if "validation/total" in line]
    assert [line["step"] for line in validated] == [2, 4, 6]
    assert {"validation/mel", "validation/active_dims", "validation/latent_kl"} <= validated[0].keys()
    lowest = min(validated, key=lambda line: line["validation/total"])
    assert (result.best.step, result.best.total) == (lowest["step"], lowest["validation/total"])
    state = json.loads((tmp_path / "checked" / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert state["best"] == {"step": result.best.step, "total": result.best.total}

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "checked" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert len(tags["images"]) == 1
    assert len(tags["audio"]) == 2
    assert {"latents/mean", "latents/std", "latents/kl"} <= set(tags["histograms"])
    assert "tokenizer/validation/total" in tags["scalars"]


def test_a_held_out_share_is_not_trained_on(sembo, tmp_path):
    corpus = open_corpus(SPEECH, 16000, 640, 100)
    trained, held = hold_out(corpus, 0.3, SPEECH)
    names = [clip.name for clip in corpus.clips]
    assert sorted(clip.name for clip in (*trained.clips, *held.clips)) == sorted(names)
    assert all(torch.equal(a, corpus.audio[names.index(c.name)]) for c, a in zip(held.clips, held.audio, strict=True))
    seen = []
    train_sembo(
        SPEECH,
        tmp_path,
        small_run(steps=1, validation={"share": 0.3, "clips": 4}),
        on_start=lambda start: seen.append(start.corpus),
    )
    assert [clip.name for clip in seen[0].clips] == [clip.name for clip in trained.clips]
    with pytest.raises(TrainingError, match=r"validation.share 1e-09 of its \d+ clips leaves none to validate on"):
        hold_out(corpus, 1e-9, SPEECH)


def test_the_model_is_the_moving_mean(sembo, tmp_path):
    train_tokenizer(
        SPEECH, tmp_path, config(sembo, optimizer={"lr": 1e-3, "ema_decay": 0.5}, checkpoint={"every": 1, "keep": 9})
    )
    mean = None
    for step in range(1, 7):
        raw = load_file(tmp_path / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
        if mean is None:
            mean = {name: value.clone() for name, value in weights(sembo).items()}
        decay = decay_at(step - 1, 0.5)
        for name, value in raw.items():
            mean[name] = decay * mean[name] + (1 - decay) * value if value.is_floating_point() else value
    found = weights(tmp_path)
    for name in raw:
        torch.testing.assert_close(found[name], mean[name], rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(found[name], value) for name, value in raw.items())
    assert [decay_at(n, 0.5) for n in (0, 8, 100)] == [0.1, 0.5, 0.5]


def test_statistics_by_dimension_are_those_of_the_valid_frames():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 50, 4, generator=generator) * torch.tensor([1.0, 0.5, 0.01, 0.0]) + 2
    lengths = torch.tensor([50, 20, 0])
    valid = torch.cat([mean[0], mean[1, :20]])
    mean[1, 20:] = float("nan")
    statistics = DimensionStatistics()
    statistics.update(ClipLatents(mean, torch.zeros_like(mean), lengths))
    found = statistics.dimensions()
    torch.testing.assert_close(found["mean"], valid.mean(0))
    torch.testing.assert_close(found["std"], valid.std(0, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["kl"], 0.5 * valid.square().mean(0))
    assert statistics.scalars()["active_dims"] == 2


@pytest.mark.parametrize("shape_rows", [((6, 3), 0), ((2, 6), 1)])
def test_parts_draw_the_numbers_of_the_whole(shape_rows):
    shape, rows = shape_rows
    with noise.rows_of(0, 6, 6, seed=7):
        whole = noise.normal(shape, rows=rows)
    for first, size in ((0, 2), (2, 3), (5, 1)):
        own = [*shape]
        own[rows] = size
        with noise.rows_of(first, size, 6, seed=7):
            assert torch.equal(noise.normal(own, rows=rows), whole.narrow(rows, first, size))
    with noise.rows_of(0, 2, 6, seed=7), pytest.raises(ValueError, match="should be the 2 rows of this part"):
        noise.uniform((3,))


FULL_DISK = """
import resource, signal, sys
import torch
torch.set_num_threads(1)
sys.path[:0] = {tests!r}
from test_validation import SPEECH, config, train_tokenizer
from losatok_ext.errors import TrainingError

def fill(report):
    if report.step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    train_tokenizer(SPEECH, {output!r}, config({init!r}), on_step=fill)
except TrainingError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_leaves_the_last_checkpoint(sembo, tmp_path):
    """A limit on the size of files fails as a full disk does: in the middle of writing."""
    assert resource.RLIMIT_FSIZE
    output = tmp_path / "run"
    here = Path(__file__).parent
    tests = here.parents[1]
    code = FULL_DISK.format(tests=[str(here), str(tests)], output=str(output), init=str(sembo))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "the checkpoint of step 4 cannot be written" in done.stdout
    assert "the one of step 2 is intact" in done.stdout
    assert [path.name for path in (output / "checkpoints").glob("*-*")] == ["step-00000002"]
    train_tokenizer(SPEECH, output, config(sembo))
    train_tokenizer(SPEECH, tmp_path / "straight", config(sembo))
    one, other = weights(output), weights(tmp_path / "straight")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
