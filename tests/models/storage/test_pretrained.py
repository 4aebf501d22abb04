"""The bundled model: it loads by name and offline, is small, keeps its promises on recordings it never saw."""

import json
from pathlib import Path

import pytest
import torch

from losatok_ext import pretrained
from losatok_ext.audio.files import read_audio
from losatok_ext.audio.samples import sample_folder
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.spectra import log_band_score
from losatok_ext.models import LoSATok
from losatok_ext.models.storage.folders import find_folder

FOLDER = pretrained.resolve("tiny")


@pytest.fixture(scope="module")
def tiny():
    return LoSATok.from_pretrained("tiny")


def bundled_clips():
    lines = (sample_folder() / "manifest.jsonl").read_text().splitlines()
    return [(values["domain"], sample_folder() / values["path"]) for values in map(json.loads, lines)]


def test_it_is_small_and_complete(tiny):
    assert pretrained.names() == ("tiny",)
    assert (FOLDER / "model.safetensors").stat().st_size <= 12e6
    assert {path.name for path in FOLDER.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert {p.dtype for p in tiny.parameters()} == {torch.float32}
    assert not tiny.training


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrained.resolve("tiny") == FOLDER == find_folder("tiny")
    assert pretrained.resolve("other") != FOLDER
    (tmp_path / "tiny").mkdir()
    assert pretrained.resolve("tiny").resolve() == tmp_path / "tiny"


def test_precisions(tiny):
    assert {p.dtype for p in LoSATok.from_pretrained("tiny", dtype="bfloat16").parameters()} == {
        torch.bfloat16,
        torch.float32,
    }
    assert LoSATok.from_pretrained("tiny", dtype="float32").fingerprint() == tiny.fingerprint()


def test_it_reconstructs_recordings_of_a_seed_it_never_saw(tiny):
    """The bundled clips are seed 1234 of the corpus tool, the model is trained on seed 1: at most 0.30 of what a
    constant spectrum scores (the clips of this test are few, so the card's figures are the ones to quote)."""
    pairs = []
    for _, path in bundled_clips():
        audio = read_audio(path, tiny.sample_rate)
        pairs.append((tiny.reconstruct(audio)[0], audio))
    assert log_band_score(pairs).ratio <= 0.30


def test_the_card_tells_data_metrics_and_licence():
    card = (FOLDER / "README.md").read_text()
    for word in ("MIT", "random weights", "constant spectrum", "probe", "seed"):
        assert word in card


def test_commands_take_it_when_none_is_named(tmp_path):
    from losatok_ext.cli.common import require_model

    assert require_model(None) == require_model(Path("tiny")) == FOLDER
    with pytest.raises(UserError, match=r"nowhere does not exist; .* the bundled model \(tiny\)"):
        require_model(Path("nowhere"))
