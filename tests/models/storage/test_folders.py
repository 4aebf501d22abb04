"""Which folder a path means, and which type of model it holds."""

import json

import pytest

from losatok_ext.errors import CheckpointError
from losatok_ext.models import DiT, Generator, LoSATok
from losatok_ext.models.generator.dit_config import DiTConfig
from losatok_ext.models.storage.folders import RUN_FILE, TOKENIZER, find_folder, is_model, open_folder
from small_models import make_generator

SMALL_DIT = DiTConfig(latent_dim=8, width=32, depth=1, heads=2, text_dim=0, time_features=16)


def test_a_run_a_model_folder_and_a_bundled_name(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "model")
    for path in (tmp_path / "run", tmp_path / "run" / "model", str(tmp_path / "run")):
        found = open_folder(path, TOKENIZER)
        assert (found.path, found.model_type) == (tmp_path / "run" / "model", TOKENIZER)
        assert found.config(type(model.config)) == model.config
        assert is_model(path)
    assert LoSATok.from_pretrained(tmp_path / "run").fingerprint() == model.fingerprint()
    assert open_folder("tiny").path == find_folder("tiny")


def test_a_model_folder_may_hold_a_folder_of_that_name(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "model").mkdir()
    assert find_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (LoSATok, r"holds the network of a generator, and a tokenizer is needed here; DiT\.from_pretrained takes"),
        (Generator, r"holds the network of a generator, and a generator is needed here; DiT\.from_pretrained takes"),
    ],
)
def test_another_type_of_model_is_named(tmp_path, kind, says):
    DiT(SMALL_DIT).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        kind.from_pretrained(tmp_path)


def test_generators_come_back_from_their_run(tmp_path):
    make_generator(tmp_path / "run" / "model", None)
    assert Generator.from_pretrained(tmp_path / "run").latent_dim == 8
    with pytest.raises(CheckpointError, match=r"holds a generator, and a tokenizer is needed here; --generator"):
        LoSATok.from_pretrained(tmp_path / "run")


def test_what_is_no_model_of_ours(tmp_path):
    assert not is_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert not is_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not describe a model of losatok_ext \(model_type is 'bert'\)"):
        open_folder(tmp_path)
    with pytest.raises(CheckpointError, match="it does not exist"):
        open_folder(tmp_path / "nowhere")


def test_a_run_that_is_not_finished(tmp_path):
    (tmp_path / RUN_FILE).parent.mkdir()
    (tmp_path / RUN_FILE).write_text("{}")
    assert is_model(tmp_path)
    with pytest.raises(CheckpointError, match="a run that has not written its model yet"):
        LoSATok.from_pretrained(tmp_path)
