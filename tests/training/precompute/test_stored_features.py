"""Recordings with the teacher's features beside them: that both are of the same moment, that a tokenizer trains on them
as on recordings while its teacher never runs, and what is refused."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load
from webdataset import TarWriter, WebDataset

from losatok_ext.audio.files import read_audio
from losatok_ext.audio.samples import sample_folder
from losatok_ext.cli import main
from losatok_ext.errors import ConfigError, TrainingError
from losatok_ext.models import LoSATok
from losatok_ext.models.teachers.registry import open_teacher
from losatok_ext.models.tokenizer.dasheng import SemanticEncoder
from losatok_ext.training import TrainConfig, read_log, train_sembo, train_tokenizer
from losatok_ext.training.config.data_options import AugmentConfig
from losatok_ext.training.config.options import DataConfig
from losatok_ext.training.data import corpus
from losatok_ext.training.data.augment import check_features_stay
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.data.paired_corpus import open_paired
from losatok_ext.training.precompute.tokens import precompute_features, precompute_latents
from small_models import lively, save_model
from training_runs import StoppedError, assert_alike_reports, assert_same_weights, stop_at, weights

SAMPLES = sample_folder()
SPEECH = SAMPLES / "speech"


def small_model(folder, **options):
    return save_model(folder, mel_loss_windows=(128,), mel_loss_bins=(10,), **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def features(model, tmp_path_factory):
    """All bundled clips with their features, float32, in several shards."""
    folder = tmp_path_factory.mktemp("features")
    data, teacher = SAMPLES / "manifest.jsonl", open_teacher(str(model))
    summary = precompute_features(data, folder, teacher, "float32", shard_megabytes=1, audio=True)
    assert summary.clips == 48
    assert summary.shards > 2
    return folder


def config(init, steps=4, **more):
    values = {
        "steps": steps,
        "batch_size": 4,
        "device": "cpu",
        "init": str(init),
        "data": {"crop_seconds": 0.8},
        "optimizer": {"lr": 1e-3},
        "discriminator": {"kinds": []},
        "checkpoint": {"every": 2},
        "log": {"every": 1},
    }
    return TrainConfig.from_dict(values | more)


@pytest.fixture
def _teacher_is_away(monkeypatch):
    monkeypatch.setattr(SemanticEncoder, "forward", lambda *arguments: pytest.fail("the teacher ran"))


def test_a_clip_of_a_shard_is_what_the_teacher_heard_and_gave(model, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    generator = np.random.default_rng(0)
    soundfile.write(data / "a.wav", generator.normal(0, 0.5, 9000), 16000, subtype="FLOAT")  # past -1..1
    soundfile.write(data / "b.wav", generator.normal(0, 0.1, 20000), 22050, subtype="FLOAT")
    soundfile.write(data / "c.flac", read_audio(next(SPEECH.glob("*.flac"))).numpy(), 16000)
    precompute_features(data, tmp_path / "out", open_teacher(str(model)), "float32", audio=True)
    teacher = LoSATok.from_pretrained(model)
    for clip in WebDataset(str(tmp_path / "out" / "shards-000000.tar"), shardshuffle=False):
        audio, rate = soundfile.read(io.BytesIO(clip["flac"]), dtype="float32")
        assert rate == 16000
        values = json.loads(clip["json"]) if isinstance(clip["json"], bytes) else clip["json"]
        assert values["seconds"] * 16000 == len(audio)
        wanted, _ = teacher.teacher(torch.from_numpy(audio)[None])
        torch.testing.assert_close(load(clip["safetensors"])["tokens"], wanted[0], rtol=1e-4, atol=1e-4)
        given = read_audio(data / values["path"]).clamp(-1, 1)
        np.testing.assert_allclose(audio, given.numpy(), rtol=0, atol=2**-15)
    assert {entry["audio"]["file"][-5:] for entry in _index(tmp_path / "out")["shards"][0]["clips"]} == {".flac"}


def _index(folder):
    return json.loads((folder / "index.json").read_text())


def test_shards_without_their_index_are_the_same_data(model, features, tmp_path):
    for path in features.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = LoSATok.from_pretrained(model).config
    listed, found = (open_paired(folder, settings, 640, 0) for folder in (features, tmp_path))
    assert listed.digest(texts=True, domains=True) == found.digest(texts=True, domains=True)
    for one, other in zip(listed.clips, found.clips, strict=True):
        assert one.member.crc32 is not None
        assert (one.member.offset, one.features.offset) == (other.member.offset, other.features.offset)
        assert one.member.offset != one.features.offset


@pytest.mark.parametrize("long_seconds", [30.0, 0.5])
def test_crops_of_both_are_of_the_same_moment_wherever_they_are_read_from(model, features, monkeypatch, long_seconds):
    monkeypatch.setattr(corpus, "LONG_SECONDS", long_seconds)
    settings = LoSATok.from_pretrained(model).config
    in_memory, on_disk = open_paired(features, settings, 640, 100), open_paired(features, settings, 640, 0)
    assert in_memory.audio is not None
    assert on_disk.audio is None
    last = set()
    for index, clip in enumerate(in_memory.clips[::5]):
        index *= 5
        audio, rows = in_memory.crop(index, 10**7, 0.5), in_memory.features(index, 10**7, 0.5)
        assert (len(audio), len(rows)) == (clip.samples, (clip.samples // 160 + 1) // 4)
        for tokens in (3, 20, clip.samples // 640):
            for place in (0.0, 0.4, 0.9999):
                crop, own = (c.crop(index, 640 * tokens, place) for c in (in_memory, on_disk))
                part, its = (c.features(index, 640 * tokens, place) for c in (in_memory, on_disk))
                assert torch.equal(crop, own)
                assert torch.equal(part, its)
                (first,) = [t for t in range(len(rows)) if torch.equal(rows[t : t + tokens], part)]
                assert torch.equal(audio[640 * first :][: 640 * tokens], crop)
                last.add(first + tokens == clip.samples // 640)
    assert last == {True, False}
    make = {"batch_size": 5, "seed": 1, "multiple": 640}
    one = CropSource(in_memory, DataConfig(crop_seconds=2.0, workers=0), **make)
    other = CropSource(on_disk, DataConfig(crop_seconds=2.0, workers=2), **make)
    for a, b in zip(one.batches(0, 6), other.batches(0, 6), strict=True):
        assert a.names == b.names
        assert torch.equal(a.audio, b.audio)
        assert torch.equal(a.features, b.features)
        assert a.features.shape[:2] == (5, a.audio.shape[1] // 640)
        for row, samples in zip(a.features, a.lengths.tolist(), strict=True):
            tokens = (samples // 160 + 1) // 4
            assert row[:tokens].any(-1).all()
            assert not row[tokens:].any()


@pytest.mark.parametrize("frame_rate", [25, 50])
def test_a_tokenizer_trains_as_on_recordings_and_its_teacher_never_runs(frame_rate, tmp_path, monkeypatch):
    """Clips that are crops as a whole: the teacher hears the same in both."""
    model, short = small_model(tmp_path / "model", frame_rate=frame_rate), tmp_path / "short"
    short.mkdir()
    for number, path in enumerate(sorted(SPEECH.glob("*.flac"))[:8]):
        audio = read_audio(path)[: 640 * (12 + number) + 79 * number]
        soundfile.write(short / f"{number}.flac", audio.numpy(), 16000)
    precompute_features(short, tmp_path / "features", open_teacher(str(model)), "float32", audio=True)
    more = {"data": {"crop_seconds": 2.0}, "validation": {"share": 0.5, "every": 2, "clips": 4, "shown": 2}}
    settings = config(model, log={"every": 1, "tensorboard": True}, **more)
    heard, read = [], []
    train_tokenizer(short, tmp_path / "heard", settings, on_step=heard.append)
    monkeypatch.setattr(SemanticEncoder, "forward", lambda *arguments: pytest.fail("the teacher ran"))
    train_tokenizer(tmp_path / "features", tmp_path / "read", settings, on_step=read.append)
    assert_alike_reports(heard, read)
    validated = [[line for line in read_log(tmp_path / run) if "validation/total" in line] for run in ("heard", "read")]
    assert len(validated[0]) == 2
    for one, other in zip(*validated, strict=True):
        names = [name for name in one if name.startswith("validation/")]
        assert {"validation/mel", "validation/latent_std", "validation/active_dims"} <= set(names)
        assert [other[name] for name in names] == pytest.approx([one[name] for name in names], rel=5e-3)


@pytest.mark.usefixtures("_teacher_is_away")
def test_all_options_of_the_stage_hold(model, features, tmp_path):
    options = {
        "steps": 3,
        "precision": "bfloat16",
        "data": {"crop_seconds": 0.8, "balance": {"mode": "equal"}, "cache_megabytes": 0, "workers": 2},
        "optimizer": {"lr": 1e-3, "accumulate": 2, "ema_decay": 0.9},
        "discriminator": {"kinds": ["mfd"], "channels": 1 / 64},
        "augment": {"polarity": 0.5},
        "quantizer": {"kind": "fsq", "levels": [5, 5, 5]},
        "validation": {"share": 0.2, "every": 3, "clips": 4},
    }
    reports, starts = [], []
    train_tokenizer(features, tmp_path, config(model, **options), on_start=starts.append, on_step=reports.append)
    assert [domain.share for domain in starts[0].domains] == pytest.approx([1 / 3] * 3)
    assert all(report.finite and report.losses["discriminator"] > 0 for report in reports)
    assert reports[-1].validation.losses["mel"] > 0


def test_labels_are_the_clips_texts(model, tmp_path):
    lines = [{"path": str(path), "label": "ab"[i % 2]} for i, path in enumerate(sorted(SPEECH.glob("*.flac"))[:8])]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    precompute_features(tmp_path / "clips.jsonl", tmp_path / "f", open_teacher(str(model)), audio=True)
    options = {"supervision": {"labels": True}, "tokenizer": {"label": 1.0}}
    reports = []
    train_tokenizer(tmp_path / "f", tmp_path / "run", config(model, 1, **options), on_step=reports.append)
    assert reports[0].losses["label"] > 0


def test_four_steps_are_two_and_two_more(model, features, tmp_path):
    straight, resumed = [], []
    train_tokenizer(features, tmp_path / "straight", config(model), on_step=straight.append)
    with pytest.raises(StoppedError):
        train_tokenizer(features, tmp_path / "parts", config(model), on_step=stop_at(3))
    train_tokenizer(features, tmp_path / "parts", config(model), on_step=resumed.append)
    assert [(r.step, r.losses, r.grad_norm) for r in resumed] == [(r.step, r.losses, r.grad_norm) for r in straight[2:]]
    assert_same_weights(weights(tmp_path / "straight"), weights(tmp_path / "parts"))
    with pytest.raises(TrainingError, match="the recordings are not those that the run"):
        train_tokenizer(SAMPLES / "manifest.jsonl", tmp_path / "parts", config(model))


@pytest.mark.usefixtures("_teacher_is_away")
def test_sembo_trains_on_the_same_shards(model, features, tmp_path):
    reports = []
    train_sembo(features, tmp_path, config(model, 2), on_step=reports.append)
    assert all(report.finite for report in reports)


def test_polarity_is_nothing_to_features_and_the_rest_of_augmentation_is_refused(model, features, tmp_path):
    teacher, audio = open_teacher(str(model)), read_audio(next(SPEECH.glob("*.flac")))[None]
    lengths = torch.tensor([audio.shape[1]])
    assert torch.equal(teacher(audio, lengths)[0], teacher(-audio, lengths)[0])
    for augment, named in (({"gain": 0.5}, "augment.gain"), ({"mix": 1, "gain": 1}, "augment.mix and augment.gain")):
        with pytest.raises(ConfigError, match=rf"^{named} would change what the teacher hears, and .*leave that out"):
            train_tokenizer(features, tmp_path / "run", config(model, augment=augment))
    with pytest.raises(ConfigError, match=r"^augment.polarity would change what the teacher hears"):
        check_features_stay(AugmentConfig(polarity=0.5), features, hears_power=False)
    assert not (tmp_path / "run").exists()


def rewritten(features, folder, change):
    """The first shard of ``features``, without its index, each clip's files as ``change`` makes them."""
    folder.mkdir()
    clips = {}
    with tarfile.open(sorted(features.glob("*.tar"))[0]) as tar:
        for info in tar:
            key, suffix = info.name.split(".")
            clips.setdefault(key, {})[suffix] = tar.extractfile(info).read()
    with (folder / "a.tar").open("wb") as file, TarWriter(file, encoder=False) as writer:
        for number, (key, files) in enumerate(clips.items()):
            writer.write({"__key__": key, **change(number, files)})
    return folder


