"""Training the tokenizer with a quantizer in it: it learns, goes on exactly, and says what is wrong with its keys."""

import json

import pytest
import torch
from safetensors.torch import load_file

from losatok_ext.audio.samples import sample_folder
from losatok_ext.errors import ConfigError, TrainingError
from losatok_ext.models import LoSATok
from losatok_ext.training import TrainConfig, read_log, train_sembo, train_tokenizer

SPEECH = sample_folder() / "speech"
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
RVQ = {"kind": "rvq", "stages": 2, "codebook_size": 8}


def config(steps=4, **more):
    values = {
        "steps": steps,
        "batch_size": 2,
        "device": "cpu",
        "data": {"crop_seconds": 0.4},
        "optimizer": {"lr": 1e-3},
        "discriminator": {"kinds": []},
        "checkpoint": {"every": 2},
        "log": {"every": 1},
    }
    return TrainConfig.from_dict(values | more)


@pytest.fixture(scope="module")
def sembo(tmp_path_factory):
    output = tmp_path_factory.mktemp("sembo")
    train_sembo(SPEECH, output, config(steps=1, preset="tiny", model=MODEL))
    return output


class StoppedError(Exception):
    pass


def stop_at(step):
    def on_step(report):
        if report.step == step:
            raise StoppedError

    return on_step


def test_a_quantizer_trains_with_the_rest_and_goes_on_exactly(sembo, tmp_path):
    settings = config(init=str(sembo), quantizer=RVQ)
    result = train_tokenizer(SPEECH, tmp_path / "straight", settings)
    model = LoSATok.from_pretrained(result.model)
    assert model.quantizer_name == "rvq 2x8"
    assert bool(model.quantizer.codebooks.started)
    log = read_log(tmp_path / "straight")
    assert all(entry["quantizer"] > 0 for entry in log)
    weighted = {"mel": 45, "semantic_high": 45, "semantic_low": 45, "kl": 0.01, "quantizer": 1}
    assert log[-1]["total"] == pytest.approx(sum(w * log[-1][name] for name, w in weighted.items()), rel=1e-5)
    with pytest.raises(StoppedError):
        train_tokenizer(SPEECH, tmp_path / "parts", settings, on_step=stop_at(3))
    train_tokenizer(SPEECH, tmp_path / "parts", settings)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "parts"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_levels_have_no_losses_and_train_all_the_same(sembo, tmp_path):
    fsq = {"kind": "fsq", "levels": [5, 3]}
    result = train_tokenizer(SPEECH, tmp_path, config(steps=2, init=str(sembo), quantizer=fsq))
    trained = LoSATok.from_pretrained(result.model)
    torch.manual_seed(0)
    first = LoSATok.from_pretrained(sembo / "model").with_quantizer(trained.config.quantizer)
    assert not torch.equal(trained.quantizer.project_in.weight, first.quantizer.project_in.weight)
    assert [entry["quantizer"] for entry in read_log(tmp_path)] == [0.0, 0.0]


def test_its_weight_is_a_key(sembo, tmp_path):
    settings = config(steps=1, init=str(sembo), quantizer=RVQ, tokenizer={"quantizer": 0.0})
    train_tokenizer(SPEECH, tmp_path, settings)
    (entry,) = read_log(tmp_path)
    assert entry["quantizer"] > 0
    expected = 45 * (entry["mel"] + entry["semantic_high"] + entry["semantic_low"]) + 0.01 * entry["kl"]
    assert entry["total"] == pytest.approx(expected, rel=1e-5)


def test_a_quantizer_may_come_with_the_model(tmp_path):
    model = {**MODEL, "quantizer": {"kind": "vq", "codebook_size": 4}}
    train_sembo(SPEECH, tmp_path / "sembo", config(steps=1, preset="tiny", model=model))
    result = train_tokenizer(SPEECH, tmp_path / "tokenizer", config(steps=1, init=str(tmp_path / "sembo")))
    assert LoSATok.from_pretrained(result.model).quantizer_name == "vq 4"


@pytest.mark.parametrize(
    ("quantizer", "says"),
    [
        ({"kind": "pq"}, "quantizer: the kind of a quantizer should be one of"),
        ({"codebook_size": 4}, "quantizer: the kind of a quantizer should be one of"),
        ({"kind": "vq", "size": 4}, "quantizer: unknown key 'size'"),
    ],
)
def test_a_bad_quantizer_is_said_before_anything_is_written(sembo, tmp_path, quantizer, says):
    with pytest.raises(ConfigError, match=says):
        train_tokenizer(SPEECH, tmp_path / "run", config(init=str(sembo), quantizer=quantizer))
    assert not (tmp_path / "run" / "model").exists()


def test_a_run_of_a_release_without_quantizers_goes_on(sembo, tmp_path):
    train_tokenizer(SPEECH, tmp_path, config(steps=2, init=str(sembo)))
    place = tmp_path / "checkpoints" / "run.json"
    run = json.loads(place.read_text())
    del run["config"]["quantizer"], run["config"]["tokenizer"]["quantizer"]
    place.write_text(json.dumps(run))
    assert train_tokenizer(SPEECH, tmp_path, config(steps=2, init=str(sembo))).steps == 2
    with pytest.raises(TrainingError, match=r"quantizer\.kind was None, is now 'rvq'"):
        train_tokenizer(SPEECH, tmp_path, config(steps=2, init=str(sembo), quantizer=RVQ))
