"""``losatok train``: options become configuration, the same command goes on, mistakes end in a sentence and code 2."""

import json

import pytest
import torch
import yaml
from typer.main import get_command

from losatok_ext.audio.samples import sample_folder
from losatok_ext.cli import main, train
from losatok_ext.configuration import setting
from losatok_ext.models import LoSATok
from losatok_ext.models.generator.generator import Generator
from losatok_ext.training import TrainConfig, read_log
from small_models import small_config
from training_runs import DIT, MODEL

MUSIC = str(sample_folder() / "music")


@pytest.fixture
def config(tmp_path):
    values = {"batch_size": 2, "data": {"crop_seconds": 0.4}, "device": "cpu", "log": {"every": 1}}
    values["discriminator"] = {"channels": 0.03}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values | {"model": MODEL}))
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in ("train", *arguments)])


def test_both_stages_from_the_command_line(config, capsys):
    sembo, tokenizer = config / "sembo", config / "tokenizer"
    options = ["--config", config / "small.yaml", "--preset", "tiny", "--steps", 3, "--lr", "2e-3", "--seed", 5]
    assert run("sembo", MUSIC, "-o", sembo, *options, "--set", "data.crop_seconds=0.48") == 0
    assert f"{sembo / 'model'}: trained for 3 steps" in capsys.readouterr().out
    told = json.loads((sembo / "checkpoints" / "run.json").read_text())["config"]
    assert (told["preset"], told["steps"], told["seed"], told["batch_size"]) == ("tiny", 3, 5, 2)
    assert (told["optimizer"]["lr"], told["data"]["crop_seconds"]) == (2e-3, 0.48)
    manifest = sample_folder() / "manifest.jsonl"
    options = ["--config", config / "run.yaml", "--init", sembo, "--steps", 4, "--batch-size", 3, "--tensorboard"]
    assert run("tokenizer", manifest, "-o", tokenizer, *options) == 0
    captured = capsys.readouterr()
    assert "48 clips, 2.4 minutes" in captured.err
    assert "tokenizer 4/4  mel " in captured.err
    assert [line["step"] for line in read_log(tokenizer)] == [1, 2, 3, 4]
    assert list((tokenizer / "tensorboard").iterdir())
    assert LoSATok.from_pretrained(tokenizer / "model").config.embed_dim == 32
    assert run("tokenizer", manifest, "-o", tokenizer, *options) == 0
    assert "going on after step 4" in capsys.readouterr().err


