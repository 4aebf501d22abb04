"""``losatok encode``, ``decode`` and ``reconstruct`` on real files: formats, folders, resuming, bad input."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from losatok_ext.audio.files import audio_info, read_audio
from losatok_ext.audio.samples import sample_folder
from losatok_ext.formats import load_latents
from losatok_ext.jobs import tokenize
from losatok_ext.jobs.outputs import RECORD
from losatok_ext.models import LoSATok
from small_models import lively, small_config, tone


def record(path, rate=16_000, seconds=0.5, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = tone(round(rate * seconds)).numpy()
    soundfile.write(path, np.stack([samples] * channels, 1), rate)
    return path


def tree(folder):
    """The files in ``folder``, without the record that decoding leaves beside them."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in found if Path(name).name != RECORD]


def test_a_folder_goes_there_and_back(losatok, tmp_path, model_folder):
    made = ["a.wav", "with space/b ü 音.flac", "with space/c.ogg", "d.mp3"]
    for name, rate, channels in zip(made, (8_000, 44_100, 48_000, 16_000), (1, 2, 1, 2), strict=True):
        record(tmp_path / "in" / name, rate, 0.5, channels)
    result = losatok("encode", tmp_path / "in", "-o", tmp_path / "latents", "--model", model_folder)
    assert (result.code, result.err) == (0, "")
    assert "4 files encoded" in result.out
    assert tree(tmp_path / "latents") == ["a.losatok", "d.losatok", "with space/b ü 音.losatok", "with space/c.losatok"]
    result = losatok("decode", tmp_path / "latents", "-o", tmp_path / "out", "--model", model_folder)
    assert (result.code, result.err) == (0, "")
    assert tree(tmp_path / "out") == ["a.wav", "d.wav", "with space/b ü 音.wav", "with space/c.wav"]
    for path in (tmp_path / "out").rglob("*.wav"):
        assert (audio_info(path).sample_rate, audio_info(path).frames) == (16_000, 8_000)


def test_the_command_line_and_the_model_agree(losatok, tmp_path, model_folder):
    source = sample_folder() / "speech" / "00001.flac"
    assert losatok("encode", source, "-o", tmp_path, "-m", model_folder, "--logvar").code == 0
    assert (
        losatok("decode", tmp_path / "00001.losatok", "-o", tmp_path, "-m", model_folder, "--format", "flac").code == 0
    )
    model = LoSATok.from_pretrained(model_folder)
    audio = read_audio(source)
    assert load_latents(tmp_path / "00001.losatok").logvar is not None
    expected = model.reconstruct(audio)[0].clamp(-1, 1)
    torch.testing.assert_close(read_audio(tmp_path / "00001.flac"), expected, rtol=0, atol=1e-4)


