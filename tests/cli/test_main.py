"""The console entry: help, version, info, convert, exit codes, interruption, start-up without torch."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

import losatok_ext
from losatok_ext import cli
from losatok_ext.audio.samples import sample_folder
from losatok_ext.models import LoSATok
from small_models import small_config, tone


def process(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "losatok_ext.cli", *map(str, arguments)], capture_output=True, text=True, **options
    )


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "ü b.wav"
    soundfile.write(path, tone(8_000).numpy(), 16_000)
    return path


def test_help_lists_every_command_without_importing_torch():
    code = "import sys; from losatok_ext.cli import main; code = main(['--help']); print('torch' in sys.modules, code)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False 0"
    for command in ("encode", "decode", "reconstruct", "info", "convert", "train", "profile", "demo"):
        assert command in result.stdout


@pytest.mark.parametrize(
    ("before", "given", "then"),
    [("", None, "PASSIVE"), ("", "ACTIVE", "ACTIVE"), ("import torch", None, "None")],
    ids=["by default", "set by the user", "where torch was loaded before"],
)
def test_threads_wait_without_spinning_unless_told_otherwise(before, given, then):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given:
        environment["OMP_WAIT_POLICY"] = given
    code = f"{before}\nimport os; from losatok_ext.cli import main; main(['--version']); "
    code += "print(os.environ.get('OMP_WAIT_POLICY'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.splitlines()[-1] == then


@pytest.mark.parametrize(
    "command", ["encode", "decode", "reconstruct", "info", "convert", "train", "demo", "train sembo"]
)
def test_each_command_has_help(losatok, command):
    result = losatok(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert f"losatok {command}" in result.out
    assert "--install-completion" not in result.out


def test_no_command_shows_the_help(losatok):
    result = losatok()
    assert result.code == 0
    assert "encode" in result.out


def test_version(losatok):
    assert losatok("--version").out == f"losatok {losatok_ext.__version__}\n"


def test_info_tells_what_runs(losatok):
    result = losatok("info")
    assert result.code == 0
    assert "bottleneck_project" in result.out
    facts = json.loads(losatok("info", "--json").out)
    assert facts["version"] == losatok_ext.__version__


def test_info_tells_what_files_hold(losatok, tmp_path, recording, model_folder):
    losatok("encode", recording, "-o", tmp_path, "-m", model_folder)
    result = losatok("info", recording, tmp_path / "ü b.losatok", model_folder)
    assert result.code == 0
    for text in (
        "WAV, PCM_16",
        "losatok-latents, version 2",
        "ü b.wav",
        LoSATok.from_pretrained(model_folder).fingerprint(),
    ):
        assert text in result.out
    audio, latents, model = json.loads(losatok("info", "--json", recording, tmp_path / "ü b.losatok", model_folder).out)
    assert (audio["sample_rate"], audio["frames"]) == (16_000, 8_000)
    assert (latents["samples"], latents["latent_dim"], latents["tensors"]) == (8_000, 8, ["mu"])
    assert model["weights"] == sum(p.numel() for p in LoSATok.from_pretrained(model_folder).parameters())


@pytest.mark.parametrize("name", ["missing.losatok", "missing.wav", "folder", "text.losatok", "text.txt"])
def test_info_on_bad_files(losatok, tmp_path, name):
    (tmp_path / "folder").mkdir()
    for text in ("text.losatok", "text.txt"):
        (tmp_path / text).write_text("no such thing")
    result = losatok("info", tmp_path / name)
    assert (result.code, len(result.sentences)) == (2, 1)
    assert name in result.err


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint in the published layout, and its configuration as the published code writes it."""
    config = small_config()
    folder = tmp_path_factory.mktemp("published")
    save_file(LoSATok(config).to_reference_state_dict(), folder / "weights.safetensors")
    values = {
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "decoder_dim": config.latent_dim,
        "decoder_embed_dim": config.decoder_dim,
        "decoder_depth": config.decoder_depth,
        "decoder_intermediate_size": config.decoder_hidden,
    }
    (folder / "published.json").write_text(json.dumps(values))
    (folder / "ours.json").write_text(json.dumps({"model_type": "losatok", "config": config.to_dict()}))
    return folder


