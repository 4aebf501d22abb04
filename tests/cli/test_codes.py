"""``losatok encode --store``, ``fit-quantizer`` and ``evaluate storage``: from recordings to codes and figures."""

import json

import pytest
import soundfile
import torch

from losatok_ext.audio.files import audio_info
from losatok_ext.formats.latent_files import load_latents, read_storage
from losatok_ext.models import LoSATok
from small_models import tone


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for index, samples in enumerate((24_000, 16_000, 9_001)):
        soundfile.write(folder / f"{index}.wav", tone(samples, index).numpy(), 16_000)
    return folder


@pytest.fixture
def latents(losatok, recordings, model_folder, tmp_path):
    folder = tmp_path / "latents"
    assert losatok("encode", recordings, "-o", folder, "-m", model_folder).code == 0
    return folder


@pytest.fixture
def coded(losatok, latents, model_folder, tmp_path):
    folder = tmp_path / "coded"
    result = losatok("fit-quantizer", "-l", latents, "--rvq", "2x16", "-o", folder, "-m", model_folder)
    assert (result.code, result.err) == (0, "")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("storage", ["float32", "float16", "int8", "int4"])
def test_every_storage_goes_there_and_back(losatok, tmp_path, recordings, model_folder, storage):
    result = losatok("encode", recordings, "-o", tmp_path / "l", "-m", model_folder, "--store", storage)
    assert (result.code, result.err) == (0, "")
    assert {read_storage(path) for path in (tmp_path / "l").iterdir()} == {storage}
    assert losatok("decode", tmp_path / "l", "-o", tmp_path / "out", "-m", model_folder).code == 0
    assert [audio_info(path).frames for path in sorted((tmp_path / "out").glob("*.wav"))] == [24_000, 16_000, 9_001]
    shown = losatok("info", tmp_path / "l" / "0.losatok")
    assert "losatok-latents, version 2" in shown.out
    assert storage in shown.out


def test_a_fitted_model_writes_codes_that_only_it_decodes(losatok, tmp_path, recordings, model_folder, coded):
    assert losatok("encode", recordings, "-o", tmp_path / "c", "-m", coded).code == 0
    file = tmp_path / "c" / "0.losatok"
    assert load_latents(file).codes.shape == (38, 2)
    (facts,) = json.loads(losatok("info", "--json", file).out)
    assert facts["storage"] == "codes"
    assert facts["quantizer"].startswith("rvq 2x16 (")
    assert facts["latent_bits_per_second"] == pytest.approx(38 * 8 / 1.5)  # two codes of 4 bits
    assert losatok("decode", tmp_path / "c", "-o", tmp_path / "out", "-m", coded).code == 0
    assert audio_info(tmp_path / "out" / "2.wav").frames == 9_001
    assert losatok("profile", "decode", file, "-m", coded, "--repeats", 1).code == 0
    result = losatok("decode", file, "-o", tmp_path / "no", "-m", model_folder)
    assert (result.code, len(result.sentences)) == (2, 1)
    assert "with the quantizer rvq 2x16 (" in result.err
    result = losatok("decode", file, "-o", tmp_path / "no", "-m", model_folder, "--force")
    assert "codes of the quantizer rvq 2x16, and this model has no quantizer" in result.err
    assert not (tmp_path / "no").exists()
    (facts,) = json.loads(losatok("info", "--json", coded).out)
    assert (facts["quantizer_name"], facts["codes_per_token"], facts["bits_per_second"]) == ("rvq 2x16", 2, 200.0)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--vq", "32", "with vq 32, 125 bits per second"),
        ("--fsq", "8,5", "with fsq 8,5, 133 bits per second"),
        ("--fsq", "2x8,5", "with fsq 2x8,5, 266 bits per second"),
        ("--groups=2 --rvq", "2x16", "with 2 groups of rvq 2x16, 400 bits per second"),
        ("--affine", "4", "with affine 4, 2400 bits per second"),
    ],
)
def test_every_kind_is_fitted(losatok, tmp_path, latents, model_folder, option, value, says):
    result = losatok(
        "fit-quantizer", "--latents", latents, *option.split(), value, "-o", tmp_path / "m", "-m", model_folder
    )
    assert (result.code, result.err) == (0, "")
    assert says in result.out
    assert "fitted to 78 frames of 3 files; relative error on them 0." in result.out
    assert ("78 frames are few for 32 codes: the error on other recordings will be larger" in result.out) == (
        option == "--vq"
    )
    assert names(tmp_path / "m") == ["config.json", "model.safetensors"]
    fitted, plain = LoSATok.from_pretrained(tmp_path / "m"), LoSATok.from_pretrained(model_folder)
    assert fitted.with_quantizer(None).fingerprint() == plain.fingerprint()