def without_audio(number, files):
    return {suffix: content for suffix, content in files.items() if suffix != "flac" or number}


def longer(number, files):
    values = json.loads(files["json"])
    values["seconds"] += 0.0 if number else 0.2
    return {**files, "json": json.dumps(values).encode()}


def other_audio(number, files):
    if number:
        return files
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16000), 16000, format="FLAC")
    return {**files, "flac": file.getvalue()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_audio, "has features and no audio; write the shard again"),
        (longer, "frames of features, and its"),
        (other_audio, "its audio has 16000 samples, its features are of"),
    ],
)
@pytest.mark.parametrize("cache_megabytes", [100, 0])
def test_a_clip_whose_parts_do_not_belong_together_is_left_out_and_named(
    features, model, tmp_path, change, message, cache_megabytes
):
    shard = rewritten(features, tmp_path / "shards", change)
    clips = open_paired(shard, LoSATok.from_pretrained(model).config, 640, cache_megabytes)
    if change is other_audio and cache_megabytes == 0:  # found where it is read
        assert not clips.skipped
        source = CropSource(clips, DataConfig(crop_seconds=0.8, workers=0), batch_size=8, seed=0, multiple=640)
        for step in range(int(source.steps_per_epoch) + 1):
            source.batch(step)
        (reason,) = source.unreadable.values()
    else:
        (reason,) = clips.skipped
    assert message in reason
    assert str(shard / "a.tar") in reason