def test_the_model_may_come_from_the_environment(losatok, tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("LOSATOK_MODEL", str(model_folder))
    assert losatok("encode", record(tmp_path / "a.wav"), "-o", tmp_path).code == 0


def test_files_of_one_name_do_not_meet(losatok, tmp_path, model_folder):
    for name in ("a.wav", "a.flac", "x/a.wav"):
        record(tmp_path / "in" / name)
    assert losatok("encode", tmp_path / "in", "-o", tmp_path / "out", "-m", model_folder).code == 0
    assert tree(tmp_path / "out") == ["a.flac.losatok", "a.wav.losatok", "x/a.losatok"]


def test_patterns_and_repeats(losatok, tmp_path, model_folder):
    for name in ("1/a.wav", "2/a.wav", "2/b.flac"):
        record(tmp_path / "in" / name)
    result = losatok(
        "encode", f"{tmp_path}/in/*/*.wav", tmp_path / "in/1/a.wav", "-o", tmp_path / "out", "-m", model_folder
    )
    assert result.code == 0
    assert tree(tmp_path / "out") == ["1/a.losatok", "2/a.losatok"]


def test_resuming_keeps_what_is_there(losatok, tmp_path, model_folder):
    record(tmp_path / "in" / "a.wav")
    losatok("encode", tmp_path / "in", "-o", tmp_path / "out", "-m", model_folder)
    record(tmp_path / "in" / "b.wav")
    result = losatok("encode", tmp_path / "in", "-o", tmp_path / "out", "-m", model_folder)
    assert result.code == 0
    assert "1 file encoded" in result.out
    assert "1 file kept as they were (--overwrite" in result.out
    result = losatok("encode", tmp_path / "in", "-o", tmp_path / "out", "-m", model_folder, "--overwrite")
    assert "2 files encoded" in result.out
    assert "kept" not in result.out
    record(tmp_path / "in" / "b.wav", channels=2)
    result = losatok("encode", tmp_path / "in", "-o", tmp_path / "out", "-m", model_folder)
    assert "x real time), 1 of them again, since the recording has changed; 1 file kept" in result.out


def bad_inputs(folder):
    """Every kind of bad audio file, and a piece of what has to be said of it."""
    record(folder / "truncated.wav")
    whole = (folder / "truncated.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    record(folder / "truncated.flac")
    whole = (folder / "truncated.flac").read_bytes()
    (folder / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not audio\n" * 50)
    (folder / "text.mp3").write_text("this is not audio\n" * 50)
    soundfile.write(folder / "no samples.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "nan.wav", np.full(8_000, np.nan), 16_000, subtype="FLOAT")
    return {
        "truncated.wav": "is truncated",
        "truncated.flac": "is truncated",
        "empty.wav": "is empty (0 bytes)",
        "text.wav": "is not an audio file",
        "text.mp3": "is not an audio file",
        "no samples.wav": "holds no samples",
        "nan.wav": "holds NaN or infinite samples",
        "missing.wav": "does not exist",
    }


def test_every_bad_file_is_named_and_the_others_run(losatok, tmp_path, model_folder):
    folder = tmp_path / "in"
    good = [record(folder / "good.wav"), folder / "silent.wav"]
    soundfile.write(good[1], np.zeros(8_000), 16_000)
    bad = bad_inputs(folder)
    result = losatok(
        "encode",
        good[0],
        *(folder / name for name in bad),
        good[1],
        "-o",
        tmp_path / "out",
        "-m",
        model_folder,
        "--strict",
    )
    assert result.code == 2
    assert "2 files encoded" in result.out
    assert f"{len(bad)} files failed" in result.out
    assert len(result.sentences) == len(bad)
    for name, says in bad.items():
        (line,) = (line for line in result.sentences if f"{name}" in line)
        assert line.startswith("losatok: ")
        assert says in line
    assert tree(tmp_path / "out") == ["good.losatok", "silent.losatok"]


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_a_bad_file_alone_is_one_sentence_and_nothing_written(losatok, tmp_path, model_folder, command):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, says in bad_inputs(folder).items():
        options = (
            ["-o", tmp_path / "out"]
            if command == "encode"
            else ["-o", tmp_path / "out.wav", "--plot", tmp_path / "p.png"]
        )
        result = losatok(command, folder / name, *options, "-m", model_folder, "--strict")
        assert result.code == 2
        assert len(result.sentences) == 1, result.err
        assert says in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_bad_latent_files(losatok, tmp_path, model_folder, other_model_folder):
    record(tmp_path / "in" / "a.wav")
    losatok("encode", tmp_path / "in", "-o", tmp_path, "-m", model_folder)
    whole = tmp_path / "a.losatok"
    (tmp_path / "cut.losatok").write_bytes(whole.read_bytes()[:-10])
    flipped = bytearray(whole.read_bytes())
    flipped[-3] ^= 64
    (tmp_path / "flipped.losatok").write_bytes(flipped)
    (tmp_path / "text.losatok").write_text("not latents")
    names = ["cut.losatok", "flipped.losatok", "text.losatok", "missing.losatok", "a.losatok"]
    result = losatok("decode", *(tmp_path / name for name in names), "-o", tmp_path / "out", "-m", model_folder)
    assert result.code == 2
    for line, name, says in zip(
        result.sentences,
        names,
        ["truncated or damaged", "does not match its checksum", "not a latent file", "does not exist"],
        strict=False,
    ):
        assert name in line
        assert says in line
    assert tree(tmp_path / "out") == ["a.wav"]

    result = losatok("decode", whole, "-o", tmp_path / "other", "-m", other_model_folder)
    assert (result.code, len(result.sentences)) == (2, 1)
    assert "was encoded by model" in result.err
    assert not (tmp_path / "other").exists()
    assert losatok("decode", whole, "-o", tmp_path / "other", "-m", other_model_folder, "--force").code == 0


def test_reconstruct_writes_audio_and_picture(losatok, tmp_path, model_folder):
    source = record(tmp_path / "in put" / "ä.mp3", 44_100, 0.7, 2)
    result = losatok("reconstruct", source, "-o", tmp_path / "o.wav", "--plot", tmp_path / "p.png", "-m", model_folder)
    assert (result.code, result.err) == (0, "")
    assert "0.70 s, 18 tokens of 8 dimensions" in result.out
    assert audio_info(tmp_path / "o.wav").seconds == pytest.approx(0.7, abs=1e-3)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["encode", "IN/a.wav", "-o", "IN/a.wav", "-m", "MODEL"], "is a file; give the name of a folder"),
        (["encode", "IN/empty folder", "-o", "OUT", "-m", "MODEL"], "holds no audio files"),
        (["encode", "IN/*.xyz", "-o", "OUT", "-m", "MODEL"], "matches no file"),
        (["encode", "IN/a.wav", "-o", "OUT", "-m", "IN/nowhere"], "does not exist"),
        (["encode", "IN/a.wav", "-o", "OUT", "-m", "IN"], "is no model folder"),
        (["encode", "IN/a.wav", "-o", "OUT", "-m", "MODEL", "--device", "tpu"], "takes auto, cpu, cuda or cuda:N"),
        (["encode", "IN/a.wav", "-o", "OUT", "-m", "MODEL", "--device", "cuda:99"], "--device cuda"),
        (["encode", "IN/a.wav", "-m", "MODEL"], "Missing option '--output' / '-o'"),
        (["encode", "-o", "OUT", "-m", "MODEL"], "Missing argument 'IN'"),
        (["encode", "IN/a.wav", "-o", "OUT", "--nonsense"], "No such option"),
        (["decode", "IN/a.wav", "-o", "OUT", "-m", "MODEL"], "not a latent file"),
        (["decode", "IN", "-o", "OUT", "-m", "MODEL"], "holds no latent files"),
        (["decode", "IN/a.losatok", "-o", "OUT", "-m", "MODEL", "--format", "aac"], "--format is 'aac'; it takes wav"),
        (["reconstruct", "IN/a.wav", "-o", "IN/a.wav", "-m", "MODEL"], "is the input and would be overwritten"),
        (["reconstruct", "IN/a.wav", "-o", "IN/o.xyz", "-m", "MODEL"], ".xyz is none of .wav"),
        (["reconstruct", "IN/a.wav", "-o", "IN/o.wav", "--plot", "IN/p.bmp", "-m", "MODEL"], "ends in none of .png"),
        (["reconstruct", "IN/a.wav", "-o", "IN/empty folder", "-m", "MODEL"], "is a folder"),
        (["nonsense"], "No such command 'nonsense'"),
        (["encod"], "Did you mean 'encode'"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(losatok, tmp_path, model_folder, arguments, says):
    record(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "empty folder").mkdir()
    before = tree(tmp_path)
    places = {"IN": str(tmp_path / "in"), "OUT": str(tmp_path / "out"), "MODEL": str(model_folder)}
    result = losatok(
        *("/".join([places.get(a.partition("/")[0], a.partition("/")[0]), *a.split("/")[1:]]) for a in arguments)
    )
    assert result.code == 2
    assert len(result.sentences) == 1, result.err
    assert result.err.startswith("losatok")
    assert says in result.err
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_reconstruct_replaces_files_only_when_asked(losatok, tmp_path, model_folder):
    source, out = record(tmp_path / "a.wav"), tmp_path / "o.wav"
    out.write_bytes(b"mine")
    result = losatok("reconstruct", source, "-o", out, "-m", model_folder)
    assert (result.code, len(result.sentences)) == (2, 1)
    assert f"{out} exists; pass --overwrite or choose another name" in result.err
    assert out.read_bytes() == b"mine"
    assert losatok("reconstruct", source, "-o", out, "-m", model_folder, "--overwrite").code == 0
    assert audio_info(out).frames == 8_000
    result = losatok("reconstruct", source, "-o", source, "-m", model_folder, "--overwrite")
    assert "is the input and would be overwritten" in result.err


@pytest.mark.parametrize("option", [("-o", ""), ("--output", ""), ("--output=",)])
def test_an_empty_output_is_not_the_current_folder(losatok, tmp_path, model_folder, monkeypatch, option):
    record(tmp_path / "in" / "a.wav")
    monkeypatch.chdir(tmp_path)
    result = losatok("encode", "in", *option, "-m", model_folder)
    assert (result.code, len(result.sentences)) == (2, 1)
    assert "-o is empty; give the name of a file or folder" in result.err
    assert tree(tmp_path) == ["in/a.wav"]


def test_a_manifest_with_a_byte_order_mark_is_encoded_and_decoded(losatok, tmp_path, model_folder):
    for name in ("speech/a.wav", "b.wav", "c.wav"):
        record(tmp_path / "in" / name)
    manifest = tmp_path / "in" / "list.jsonl"
    manifest.write_text('{"path": "speech/a.wav"}\n{"path": "b.wav"}\n', encoding="utf-8-sig")
    assert losatok("encode", manifest, "-o", tmp_path / "latents", "-m", model_folder).code == 0
    assert tree(tmp_path / "latents") == ["b.losatok", "speech/a.losatok"]
    (tmp_path / "latents" / "list.jsonl").write_text('{"path": "speech/a.losatok"}', encoding="utf-8-sig")
    result = losatok("decode", tmp_path / "latents" / "list.jsonl", "-o", tmp_path / "out", "-m", model_folder)
    assert (result.code, tree(tmp_path / "out")) == (0, ["speech/a.wav"])


def test_a_long_name_is_encoded_and_decoded(losatok, tmp_path, model_folder):
    record(tmp_path / "in" / f"{'n' * 247}.wav")
    assert losatok("encode", tmp_path / "in", "-o", tmp_path / "latents", "-m", model_folder).code == 0
    assert tree(tmp_path / "latents") == [f"{'n' * 247}.losatok"]
    assert losatok("decode", tmp_path / "latents", "-o", tmp_path / "out", "-m", model_folder).code == 0
    assert tree(tmp_path / "out") == [f"{'n' * 247}.wav"]


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_stopping_says_how_far_it_came(losatok, tmp_path, model_folder, monkeypatch, command):
    names = [f"{i}.wav" for i in range(4)]
    for name in names:
        record(tmp_path / "in" / name)
    data = tmp_path / "in"
    if command == "decode":
        assert losatok("encode", data, "-o", tmp_path / "latents", "-m", model_folder).code == 0
        data = tmp_path / "latents"
    work, left = getattr(tokenize, f"{command}_clip"), [2, 1]

    def stopped(*arguments):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return work(*arguments)

    monkeypatch.setattr(tokenize, f"{command}_clip", stopped)
    for says in ("stopped: 2 of 4 files", "stopped: 3 of 4 files"):
        result = losatok(command, data, "-o", tmp_path / "out", "-m", model_folder)
        assert (result.code, result.err) == (130, "")
        assert result.out.startswith(says), result.out
        left[0] = left[1]
    assert "2 of them before; the same command goes on with the rest" in result.out


def test_escape_sequences_in_names_do_not_reach_the_terminal(losatok, tmp_path, model_folder):
    name = "\x1b[31mred\x9b2J.wav"
    record(tmp_path / "in" / name)
    (tmp_path / "in" / f"bad {name}").write_bytes(b"no audio")
    out = tmp_path / "\x1b]0;title\x07"
    results = [
        losatok("encode", tmp_path / "in", "-o", out, "-m", model_folder),
        losatok("encode", tmp_path / "in" / f"bad {name}", "-o", out, "-m", model_folder),
        losatok("decode", out, "-o", out / "audio", "-m", model_folder),
        losatok("reconstruct", tmp_path / "in" / name, "-o", out / name, "--plot", out / "p.png", "-m", model_folder),
        losatok("reconstruct", tmp_path / "in" / name, "-o", out / name, "-m", model_folder),
        losatok("encode", tmp_path / "in" / name, "-o", out, "-m", out / "gone"),
        losatok("nonsense\x1b[31m"),
    ]
    assert [result.code for result in results] == [2, 2, 0, 0, 2, 2, 2]
    for result in results:
        assert not set(result.out + result.err) & {"\x1b", "\x9b", "\x07"}
    assert r"\x1b[31mred\x9b2J.wav" in results[0].err


def test_nested_latents_are_cut_stored_and_decoded(losatok, tmp_path):
    torch.manual_seed(0)
    lively(LoSATok(small_config(nested_dims=(2, 4, 8)))).save_pretrained(tmp_path / "model")
    source, out = sample_folder() / "speech" / "00001.flac", tmp_path / "latents"
    assert losatok("encode", source, "-o", out, "-m", tmp_path / "model", "--dims", "4").code == 0
    latents = load_latents(out / "00001.losatok")
    assert (latents.header.dims, latents.header.latent_dim) == (4, 8)
    assert latents.mu[:, :4].any()
    assert not latents.mu[:, 4:].any()
    assert losatok("decode", out, "-o", tmp_path / "audio", "-m", tmp_path / "model").code == 0
    model = LoSATok.from_pretrained(tmp_path / "model")
    audio = read_audio(source)
    whole = torch.nn.functional.pad(audio, (0, model.config.covering_samples(len(audio)) - len(audio)))
    cut = model.encode(whole, dims=4)
    torch.testing.assert_close(latents.mu, cut.mu[0])
    decoded = read_audio(tmp_path / "audio" / "00001.wav")
    torch.testing.assert_close(decoded, model.decode(cut)[0, : len(audio)].clamp(-1, 1), rtol=0, atol=1e-4)
    again = losatok("encode", source, "-o", out, "-m", tmp_path / "model")
    assert again.code == 2
    assert "exists and stores 4 dimensions; pass --overwrite or another folder" in again.err
    for error, dims in (("2", 2), ("0", None)):
        arguments = ("--overwrite", "--target-error", error)
        assert losatok("encode", source, "-o", out, "-m", tmp_path / "model", *arguments).code == 0
        assert load_latents(out / "00001.losatok").header.dims == dims


def test_what_cannot_be_cut_is_said(losatok, tmp_path, model_folder):
    torch.manual_seed(0)
    LoSATok(small_config(nested_dims=(2, 4, 8))).save_pretrained(tmp_path / "nested")
    for folder, arguments, says in (
        (model_folder, ("--dims", "4"), "--dims: this model was not trained for prefixes of its latents"),
        (tmp_path / "nested", ("--dims", "3"), "--dims is 3; this model has latents of 2, 4, 8 dimensions"),
        (tmp_path / "nested", ("--target-error", "3"), "--target-error is 3; it is 1 - cosine, from 0 to 2"),
        (tmp_path / "nested", ("--dims", "4", "--target-error", "1"), "--dims and --target-error were both given"),
    ):
        result = losatok("encode", record(tmp_path / "a.wav"), "-o", tmp_path / "out", "-m", folder, *arguments)
        assert result.code == 2
        assert says in result.err