def test_codes_of_groups_go_through_files(losatok, tmp_path, latents, recordings, model_folder):
    options = ("--rvq", "2x16", "--groups", 2, "-o", tmp_path / "m", "-m", model_folder)
    assert losatok("fit-quantizer", "-l", latents, *options).code == 0
    assert losatok("encode", recordings, "-o", tmp_path / "c", "-m", tmp_path / "m").code == 0
    file = tmp_path / "c" / "0.losatok"
    assert load_latents(file).codes.shape == (38, 4)
    assert "2 groups of rvq 2x16" in losatok("info", file).out
    assert losatok("decode", tmp_path / "c", "-o", tmp_path / "out", "-m", tmp_path / "m").code == 0
    assert audio_info(tmp_path / "out" / "2.wav").frames == 9_001
    result = losatok("fit-quantizer", "-l", latents, *options[:2], "--groups", 3, *options[4:], "--overwrite")
    assert result.code == 2
    assert "groups should divide the 8 features of the latent, got 3" in result.err


def test_files_that_cannot_be_used_are_named_and_the_others_fitted(losatok, tmp_path, latents, model_folder):
    (latents / "cut.losatok").write_bytes((latents / "0.losatok").read_bytes()[:-4])
    result = losatok(
        "fit-quantizer", "-l", latents, "-l", "gone.losatok", "--vq", 8, "-o", tmp_path / "m", "-m", model_folder
    )
    assert result.code == 2
    assert "fitted to 78 frames of 3 files" in result.out
    assert len(result.sentences) == 2
    assert any("cut.losatok is truncated" in line for line in result.sentences)
    assert any("gone.losatok does not exist" in line for line in result.sentences)
    assert LoSATok.from_pretrained(tmp_path / "m").quantizer_name == "vq 8"


def test_a_copy_is_not_written_over(losatok, tmp_path, latents, model_folder, coded):
    before = (coded / "config.json").read_bytes()
    arguments = ("fit-quantizer", "-l", latents, "--vq", 8, "-m", model_folder, "-o")
    assert "holds a model already; pass --overwrite" in losatok(*arguments, coded).err
    assert (coded / "config.json").read_bytes() == before
    assert losatok(*arguments, coded, "--overwrite").code == 0
    result = losatok(*arguments, model_folder, "--overwrite")
    assert result.code == 2
    assert "is the model itself" in result.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "pass one of --vq, --rvq, --fsq and --affine, got 0"),
        (["--vq", "8", "--affine", "4"], "pass one of --vq, --rvq, --fsq and --affine, got 2"),
        (["--vq", "many"], "--vq is 'many'; it takes 1024"),
        (["--vq", "0"], "--vq 0: codebook_size should be"),
        (["--rvq", "1024"], "--rvq is '1024'; it takes 8x1024"),
        (["--rvq", "8x"], "--rvq is '8x'; it takes 8x1024"),
        (["--fsq", "8;5"], "--fsq is '8;5'; it takes 8,5,5,5"),
        (["--fsq", "1,1"], "--fsq 1,1: levels[0] should be"),
        (["--fsq", "3,3,3,3,3,3,3,3"], "levels should be fewer than the latent's 8 dimensions"),
        (["--affine", "3"], "--affine 3: bits should be one of 8, 4"),
        (["--vq", "79"], "there are 78 frames of latents, too few for a codebook of 79 codes"),
        (["--vq", "8", "--iterations", "0"], "--iterations"),
        (["--vq", "8", "--seed", "9" * 30], "--seed"),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence(losatok, tmp_path, latents, model_folder, options, says):
    result = losatok("fit-quantizer", "-l", latents, *options, "-o", tmp_path / "m", "-m", model_folder)
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert says in result.err
    assert not (tmp_path / "m").exists()


