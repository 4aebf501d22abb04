"""A run keeps float32 weights whatever dtype they were stored in, says what it read, and refuses int8."""

import pytest
import torch
from safetensors.torch import load_file

from losatok_ext.errors import ConfigError, UserError
from losatok_ext.models import LoSATok
from losatok_ext.models.generator.generator import Generator
from losatok_ext.models.storage.checkpoint import WEIGHTS_FILE
from losatok_ext.training.run import STAGES, train
from small_models import lively, make_generator, put_weights, small_config
from training_runs import SPEECH, small_run, weights

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def stored(model, folder, dtype):
    """``folder`` with ``model`` saved in ``dtype``."""
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """dtype -> (folder of a tokenizer, folder of a generator of its latents)."""
    root, found = tmp_path_factory.mktemp("stored"), {}
    torch.manual_seed(0)
    tokenizer = lively(LoSATok(small_config(mel_loss_windows=(128,), mel_loss_bins=(10,))))
    tokenizer.save_pretrained(root / "float32")
    make_generator(root / "generator", tokenizer.fingerprint())
    for name, dtype in DTYPES.items():
        ours = stored(LoSATok.from_pretrained(root / "float32"), root / name, dtype)
        theirs = make_generator(root / f"generator {name}", LoSATok.from_pretrained(ours).fingerprint())
        found[name] = ours, stored(Generator.from_pretrained(theirs), theirs, dtype)
    LoSATok.from_pretrained(root / "float32", dtype="int8").save_pretrained(root / "int8")
    integers = load_file(root / "generator" / WEIGHTS_FILE)
    name = next(n for n, t in integers.items() if t.dim() == 2)
    (root / "generator int8").mkdir()
    (root / "generator int8" / "config.json").write_bytes((root / "generator" / "config.json").read_bytes())
    put_weights(root / "generator int8", {**integers, name: integers[name].to(torch.int8)})
    found["int8"] = root / "int8", root / "generator int8"
    found["float32"] = root / "float32", root / "generator"
    return found


def settings(stage, tokenizer, generator):
    more = {"steps": 1, "preset": None, "model": {}, "checkpoint": {"every": 1}}
    if stage == "generator":
        return small_run(init=str(generator), generator={"tokenizer": str(tokenizer)}, **more)
    return small_run(init=str(tokenizer), **more)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_weights_stored_in_half_precision_train_in_float32(stage, dtype, folders, tmp_path):
    notes = []
    run = settings(stage, *folders[dtype])
    train(stage, SPEECH, tmp_path, run, on_start=lambda start: notes.extend(start.notes))
    assert f"init {run.init}: weights stored as {dtype}, trained in float32" in notes
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    files = [checkpoint / "model.safetensors", checkpoint / "optimizer.safetensors", tmp_path / "model" / WEIGHTS_FILE]
    files.append(tmp_path / "checkpoints" / "frozen.safetensors")
    for file in files:
        assert {t.dtype for t in load_file(file).values() if t.is_floating_point()} <= {torch.float32}, file
    if stage == "generator":
        assert f"tokenizer {folders[dtype][0]}: weights stored as {dtype}, computed in float32" in notes


@pytest.mark.parametrize("stage", STAGES)
def test_int8_is_refused(stage, folders, tmp_path):
    run = settings(stage, folders["int8"][0] if stage != "generator" else folders["float32"][0], folders["int8"][1])
    message = "int8, which this model does not take" if stage == "generator" else "its weights are int8, which cannot"
    with pytest.raises(UserError, match=message):
        train(stage, SPEECH, tmp_path / "run", run)
    assert not (tmp_path / "run").exists()


def test_an_int8_teacher_is_refused_and_one_in_half_precision_is_widened(folders, tmp_path):
    def by_name(dtype):
        small = {"latent_dim": 8, "bottleneck_dim": 16, "decoder_dim": 16, "decoder_depth": 1, "decoder_hidden": 32}
        return small_run(1, model=small, teacher=str(folders[dtype][0]))

    with pytest.raises(ConfigError, match=r"teacher .*int8: its weights are int8"):
        train("sembo", SPEECH, tmp_path / "int8", by_name("int8"))
    train("sembo", SPEECH, tmp_path / "half", by_name("float16"))
    assert {t.dtype for t in weights(tmp_path / "half").values() if t.is_floating_point()} == {torch.float32}


def test_float32_is_no_news_and_the_bundled_model_says_how_it_is_stored(folders, tmp_path):
    notes = []
    run = settings("sembo", *folders["float32"])
    train("sembo", SPEECH, tmp_path / "a", run, on_start=lambda start: notes.extend(start.notes))
    assert notes == []
    run = small_run(1, preset=None, model={}, init="tiny")
    train("sembo", SPEECH, tmp_path / "b", run, on_start=lambda start: notes.extend(start.notes))
    assert notes == ["init tiny: weights stored as float16, trained in float32"]


def test_an_int8_tokenizer_encodes_for_a_generator(folders, tmp_path):
    run = settings("generator", folders["int8"][0], folders["float32"][1])
    assert train("generator", SPEECH, tmp_path, run).steps == 1