@pytest.mark.parametrize("config", ["published.json", "ours.json"])
def test_convert_makes_a_model_that_encodes(losatok, tmp_path, recording, published, config):
    arguments = ["convert", published / "weights.safetensors", "--config", published / config, "-o", tmp_path / "m"]
    result = losatok(*arguments, "--hidden-dim", 16)
    assert (result.code, result.err) == (0, "")
    assert "8 dimensions at 25 Hz" in result.out
    assert losatok("encode", recording, "-o", tmp_path / "out", "-m", tmp_path / "m").code == 0
    again = losatok(*arguments, "--hidden-dim", 16)
    assert (again.code, len(again.sentences)) == (2, 1)
    assert "holds a model already; pass --overwrite" in again.err
    assert losatok(*arguments, "--hidden-dim", 16, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.pth"], "nowhere.pth"),
        (["weights.safetensors", "--config", "nowhere.json"], "nowhere.json does not exist"),
        (["weights.safetensors", "--config", "weights.safetensors"], "not readable JSON"),
        (["weights.safetensors", "--config", "list.json"], "should hold a JSON object"),
        (["weights.safetensors", "--config", "unknown.json"], "unknown key 'colour'"),
        (["weights.safetensors"], "weights.safetensors|published checkpoint"),
        (["weights.safetensors", "--config", "published.json", "--hidden-dim", "17"], "bottleneck|shape"),
        (["weights.safetensors", "--config", "published.json", "--frame-rate", "33"], "frame_rate"),
        (["cut.safetensors", "--config", "published.json"], "cut.safetensors"),
        (["text.pth", "--config", "published.json"], "text.pth"),
        (["weights.safetensors", "--hidden-dim", "0"], "--hidden-dim"),
    ],
)
def test_convert_refuses_what_does_not_fit(losatok, tmp_path, published, monkeypatch, arguments, says):
    monkeypatch.chdir(published)
    (published / "list.json").write_text("[1]")
    (published / "unknown.json").write_text('{"colour": 1}')
    (published / "cut.safetensors").write_bytes((published / "weights.safetensors").read_bytes()[:-100])
    (published / "text.pth").write_text("this is no checkpoint")
    result = losatok("convert", *arguments, "-o", tmp_path / "m")
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert any(part in result.err for part in says.split("|"))
    assert not (tmp_path / "m").exists()


def test_the_process_ends_with_code_2_and_one_sentence(tmp_path, recording, model_folder):
    (tmp_path / "bad.wav").write_bytes(b"RIFF0000WAVE")
    result = process("encode", recording, tmp_path / "bad.wav", "-o", tmp_path / "out", "-m", model_folder)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"losatok: {tmp_path / 'bad.wav'} ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ü b.losatok"]


def test_debug_shows_the_traceback_wherever_it_stands(losatok, tmp_path):
    for arguments in (["--debug", "info", tmp_path / "x.wav"], ["info", tmp_path / "x.wav", "--debug"]):
        result = losatok(*arguments)
        assert result.code == 2
        assert "Traceback" in result.err
        assert "AudioFileError" in result.err


