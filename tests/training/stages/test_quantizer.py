"""Training the tokenizer with a quantizer in it: it learns, goes on exactly, and says what is wrong with its keys."""

import json

import pytest
import torch

from losatok_ext.errors import ConfigError, TrainingError
from losatok_ext.models import LoSATok
from losatok_ext.training import read_log, train_sembo, train_tokenizer
from training_runs import (
    MODEL,
    SPEECH,
    StoppedError,
    assert_same_weights,
    small_run,
    stop_at,
    tokenizer_config,
    weights,
)

RVQ = {"kind": "rvq", "stages": 2, "codebook_size": 8}


def config(init, **more):
    return tokenizer_config(init, **{"steps": 4, "batch_size": 2, "checkpoint": {"every": 2}} | more)


def test_a_quantizer_trains_with_the_rest_and_goes_on_exactly(sembo, tmp_path):
    settings = config(sembo, quantizer=RVQ)
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
    assert_same_weights(weights(tmp_path / "straight"), weights(tmp_path / "parts"))


def test_levels_have_no_losses_and_train_all_the_same(sembo, tmp_path):
    fsq = {"kind": "fsq", "levels": [5, 3]}
    result = train_tokenizer(SPEECH, tmp_path, config(sembo, steps=2, quantizer=fsq))
    trained = LoSATok.from_pretrained(result.model)
    torch.manual_seed(0)
    first = LoSATok.from_pretrained(sembo / "model").with_quantizer(trained.config.quantizer)
    assert not torch.equal(trained.quantizer.project_in.weight, first.quantizer.project_in.weight)
    assert [entry["quantizer"] for entry in read_log(tmp_path)] == [0.0, 0.0]


def test_its_weight_is_a_key(sembo, tmp_path):
    settings = config(sembo, steps=1, quantizer=RVQ, tokenizer={"quantizer": 0.0})
    train_tokenizer(SPEECH, tmp_path, settings)
    (entry,) = read_log(tmp_path)
    assert entry["quantizer"] > 0
    expected = 45 * (entry["mel"] + entry["semantic_high"] + entry["semantic_low"]) + 0.01 * entry["kl"]
    assert entry["total"] == pytest.approx(expected, rel=1e-5)


def test_a_quantizer_may_come_with_the_model(tmp_path):
    model = {**MODEL, "quantizer": {"kind": "vq", "codebook_size": 4}}
    train_sembo(SPEECH, tmp_path / "sembo", small_run(steps=1, model=model))
    result = train_tokenizer(SPEECH, tmp_path / "tokenizer", config(tmp_path / "sembo", steps=1))
    assert LoSATok.from_pretrained(result.model).quantizer_name == "vq 4"


@pytest.mark.parametrize(
    ("quantizer", "says"),
    [
        ({"kind": "pq"}, "quantizer.kind should be one of"),
        ({"codebook_size": 4}, "quantizer.kind should be one of"),
        ({"kind": "vq", "size": 4}, "quantizer.size is not a key; the keys here are quantizer.codebook_size"),
    ],
)
def test_a_bad_quantizer_is_said_before_anything_is_written(sembo, tmp_path, quantizer, says):
    with pytest.raises(ConfigError, match=says):
        train_tokenizer(SPEECH, tmp_path / "run", config(sembo, quantizer=quantizer))
    assert not (tmp_path / "run" / "model").exists()


def test_a_run_of_a_release_without_quantizers_goes_on(sembo, tmp_path):
    train_tokenizer(SPEECH, tmp_path, config(sembo, steps=2))
    place = tmp_path / "checkpoints" / "run.json"
    run = json.loads(place.read_text())
    del run["config"]["quantizer"], run["config"]["tokenizer"]["quantizer"]
    place.write_text(json.dumps(run))
    (place.parent / "digests.json").unlink()
    assert train_tokenizer(SPEECH, tmp_path, config(sembo, steps=2)).steps == 2
    with pytest.raises(TrainingError, match=r"quantizer was None, is now {'kind': 'rvq'"):
        train_tokenizer(SPEECH, tmp_path, config(sembo, steps=2, quantizer=RVQ))