def test_features_of_another_teacher_are_refused_in_training_and_in_validation(model, features, tmp_path):
    torch.manual_seed(5)
    other = tmp_path / "other"
    lively(LoSATok(LoSATok.from_pretrained(model).config)).save_pretrained(other)
    message = r"holds features of the teacher \w{16}, and the model to train has \w{16}; .* computed them \(--init\)"
    with pytest.raises(TrainingError, match=message):
        train_tokenizer(features, tmp_path / "run", config(other))
    validation = {"data": str(features), "every": 2, "clips": 4}
    for train in (train_tokenizer, train_sembo):
        with pytest.raises(TrainingError, match=r"holds features of the teacher \w{16}, and the model to train"):
            train(SPEECH, tmp_path / "run", config(other, validation=validation))
    wide = small_model(tmp_path / "wide", embed_dim=48)
    with pytest.raises(TrainingError, match=r"holds features of 32 dimensions, and the model's teacher has 48.*--init"):
        train_tokenizer(features, tmp_path / "run", config(wide))
    assert not (tmp_path / "run").exists()
    validation["data"] = str(SPEECH)  # recordings beside features: their features are computed
    assert train_tokenizer(features, tmp_path / "fits", config(model, 2, validation=validation)).best.step == 2


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def kinds(model, features, tmp_path_factory):
    """Shards of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    precompute_features(SPEECH, folder / "features", open_teacher(str(model)))
    precompute_latents(SPEECH, folder / "latents", LoSATok.from_pretrained(model))
    return {"with audio": features, "features": folder / "features", "latents": folder / "latents"}


@pytest.mark.parametrize(
    ("stage", "kind", "message"),
    [
        ("teacher", "features", "holds teacher features, and train teacher needs recordings"),
        ("teacher", "with audio", "holds teacher features, and train teacher needs recordings"),
        ("teacher", "latents", "holds latents, and train teacher needs recordings"),
        ("sembo", "latents", "needs recordings, or teacher features: `losatok precompute features` writes them"),
        ("tokenizer", "latents", "or teacher features: `losatok precompute features --audio` writes them"),
        ("tokenizer", "features", "into another folder by `losatok precompute features --audio`, or give the record"),
        ("generator", "features", "holds teacher features, and audio files are needed here; give recordings"),
        ("generator", "with audio", "holds teacher features, and audio files are needed here; give recordings"),
    ],
)
def test_shards_of_the_wrong_kind_end_with_the_cure(stage, kind, message, kinds, model, tmp_path, capsys):
    init = ("--model", model) if stage == "generator" else ("--init", model)
    assert run("train", stage, kinds[kind], "-o", tmp_path / "out", *init, "--steps", 1, "--device", "cpu") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_two_commands_train_a_tokenizer(model, tmp_path, capsys):
    shards = ("precompute", "features", SPEECH, "-o", tmp_path / "f", "--teacher", model)
    assert run(*shards, "--audio", "--device", "cpu") == 0
    assert "16 clips" in capsys.readouterr().out
    assert run(*shards) == 2  # the same folder, without audio
    assert '"audio_rate": 16000' in capsys.readouterr().err
    options = ("--steps", 2, "--batch-size", 4, "--set", "data.crop_seconds=0.8", "--set", "discriminator.kinds=[]")
    assert run("train", "tokenizer", tmp_path / "f", "-o", tmp_path / "run", "--init", model, *options) == 0
    assert "trained for 2 steps" in capsys.readouterr().out


def test_audio_of_another_rate_and_an_index_that_lies_are_refused(model, features, tmp_path):
    settings = LoSATok.from_pretrained(model).config
    (tmp_path / "a").mkdir()
    content = sorted(features.glob("*.tar"))[0].read_bytes()
    (tmp_path / "a" / "a.tar").write_bytes(content.replace(b'"audio_rate": 16000', b'"audio_rate": 24000'))
    with pytest.raises(TrainingError, match="holds audio of 24000 Hz with 25 frames of features per second, and the m"):
        open_paired(tmp_path / "a", settings, 640, 0)
    (tmp_path / "b").mkdir()
    for place in ({"offset": 10**9}, {"size": -1}, {"file": 3}):
        index = _index(features)
        index["shards"][0]["clips"][0]["audio"] |= place
        (tmp_path / "b" / "index.json").write_text(json.dumps(index))
        with pytest.raises(TrainingError, match=r"index.json is damaged .*a clip of \S+ lies outside it"):
            open_paired(tmp_path / "b", settings, 640, 0)