def test_a_file_may_be_called_debug(losatok, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = losatok("info", "--", "--debug")
    assert (result.code, len(result.sentences)) == (2, 1)
    assert "--debug does not exist" in result.err


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_memory_that_is_not_enough_is_no_defect(losatok, monkeypatch, library):
    def allocate(*_, **__):
        return torch.empty(1 << 50) if library == "torch" else np.empty(1 << 50)

    monkeypatch.setattr("losatok_ext.environment.info", allocate)
    result = losatok("info")
    assert result.code == 2
    assert result.err.startswith("losatok: memory is not enough (")
    assert result.err.endswith("; use shorter recordings or smaller batches, or a smaller model\n")


def test_an_implementation_that_there_is_not_is_named(recording, model_folder, tmp_path):
    arguments = ("reconstruct", recording, "-o", tmp_path / "a.wav", "--model", model_folder)
    done = process(*arguments, env={**os.environ, "LOSATOK_BACKEND": "evil"})
    assert done.returncode == 2
    assert done.stderr.endswith("LOSATOK_BACKEND is 'evil'; it takes one of 'reference', 'native', 'triton'\n")


def test_a_defect_is_called_one(losatok, monkeypatch):
    import losatok_ext.environment

    def broken():
        raise KeyError("inside")

    monkeypatch.setattr(losatok_ext.environment, "info", broken)
    result = losatok("info")
    assert (result.code, result.err) == (1, "losatok: a defect: KeyError: 'inside' (--debug shows where)\n")


def test_an_unavailable_backend_is_the_users_to_cure(losatok, monkeypatch):
    import losatok_ext.environment
    from losatok_ext.ops.dispatch import BackendUnavailableError

    def unavailable():
        raise BackendUnavailableError("no kernels;\ninstall some")

    monkeypatch.setattr(losatok_ext.environment, "info", unavailable)
    result = losatok("info")
    assert (result.code, result.err) == (2, "losatok: no kernels; install some\n")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_the_message_names_it(package, recording, model_folder):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from losatok_ext.cli import main\n"
        "sys.exit(main(['encode', sys.argv[1], '-o', 'b', '-m', sys.argv[2]]))"
    )
    command = [sys.executable, "-c", code, str(recording), str(model_folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install 'losatok-ext[cli]'" in result.stderr
    assert result.stderr.count("\n") == 1


INTERRUPTED = """
import signal, sys
from losatok_ext.jobs import tokenize
from losatok_ext.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
save, saved = tokenize.save_latents, []

def save_and_wait(path, latents):
    save(path, latents)
    saved.append(path)
    if len(saved) == 3:
        print("waiting", flush=True)
        signal.pause()

tokenize.save_latents = save_and_wait
sys.exit(main(sys.argv[1:]))
"""
"""The command line, which waits for a signal once it has written three files."""


def test_interrupting_is_quiet_and_leaves_whole_files(tmp_path, recording, model_folder):
    """Ctrl-C amid many files: code 130, no traceback, and whatever was written loads."""
    from losatok_ext.formats.latent_files import load_latents

    (tmp_path / "in").mkdir()
    for index in range(8):
        (tmp_path / "in" / f"{index}.wav").write_bytes(recording.read_bytes())
    command = [sys.executable, "-c", INTERRUPTED, "encode", tmp_path / "in", "-o", tmp_path / "out", "-m", model_folder]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        said = running.stdout.readline()
        os.kill(running.pid, signal.SIGINT)
        _, err = running.communicate()
    assert said == "waiting\n", err
    assert (running.returncode, err) == (130, "")
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in written] == ["0.losatok", "1.losatok", "2.losatok"]
    for path in written:
        load_latents(path)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("checkpoints/run.json", ["info", "FOLDER"]),
        ("model.safetensors.index.json", ["info", "FOLDER"]),
        ("config.json", ["info", "FOLDER"]),
        ("list.jsonl", ["encode", "FOLDER/list.jsonl", "-o", "OUT"]),
        ("list.jsonl", ["train", "sembo", "FOLDER/list.jsonl", "-o", "OUT"]),
        ("index.json", ["train", "sembo", "FOLDER", "-o", "OUT"]),
        ("plan.json", ["shard", "SAMPLES", "FOLDER"]),
        ("config.yaml", ["train", "sembo", "SAMPLES", "-o", "OUT", "--config", "FOLDER/config.yaml"]),
    ],
)
@pytest.mark.parametrize("content", ["[" * 100_000, '{"weight_map": 3, "shards": [[', "[1]"])
def test_hostile_json_and_yaml_is_one_sentence(losatok, tmp_path, name, command, content):
    place = tmp_path / "in" / name
    place.parent.mkdir(parents=True)
    place.write_text(content)
    (tmp_path / "in" / "a.tar").write_bytes(bytes(1024))
    names = {"FOLDER": str(tmp_path / "in"), "OUT": str(tmp_path / "out"), "SAMPLES": str(sample_folder())}
    result = losatok(*(names.get(word, word.replace("FOLDER", names["FOLDER"])) for word in command))
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert "a defect" not in result.err
    assert len(result.err) < 600


def test_main_takes_the_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["losatok", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr().out.startswith("losatok ")
