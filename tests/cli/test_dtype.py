"""--dtype of the commands that take a model, `losatok convert` between precisions, `losatok evaluate precision`."""

import json

import pytest
import soundfile
import torch

from losatok_ext.formats.latent_files import load_latents
from losatok_ext.models import LoSATok
from small_models import tone


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(16_000).numpy(), 16_000)
    return path


@pytest.fixture(scope="module")
def int8_folder(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8 model")
    LoSATok.from_pretrained(model_folder, dtype="int8").save_pretrained(folder)
    return folder


def test_latents_of_one_precision_are_decoded_in_another(losatok, model_folder, int8_folder, recording, tmp_path):
    latents = {}
    for dtype, options in {
        "float32": ("--model", model_folder),
        "bfloat16": ("--model", model_folder, "--dtype", "bfloat16"),
        "int8": ("--model", model_folder, "--dtype", "int8"),
        "saved int8": ("--model", int8_folder),
    }.items():
        result = losatok("encode", recording, "-o", tmp_path / dtype, "--device", "cpu", *options)
        assert result.code == 0, result.err
        latents[dtype] = load_latents(tmp_path / dtype / "clip.losatok")
    assert torch.equal(latents["int8"].mu, latents["saved int8"].mu)
    assert not torch.equal(latents["int8"].mu, latents["bfloat16"].mu)
    assert len({found.header.fingerprint for found in latents.values()}) == 1
    for source, options in (
        ("int8", ("--model", model_folder)),
        ("float32", ("--model", int8_folder)),
        ("float32", ("--model", model_folder, "--dtype", "int8")),
    ):
        arguments = ("decode", tmp_path / source, "-o", tmp_path / "out", "--overwrite", "--device", "cpu")
        result = losatok(*arguments, *options)
        assert result.code == 0, result.err
    result = losatok("reconstruct", recording, "-o", tmp_path / "r.wav", "--model", model_folder, "--dtype", "int8")
    assert result.code == 0, result.err
    result = losatok("profile", "encode", recording, "--model", int8_folder, "--repeats", 1)
    assert result.code == 0, result.err


@pytest.mark.parametrize("command", ["generate", "edit"])
def test_a_clip_is_generated_in_each_precision(losatok, model_folder, generator_folder, recording, tmp_path, command):
    made = {}
    asked = ("--seconds", 1, "--text", "rain") if command == "generate" else (recording, "--span", "0.2:0.6")
    for dtype in (None, "float32", "bfloat16", "int8"):
        out = tmp_path / f"{dtype}.wav"
        options = () if dtype is None else ("--dtype", dtype)
        models = ("--model", model_folder, "--generator", generator_folder, "--steps", 2, "--device", "cpu")
        result = losatok(command, *asked, "-o", out, *models, *options)
        assert result.code == 0, result.err
        made[dtype] = torch.from_numpy(soundfile.read(out, dtype="float32")[0])
    assert torch.equal(made[None], made["float32"])
    scale = made["float32"].square().mean().sqrt()
    for dtype in ("bfloat16", "int8"):
        error = (made[dtype] - made["float32"]).square().mean().sqrt() / scale
        assert 0 < error < 0.1, (dtype, error)


def test_a_folder_is_converted(losatok, model_folder, int8_folder, tmp_path):
    result = losatok("convert", model_folder, "-o", tmp_path / "small", "--dtype", "int8")
    assert result.code == 0, result.err
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "small" / name).read_bytes() == (int8_folder / name).read_bytes()
    facts = json.loads(losatok("info", tmp_path / "small", "--json").out)[0]
    original = json.loads(losatok("info", model_folder, "--json").out)[0]
    assert (facts["dtype"], original["dtype"]) == ("int8", "float32")
    assert (facts["fingerprint"], facts["weights"]) == (original["fingerprint"], original["weights"])


def test_precision_is_evaluated(losatok, model_folder, recording, tmp_path):
    out = tmp_path / "figures"
    arguments = ("evaluate", "precision", recording, "--budget", 0, "--device", "cpu")
    result = losatok(*arguments, "--model", model_folder, "-o", out)
    assert result.code == 0, result.err
    rows = json.loads((out / "precision.json").read_text())["rows"]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16", "int8"]
    assert f" {100 * rows[2]['token_error']:.2f} % " in result.out
    assert "Errors are relative to float32" in (out / "precision.md").read_text()
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    result = losatok(*arguments, tmp_path / "bad.wav", "--model", model_folder)
    assert result.code == 2
    assert sum("bad.wav" in sentence for sentence in result.sentences) == 1, result.err
    assert "int8" in result.out


def test_bad_arguments(losatok, model_folder, recording, tmp_path):
    for arguments, words in (
        (("encode", recording, "-o", tmp_path, "--dtype", "int4", "--model", model_folder), "--dtype is 'int4'"),
        (
            ("generate", "--seconds", 1, "-o", tmp_path / "a.wav", "--dtype", "half", "--generator", model_folder),
            "--dtype is 'half'; it takes float32, bfloat16 or int8",
        ),
        (
            ("edit", recording, "--span", "0:1", "-o", tmp_path / "a.wav", "--dtype", "int4", "-g", model_folder),
            "--dtype is 'int4'; it takes float32, bfloat16 or int8",
        ),
        (("convert", model_folder, "-o", tmp_path / "x", "--dtype", "half"), "takes float32, bfloat16 or int8"),
        (("convert", model_folder, "-o", model_folder, "--overwrite"), "choose another folder"),
        (("convert", model_folder, "-o", tmp_path / "x", "--config", recording), "go with a published checkpoint"),
        (("evaluate", "precision", recording, "--preset", "huge"), "--preset is 'huge'; it takes base or tiny"),
        (("evaluate", "precision", recording, "--model", model_folder, "-o", recording), "is a file"),
        (("evaluate", "precision", tmp_path / "none.wav", "--model", model_folder), "none.wav"),
    ):
        result = losatok(*arguments)
        assert result.code == 2, result.out
        assert words in result.err
        assert len(result.sentences) == 1