def test_a_generator_is_trained_on_latents_of_the_bundled_tokenizer_unless_another_is_named(
    config, capsys, monkeypatch
):
    monkeypatch.delenv("LOSATOK_MODEL", raising=False)
    (config / "dit.yaml").write_text(yaml.safe_dump({"batch_size": 2, "device": "cpu", "model": DIT}))
    options = ["--config", config / "dit.yaml", "--preset", "tiny", "--steps", 1, "--set", "data.crop_seconds=0.4"]
    assert run("generator", MUSIC, "-o", config / "bundled", *options) == 0
    assert "tokenizer: tiny, which is bundled" in capsys.readouterr().err.splitlines()
    trained = Generator.from_pretrained(config / "bundled" / "model")
    assert trained.config.dit.tokenizer == LoSATok.from_pretrained("tiny").fingerprint()
    torch.manual_seed(0)
    other = LoSATok(small_config())
    other.save_pretrained(config / "other")
    assert run("generator", MUSIC, "-o", config / "named", "--model", config / "other", *options) == 0
    assert f"tokenizer: {config / 'other'}" in capsys.readouterr().err.splitlines()
    assert Generator.from_pretrained(config / "named" / "model").config.dit.tokenizer == other.fingerprint()
    encode = ["encode", f"{MUSIC}/00000.flac", "-o", str(config / "latents"), "--model", str(config / "other")]
    assert main(encode) == 0
    assert run("generator", config / "latents", "-o", config / "stored", *options) == 0
    assert "tokenizer: " not in capsys.readouterr().err
    assert Generator.from_pretrained(config / "stored" / "model").config.dit.tokenizer == other.fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sembo", "nowhere"], "nowhere: no such folder or manifest"),
        (
            ["sembo", MUSIC, "--preset", "huge"],
            "options: preset should be one of 'tiny', 'base', 'wide' or null, got 'huge'",
        ),
        (["sembo", MUSIC, "--set", "optimizer.learning_rate=1"], "--set: optimizer.learning_rate is not a key"),
        (["sembo", MUSIC, "--set", "batchsize=1"], "did you mean batch_size?"),
        (
            ["sembo", MUSIC, "--steps", "0"],
            "options: steps should be a whole number within 1..2147483647 or null, got 0",
        ),
        (["sembo", MUSIC, "--config", "gone.yaml"], "gone.yaml: cannot read the configuration"),
        (["sembo", MUSIC, "--device", "tpu"], "device should be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["tokenizer", MUSIC], "train tokenizer needs init, the folder that train sembo wrote: --init DIR"),
        (["tokenizer", MUSIC, "--init", "gone"], "gone is no model folder"),
        (["generator", "nowhere"], "nowhere: no such folder or manifest"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(config, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(config)
    assert run(*arguments, "-o", "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (config / "out").exists()


@pytest.mark.parametrize(
    "text",
    ["model: &m {depth: *m}", "model: {depth: " + "[" * 5000, "data: {crop_seconds: 1e999}", "steps: 0x" + "f" * 9999],
)
def test_a_hostile_configuration_is_refused_in_a_sentence(config, capsys, text):
    (config / "hostile.yaml").write_text(text)
    assert run("sembo", MUSIC, "-o", config / "out", "--config", config / "hostile.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"losatok: {config / 'hostile.yaml'}")
    assert len(error.splitlines()) == 1
    assert len(error) < 600


@pytest.mark.parametrize(
    ("stage", "own"),
    [
        ("teacher", {"--preset", "--init"}),
        ("sembo", {"--preset", "--teacher", "--init"}),
        ("tokenizer", {"--init"}),
        ("generator", {"--model", "-m", "--preset", "--init"}),
    ],
)
def test_options_are_those_of_the_configuration(stage, own):
    command = get_command(train.app).commands[stage]
    options = {flag: p for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("-")}
    common = {"--output", "-o", "--config", "--set", "--steps", "--batch-size", "--lr", "--seed", "--device"}
    common |= {"--tensorboard", "--no-tensorboard", "--precision", "--accumulate", "--ema", "--validation"}
    common |= {"--from", "--max-minutes", "--strict"}  # of this call, not of the run
    assert set(options) == common | own
    assert all(option.help for option in options.values())
    assert options["--lr"].help == setting(TrainConfig, "optimizer.lr").summary
    assert (options["--seed"].show_default, options["--steps"].show_default) == ("0", "the paper's")


def test_options_of_all_stages_reach_the_run(config, capsys):
    options = ["--config", config / "small.yaml", "--preset", "tiny", "--steps", 2, "--precision", "bfloat16"]
    options += ["--accumulate", 2, "--ema", "0.9", "--validation", "0.2"]
    assert run("sembo", MUSIC, "-o", config / "out", *options) == 0
    assert "; best validation " in capsys.readouterr().out
    told = json.loads((config / "out" / "checkpoints" / "run.json").read_text())["config"]
    assert (told["precision"], told["optimizer"]["accumulate"], told["optimizer"]["ema_decay"]) == ("bfloat16", 2, 0.9)
    assert (told["validation"]["share"], told["validation"]["data"]) == (0.2, None)
    assert run("sembo", MUSIC, "-o", config / "other", *options, "--validation", MUSIC) == 0
    told = json.loads((config / "other" / "checkpoints" / "run.json").read_text())["config"]
    assert (told["validation"]["share"], told["validation"]["data"]) == (0.0, MUSIC)


def test_skipped_files_are_named(config, capsys):
    (config / "broken.flac").write_bytes(b"not audio")
    (config / "list.jsonl").write_text(f'{{"path": "broken.flac"}}\n{{"path": "{MUSIC}/00000.flac"}}\n')
    options = ["--config", config / "small.yaml", "--preset", "tiny", "--steps", 1]
    assert run("sembo", config / "list.jsonl", "-o", config / "out", *options) == 0
    assert "skipped " in (error := capsys.readouterr().err)
    assert "broken.flac" in error
    assert ": 1 clip, " in error