def test_latents_of_another_model_are_not_fitted(losatok, tmp_path, latents, other_model_folder):
    result = losatok("fit-quantizer", "-l", latents, "--vq", 8, "-o", tmp_path / "m", "-m", other_model_folder)
    assert (result.code, len(result.sentences)) == (2, 1)
    assert "there are no latents to fit a quantizer to; the first: " in result.err
    assert "was encoded by model" in result.err
    result = losatok("fit-quantizer", "-l", tmp_path / "no*", "--vq", 8, "-o", tmp_path / "m", "-m", other_model_folder)
    assert "matches no file" in result.err
    assert not (tmp_path / "m").exists()


def test_the_report_on_storage(losatok, tmp_path, recordings, model_folder, coded):
    (tmp_path / "empty.wav").touch()
    arguments = ["evaluate", "storage", recordings, tmp_path / "empty.wav", "-m", model_folder]
    result = losatok(*arguments, "--quantizer-model", coded, "-o", tmp_path / "report")
    assert result.code == 2
    assert "empty.wav is empty" in result.sentences[0]
    assert result.sentences[1:] == ["losatok: 1 left out"]
    assert names(tmp_path / "report") == ["storage.html", "storage.json", "storage.md", "storage.png"]
    report = json.loads((tmp_path / "report" / "storage.json").read_text())
    assert [row["storage"] for row in report["rows"]] == ["float32", "float16", "int8", "int4", "rvq 2x16"]
    assert report["recordings"] == 3
    assert report["failures"][0]["path"] == str(tmp_path / "empty.wav")
    assert (tmp_path / "report" / "storage.png").read_bytes().startswith(b"\x89PNG")
    again = losatok(*arguments, "-o", tmp_path / "report")
    assert "exists already; pass --overwrite" in again.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["IN", "-o", "OUT", "-m", "MODEL", "--quantizer-model", "IN/gone"], "does not exist"),
        (["IN", "-o", "OUT", "-m", "MODEL", "--quantizer-model", "MODEL"], "has no quantizer"),
        (["IN/*.flac", "-o", "OUT", "-m", "MODEL"], "matches no file"),
        (["IN/gone.wav", "-o", "OUT", "-m", "MODEL"], "there are no recordings to measure; the first:"),
        (["IN", "-m", "MODEL"], "Missing option '--output' / '-o'"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(losatok, tmp_path, recordings, model_folder, arguments, says):
    places = {"IN": str(recordings), "OUT": str(tmp_path / "out"), "MODEL": str(model_folder)}
    filled = ["/".join([places.get(a.split("/")[0], a.split("/")[0]), *a.split("/")[1:]]) for a in arguments]
    result = losatok("evaluate", "storage", *filled)
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert says in result.err
    assert not (tmp_path / "out").exists()


def test_the_group_shows_its_commands(losatok):
    result = losatok("evaluate")
    assert "storage" in result.out + result.err
    assert "evaluate" in losatok("--help").out


def test_codes_of_a_model_without_any_are_refused(losatok, tmp_path, recordings, model_folder):
    for store, says in (("codes", "this model has no quantizer"), ("int2", "--store is 'int2'; it takes float32")):
        result = losatok("encode", recordings, "-o", tmp_path / "out", "-m", model_folder, "--store", store)
        assert (result.code, len(result.sentences)) == (2, 1)
        assert says in result.err
    assert not (tmp_path / "out").exists()


def test_the_fit_is_the_same_again(losatok, tmp_path, latents, model_folder, coded):
    torch.rand(5)
    assert losatok("fit-quantizer", "-l", latents, "--rvq", "2x16", "-o", tmp_path / "b", "-m", model_folder).code == 0
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == (coded / "model.safetensors").read_bytes()
