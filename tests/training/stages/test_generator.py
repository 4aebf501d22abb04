"""The generator stage on a very small model: recordings and latent files, exact resume, guards, and what it refuses."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from losatok_ext.audio.files import read_audio_with_info
from losatok_ext.audio.samples import sample_folder
from losatok_ext.errors import CheckpointError, ConfigError, InputError, TrainingError
from losatok_ext.formats.latent_files import load_latents, save_latents
from losatok_ext.jobs.tokenize import encode_clip
from losatok_ext.models import LoSATok
from losatok_ext.models.generator.generator import Generator
from losatok_ext.training import TrainConfig, read_log, train_generator
from losatok_ext.training.data.corpus import open_corpus
from losatok_ext.training.data.statistics import RunningMoments
from small_models import lively, save_model, small_config
from training_runs import DIT, SPEECH, StoppedError, assert_same_reports, assert_same_weights, stop_at, weights


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def latents(tokenizer, tmp_path_factory):
    """The music clips as latent files, with a manifest."""
    folder, model = tmp_path_factory.mktemp("latents"), LoSATok.from_pretrained(tokenizer)
    lines = []
    for line in (sample_folder() / "manifest.jsonl").read_text().splitlines():
        values = json.loads(line)
        if values["domain"] == "music":
            name = values["path"].replace(".flac", ".losatok")
            (folder / name).parent.mkdir(exist_ok=True)
            audio = read_audio_with_info(sample_folder() / values["path"], model.sample_rate)
            save_latents(folder / name, encode_clip(model, *audio))
            lines.append(json.dumps({"path": name, "labels": values["labels"]}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def config(tokenizer=None, steps=4, generator=None, **more):
    values = {
        "preset": "tiny",
        "model": DIT,
        "steps": steps,
        "batch_size": 3,
        "device": "cpu",
        "data": {"crop_seconds": 1.2},
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"every": 2, "keep": 2},
        "log": {"every": 1},
        "generator": {"tokenizer": None if tokenizer is None else str(tokenizer), **(generator or {})},
    }
    return TrainConfig.from_dict(values | more)


@pytest.mark.parametrize("kind", ["recordings", "latents"])
def test_four_steps_are_two_and_two_more(kind, tokenizer, latents, tmp_path):
    data = sample_folder() / "manifest.jsonl" if kind == "recordings" else latents / "manifest.jsonl"
    settings = config(tokenizer if kind == "recordings" else None)
    straight, resumed = [], []
    result = train_generator(data, tmp_path / "straight", settings, on_step=straight.append)
    assert (result.steps, result.skipped) == (4, 0)
    with pytest.raises(StoppedError):
        train_generator(data, tmp_path / "parts", settings, on_step=stop_at(3))
    torch.manual_seed(99)
    train_generator(data, tmp_path / "parts", settings, on_step=resumed.append)
    assert [r.step for r in resumed] == [3, 4]
    assert_same_reports(straight[2:], resumed)
    assert_same_weights(weights(tmp_path / "straight"), weights(tmp_path / "parts"))
    generator = Generator.from_pretrained(result.model)
    assert generator.dit.config.tokenizer == LoSATok.from_pretrained(tokenizer).fingerprint()
    assert not any(
        name.startswith("decoder") for name in weights(tmp_path / "straight")
    )  # the tokenizer is not stored with it


def test_the_loss_falls(latents, tmp_path):
    settings = config(steps=60, batch_size=6, optimizer={"lr": 5e-3}, checkpoint={"every": 60})
    train_generator(latents / "manifest.jsonl", tmp_path, settings)
    losses = [line["flow_matching"] for line in read_log(tmp_path)]
    assert sum(losses[-20:]) / 20 < 0.8 * sum(losses[:10]) / 10
    assert losses[0] > 1.5  # a new model predicts nothing: the loss is var(noise) + var(data) = 2


def test_statistics_are_those_of_the_latents(latents, tmp_path):
    result = train_generator(latents, tmp_path, config(steps=1))
    everything = torch.cat([load_latents(path).mu for path in sorted(latents.rglob("*.losatok"))])
    generator = Generator.from_pretrained(result.model)
    torch.testing.assert_close(generator.dit.statistics.mean, everything.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(generator.dit.statistics.std, everything.std(0, correction=0), rtol=1e-5, atol=1e-6)
    normal = generator.dit.normalise(everything)
    torch.testing.assert_close(normal.mean(0), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(normal.std(0), torch.ones(8), rtol=1e-3, atol=0)
    few = train_generator(latents, tmp_path / "few", config(steps=1, generator={"statistics_seconds": 4.0}))
    assert not torch.equal(Generator.from_pretrained(few.model).dit.statistics.mean, generator.dit.statistics.mean)


def test_moments_do_not_cancel():
    x = 1e6 + torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = RunningMoments(3)
    for part in x.split([1, 0, 300, 699]):
        moments.update(part)
    assert moments.count == 1000
    torch.testing.assert_close(moments.mean, x.mean(0).float())
    torch.testing.assert_close(moments.std, x.std(0, correction=0).float(), rtol=1e-5, atol=0)
    still = RunningMoments(2)
    still.update(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
    assert still.std.tolist() == [1.0, 1.0]  # the first never changes


def test_texts_come_from_the_manifest_or_the_folder(tmp_path):
    (tmp_path / "rain").mkdir()
    for name in ("rain/a.flac", "b.flac"):
        (tmp_path / name).write_bytes((SPEECH / "00001.flac").read_bytes())
    found = {clip.name: clip.text for clip in open_corpus(tmp_path, 16000, 640, 10).clips}
    assert found == {"b.flac": "", "rain/a.flac": "rain"}
    lines = [
        {"path": "b.flac", "text": "a sentence", "label": "speech"},
        {"path": "b.flac", "label": "speech", "labels": {"x": 1}},
        {"path": "b.flac", "labels": {"instrument": "piano", "root": 57}},
        {"path": "b.flac"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    texts = [clip.text for clip in open_corpus(tmp_path / "list.jsonl", 16000, 640, 10).clips]
    assert texts == ["a sentence", "speech", "piano 57", ""]
    for line, message in (
        ({"path": "b.flac", "text": 3}, 'list.jsonl:1: "text" should be text, got 3'),
        ({"path": "b.flac", "labels": ["x"]}, 'list.jsonl:1: "labels" should be an object'),
    ):
        (tmp_path / "list.jsonl").write_text(json.dumps(line))
        with pytest.raises(InputError, match=message):
            open_corpus(tmp_path / "list.jsonl", 16000, 640, 10)


def test_options_reach_the_model(latents, tmp_path):
    options = {
        "context": False,
        "flow": {"direction": "data - noise", "time": "uniform"},
        "dropout": {"joint": 0.2, "text": 0.1},
    }
    result = train_generator(latents, tmp_path, config(steps=1, generator=options))
    generator = Generator.from_pretrained(result.model)
    assert generator.flow.direction == "data - noise"
    assert generator.flow.time == "uniform"
    assert not generator.context
    assert generator.dit.config.aligned_dim == 0
    more = config(steps=2, preset=None, model={}, init=str(result.model))
    again = train_generator(latents, tmp_path / "more", more)
    assert Generator.from_pretrained(again.model).config == generator.config


def test_bfloat16_trains_with_float32_losses_and_weights(latents, tmp_path):
    losses = []
    for precision in ("bfloat16", "float32"):
        result = train_generator(latents, tmp_path / precision, config(steps=2, precision=precision))
        assert {value.dtype for value in weights(tmp_path / precision).values()} == {torch.float32}
        losses.append(result.last.losses["flow_matching"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_a_step_that_is_not_finite_is_skipped_and_too_many_stop(latents, tmp_path, monkeypatch):
    calls, loss = iter(range(100)), Generator.loss
    bad = {1}

    def poisoned(self, *arguments, **options):
        return loss(self, *arguments, **options) * (math.nan if next(calls) in bad else 1.0)

    monkeypatch.setattr(Generator, "loss", poisoned)
    result = train_generator(latents, tmp_path / "one", config())
    assert result.skipped == 1
    bad.update(range(100))
    with pytest.raises(TrainingError, match=r"generator stopped at step 2: 2 steps in a row .* flow_matching nan"):
        train_generator(latents, tmp_path / "all", config(max_skipped=2))
    kept = load_file(tmp_path / "all" / "checkpoints" / "step-00000002" / "model.safetensors")
    assert all(value.isfinite().all() for value in kept.values())


def test_latents_are_validated_on_those_of_another_folder(tokenizer, latents, tmp_path):
    """The data to validate on is opened by its own path: it may even be recordings, where there is a tokenizer."""
    music = sorted(latents.rglob("*.losatok"))
    for name, files in (("train", music[:6]), ("validate", music[6:9])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    found = {}
    for name, data in (("same", "train"), ("others", "validate")):
        checked = {"data": str(tmp_path / data), "every": 1, "clips": 3}
        result = train_generator(tmp_path / "train", tmp_path / name, config(steps=1, validation=checked))
        found[name] = result.last.validation.total
    assert found["same"] != found["others"]
    checked = {"data": str(SPEECH), "every": 1, "clips": 3}
    mixed = train_generator(tmp_path / "train", tmp_path / "mixed", config(tokenizer, steps=1, validation=checked))
    assert math.isfinite(mixed.last.validation.total)
    with pytest.raises(TrainingError, match=r"speech holds recordings, and the run trains on latents without a tok"):
        train_generator(tmp_path / "train", tmp_path / "none", config(steps=1, validation=checked))


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_recordings_are_encoded_by_the_bundled_tokenizer_where_none_is_named(tmp_path):
    result = train_generator(SPEECH, tmp_path, config(steps=1))
    bundled = LoSATok.from_pretrained("tiny")
    found = Generator.from_pretrained(result.model)
    assert (found.latent_dim, found.config.dit.tokenizer) == (bundled.config.latent_dim, bundled.fingerprint())


def test_data_and_tokenizer_have_to_fit(tokenizer, latents, tmp_path):
    other = tmp_path / "other"
    torch.manual_seed(5)
    LoSATok(small_config()).save_pretrained(other)
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="gone"):
        train_generator(SPEECH, out, config(tmp_path / "gone"))
    with pytest.raises(TrainingError, match=r"the latents are of model \w{16}, and .*other is model"):
        train_generator(latents, out, config(other))
    with pytest.raises(ConfigError, match=r"model: latent_dim should be 8"):
        train_generator(latents, out, config(model=DIT | {"latent_dim": 16}))
    with pytest.raises(ConfigError, match=r"model: .*heeds"):
        train_generator(latents, out, config(model=DIT | {"heeds": 16}))
    assert not out.exists()
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    file = next(latents.rglob("*.losatok"))
    (mixed / "a.losatok").write_bytes(file.read_bytes())
    model = LoSATok.from_pretrained(other)
    save_latents(mixed / "b.losatok", encode_clip(model, *read_audio_with_info(SPEECH / "00001.flac", 16000)))
    with pytest.raises(TrainingError, match=r"b.losatok holds latents of another tokenizer .* than .*a.losatok"):
        train_generator(mixed, out, config())
    (mixed / "list.jsonl").write_text('{"path": "a.losatok"}\n{"path": "b.wav"}')
    with pytest.raises(TrainingError, match="names both recordings and latent files"):
        train_generator(mixed / "list.jsonl", out, config())
    for path in mixed.glob("*.losatok"):
        path.write_bytes(b"gone")
    with pytest.raises(TrainingError, match="none of its 2 latent files can be used"):
        train_generator(mixed, out, config())


def test_a_run_goes_on_with_its_own_tokenizer_and_texts_only(tokenizer, latents, tmp_path):
    data = tmp_path / "list.jsonl"
    lines = [{"path": str(SPEECH / f"0000{i}.flac"), "text": f"number {i}"} for i in range(3)]
    data.write_text("\n".join(map(json.dumps, lines)))
    train_generator(data, tmp_path / "run", config(tokenizer))
    data.write_text("\n".join(map(json.dumps, [{**lines[0], "text": "another"}, *lines[1:]])))
    with pytest.raises(TrainingError, match="the recordings are not those"):
        train_generator(data, tmp_path / "run", config(tokenizer))
    data.write_text("\n".join(map(json.dumps, lines)))
    torch.manual_seed(7)
    LoSATok(small_config()).save_pretrained(tokenizer.parent / "moving")
    settings = config(tokenizer.parent / "moving")
    train_generator(data, tmp_path / "moving", settings)
    lively(LoSATok(small_config())).save_pretrained(tokenizer.parent / "moving")
    with pytest.raises(TrainingError, match="the latents are of the tokenizer"):
        train_generator(data, tmp_path / "moving", settings)
    start = config(tokenizer, preset=None, model={}, init=str(tmp_path / "moving" / "model"))
    with pytest.raises(ConfigError, match="generates latents of the tokenizer"):
        train_generator(data, tmp_path / "new", start)


def test_a_text_that_is_too_long_is_named_before_training(tokenizer, tmp_path):
    data = tmp_path / "list.jsonl"
    data.write_text(json.dumps({"path": str(SPEECH / "00001.flac"), "text": "many words " * 10}))
    with pytest.raises(TrainingError, match=r"00001.flac: the text that begins 'many words .* has 110 bytes"):
        train_generator(data, tmp_path / "run", config(tokenizer, batch_size=1))
