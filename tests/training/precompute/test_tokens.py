"""Frozen networks run once: what the shards hold, that training on them is the same, and what is refused."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load
from webdataset import WebDataset

from losatok_ext import ops
from losatok_ext.audio.files import read_audio, read_audio_with_info
from losatok_ext.audio.samples import sample_folder
from losatok_ext.cli import main
from losatok_ext.errors import ConfigError, ShardError, TrainingError
from losatok_ext.jobs.tokenize import encode_clip
from losatok_ext.models import LoSATok
from losatok_ext.models.teachers.registry import Teacher, open_teacher
from losatok_ext.recordings.shard_files import Member
from losatok_ext.recordings.shard_index import FEATURES, LATENTS, open_shards
from losatok_ext.recordings.token_files import pack_tokens, read_tokens
from losatok_ext.training import TrainConfig, train_generator, train_sembo, train_tokenizer
from losatok_ext.training.config.options import DataConfig
from losatok_ext.training.data.batches import FeatureBatch
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.data.token_corpus import open_tokens
from losatok_ext.training.precompute.tokens import precompute_features, precompute_latents
from losatok_ext.training.stages.sembo import SemBoStage
from small_models import save_model
from training_runs import DIT, StoppedError, assert_alike_reports, assert_same_reports, stop_at

SAMPLES = sample_folder()
SOUNDS = SAMPLES / "environment"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of a small model with weights of unit gain."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def features(model, tmp_path_factory):
    """Features of the bundled sounds in several shards, float32."""
    folder = tmp_path_factory.mktemp("features")
    summary = precompute_features(SOUNDS, folder, open_teacher(str(model)), "float32", shard_megabytes=0.05)
    assert summary.clips == 16
    assert summary.shards > 2
    return folder


@pytest.fixture(scope="module")
def latents(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    precompute_latents(SAMPLES / "manifest.jsonl", folder, LoSATok.from_pretrained(model), shard_megabytes=0.05)
    return folder


def config(steps=4, **more):
    values = {
        "steps": steps,
        "batch_size": 4,
        "device": "cpu",
        "data": {"crop_seconds": 0.8},
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"every": 2},
        "log": {"every": 1},
    }
    return TrainConfig.from_dict(values | more)


def test_features_are_those_of_each_clip_alone(model, features):
    teacher = LoSATok.from_pretrained(model)
    corpus = open_tokens(features, FEATURES, 100)
    assert corpus.fingerprint == open_teacher(str(model)).fingerprint()
    assert (corpus.width, corpus.sample_rate) == (32, 25)
    for index, clip in enumerate(corpus.clips):
        wanted, lengths = teacher.teacher(read_audio(SOUNDS / clip.name)[None])
        assert int(lengths) == clip.samples
        torch.testing.assert_close(corpus.crop(index, 10**6, 0.0), wanted[0], rtol=1e-4, atol=1e-4)
        energy = ops.gram_energy(corpus.crop(index, 10**6, 0.0)[None])
        assert clip.gram_energy == pytest.approx(float(energy), rel=1e-6)


def test_a_crop_lies_on_whole_tokens_wherever_it_is_read_from(features):
    in_memory, on_disk = open_tokens(features, FEATURES, 100), open_tokens(features, FEATURES, 0)
    assert in_memory.audio is not None
    assert on_disk.audio is None
    for index, clip in enumerate(in_memory.clips):
        whole = in_memory.crop(index, 10**6, 0)
        for count, place in ((7, 0.0), (7, 0.5), (7, 0.99), (clip.samples, 0.5), (clip.samples + 5, 0.5)):
            crop = on_disk.crop(index, count, place)
            assert torch.equal(crop, in_memory.crop(index, count, place))
            start = int(place * max(clip.samples - count + 1, 0))
            assert torch.equal(crop, whole[start : start + count])
    make = {"batch_size": 5, "seed": 1, "multiple": 1}
    one = CropSource(in_memory, DataConfig(crop_seconds=1.2, workers=0), **make)
    other = CropSource(on_disk, DataConfig(crop_seconds=1.2, workers=2), **make)
    for a, b in zip(one.batches(0, 6), other.batches(0, 6), strict=True):
        assert a.names == b.names
        assert torch.equal(a.features, b.features)
        assert torch.equal(a.gram_energy.isnan(), b.gram_energy.isnan())


def test_gram_energy_belongs_to_whole_clips_only(features):
    corpus = open_tokens(features, FEATURES, 100)
    seconds = sorted(clip.samples for clip in corpus.clips)[8] / 25
    crops = CropSource(corpus, DataConfig(crop_seconds=seconds, workers=0), batch_size=16, seed=1, multiple=1)
    known = {clip.name: clip for clip in corpus.clips}
    whole = partial = 0
    for batch in crops.batches(0, 4):
        for name, length, energy in zip(batch.names, batch.lengths.tolist(), batch.gram_energy.tolist(), strict=True):
            if length == known[name].samples:
                whole += 1
                assert energy == pytest.approx(known[name].gram_energy)
            else:
                partial += 1
                assert np.isnan(energy)
    assert whole
    assert partial


@pytest.mark.parametrize("known", ["all", "some", "none"])
def test_what_is_not_known_of_gram_energy_is_computed(features, model, known):
    stage = SemBoStage(features, config(init=str(model)), torch.device("cpu"))
    stage.start(LoSATok.from_pretrained(model))
    values, lengths = torch.randn(3, 40, 32), torch.tensor([40, 17, 25])
    wanted = ops.gram_energy(values, lengths)
    given = torch.where(
        torch.tensor({"all": [1, 1, 1], "some": [0, 1, 0], "none": [0, 0, 0]}[known]) > 0, wanted, torch.nan
    )
    batch = FeatureBatch(features=values, gram_energy=given, lengths=lengths, names=("a", "b", "c"), seconds=3.0)
    taken, tokens, energy = stage.targets(batch)
    assert torch.equal(taken, values)
    assert torch.equal(tokens, lengths)
    if known == "none":
        assert energy is None
    else:
        torch.testing.assert_close(energy, wanted)
    plain = stage.model.sembo_losses(values, lengths)
    for name, value in stage.losses(batch, 0).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-7)


def test_sembo_trains_on_features_as_on_recordings_and_the_teacher_never_runs(model, features, tmp_path, monkeypatch):
    short = tmp_path / "short"  # clips that are crops as a whole: the teacher hears the same in both
    short.mkdir()
    for number, path in enumerate(sorted(SOUNDS.glob("*.flac"))[:6]):
        audio = read_audio(path)[: 640 * (12 + number)]
        soundfile.write(short / f"{number}.wav", audio.numpy(), 16000, subtype="FLOAT")
    precompute_features(short, tmp_path / "features", open_teacher(str(model)), "float32")
    settings = config(init=str(model), data={"crop_seconds": 2.0})
    heard, read = [], []
    train_sembo(short, tmp_path / "heard", settings, on_step=heard.append)
    monkeypatch.setattr(LoSATok, "teacher", lambda *arguments: pytest.fail("the teacher ran"))
    train_sembo(tmp_path / "features", tmp_path / "read", settings, on_step=read.append)
    assert_alike_reports(heard, read)


def test_a_teacher_by_name_is_the_one_that_computed_them(model, features, tmp_path):
    steps = []
    small = {"latent_dim": 8, "bottleneck_dim": 16, "decoder_dim": 16, "decoder_depth": 1, "decoder_hidden": 32}
    settings = config(preset="tiny", model=small, teacher=str(model), steps=2)
    train_sembo(features, tmp_path, settings, on_step=steps.append)
    assert len(steps) == 2
    trained = open_teacher(str(tmp_path))
    assert trained.fingerprint() == open_tokens(features, FEATURES, 0).fingerprint


def test_four_steps_on_features_are_two_and_two_more(model, features, tmp_path):
    settings = config(init=str(model))
    straight, resumed = [], []
    train_sembo(features, tmp_path / "straight", settings, on_step=straight.append)
    with pytest.raises(StoppedError):
        train_sembo(features, tmp_path / "parts", settings, on_step=stop_at(3))
    train_sembo(features, tmp_path / "parts", settings, on_step=resumed.append)
    assert_same_reports(straight[2:], resumed)


def test_features_of_another_teacher_are_refused(model, features, tmp_path):
    with pytest.raises(
        TrainingError, match=r"features of the teacher \w{16}, and the model to train has \w{16}; train w"
    ):
        small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "latent_dim": 8, "bottleneck_dim": 16}
        train_sembo(features, tmp_path / "a", config(preset="tiny", model=small))
    with pytest.raises(TrainingError, match="holds features of 32 dimensions, and the model's teacher has"):
        train_sembo(features, tmp_path / "b", config(preset="tiny"))
    with pytest.raises(TrainingError, match=r"holds teacher features without the audio .* features --audio`, or give"):
        train_tokenizer(features, tmp_path / "c", config(init=str(model)))
    with pytest.raises(TrainingError, match="holds teacher features, and audio files are needed here"):
        train_generator(features, tmp_path / "d", config(preset="tiny", model=DIT, generator={"tokenizer": str(model)}))
    with pytest.raises(ConfigError, match=r"augment varies recordings, and .* holds teacher features"):
        train_sembo(features, tmp_path / "e", config(init=str(model), augment={"gain": 1}))
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_latents_in_shards_are_those_of_latent_files(model, latents):
    tokenizer = LoSATok.from_pretrained(model)
    corpus = open_tokens(latents, LATENTS, 100)
    assert corpus.fingerprint == tokenizer.fingerprint()
    assert len(corpus.clips) == 48
    for index in range(0, 48, 5):
        clip = corpus.clips[index]
        wanted = encode_clip(tokenizer, *read_audio_with_info(SAMPLES / clip.name, 16000)).mu
        torch.testing.assert_close(corpus.crop(index, 10**6, 0.0), wanted, rtol=1e-4, atol=1e-4)
        assert clip.domain == clip.name.partition("/")[0]


@pytest.mark.parametrize("indexed", [True, False])
def test_a_generator_trains_on_latents_in_shards(latents, model, tmp_path, indexed):
    data = tmp_path / "latents"
    data.mkdir()
    for path in latents.iterdir():
        if indexed or path.suffix == ".tar":
            (data / path.name).write_bytes(path.read_bytes())
    settings = config(preset="tiny", model=DIT, data={"crop_seconds": 0.8, "balance": {"mode": "equal"}})
    losses, starts = [], []
    train_generator(data, tmp_path / "run", settings, on_start=starts.append, on_step=losses.append)
    assert [domain.name for domain in starts[0].domains] == ["environment", "music", "speech"]
    assert len(losses) == 4
    other = save_model(tmp_path / "other", seed=5, latent_dim=8)
    changed = dataclasses.replace(LoSATok.from_pretrained(other).config, top_db=40.0)
    LoSATok(changed).save_pretrained(other)
    with pytest.raises(TrainingError, match="the latents are of model"):
        train_generator(data, tmp_path / "b", config(preset="tiny", model=DIT, generator={"tokenizer": str(other)}))
    with pytest.raises(ConfigError, match=r"augment varies recordings, and .* holds latents"):
        train_generator(data, tmp_path / "c", config(preset="tiny", model=DIT, augment={"polarity": 1}))


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_half_precision_keeps_as_many_digits_and_its_own_energy(model, features, tmp_path, storage):
    precompute_features(SOUNDS, tmp_path, open_teacher(str(model)), storage, shard_megabytes=100)
    whole, half = open_tokens(features, FEATURES, 100), open_tokens(tmp_path, FEATURES, 100)
    assert half.audio[0].dtype == getattr(torch, storage)
    tolerance = {"float16": 2**-10, "bfloat16": 2**-7}[storage]
    for index, clip in enumerate(half.clips):
        crop = half.crop(index, 10**6, 0.0)
        assert crop.dtype == torch.float32
        torch.testing.assert_close(crop, whole.crop(index, 10**6, 0.0), rtol=tolerance, atol=1e-4)
        assert clip.gram_energy == pytest.approx(float(ops.gram_energy(crop[None])), rel=1e-6)
    sample = next(iter(WebDataset(str(tmp_path / "shards-000000.tar"), shardshuffle=False)))
    assert load(sample["safetensors"])["tokens"].dtype == getattr(torch, storage)


class LoudTeacher(Teacher):
    """Features that float16 does not hold, of some clips."""

    def __call__(self, audio, lengths):
        found, counts = super().__call__(audio, lengths)
        return found * torch.where(counts > 90, 1e5, 1.0)[:, None, None], counts


def test_what_cannot_be_stored_is_left_out_and_named(model, tmp_path):
    (tmp_path / "data").mkdir()
    for path in sorted(SOUNDS.glob("*.flac"))[:8]:
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    soundfile.write(tmp_path / "data" / "nan.wav", np.full(9000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "data" / "short.wav", np.zeros(300), 16000)
    summary = precompute_features(
        tmp_path / "data", tmp_path / "out", LoudTeacher(**vars(open_teacher(str(model)))), "float16"
    )
    loud = [clip for clip in summary.left_out if "cannot be stored as torch.float16; store bfloat16 or float32" in clip]
    assert loud
    assert summary.clips == 8 - len(loud)
    assert sum("nan.wav holds NaN" in reason for reason in summary.left_out) == 1
    assert sum("short.wav: too short" in reason for reason in summary.left_out) == 1
    assert len(summary.left_out) == len(loud) + 2
    corpus = open_tokens(tmp_path / "out", FEATURES, 100)
    assert len(corpus.clips) == summary.clips
    assert sorted(corpus.skipped) == sorted(summary.left_out)


def test_bfloat16_computes_what_float32_does_but_for_rounding(model, features, tmp_path):
    precompute_features(SOUNDS, tmp_path, open_teacher(str(model)), "bfloat16", precision="bfloat16")
    whole, half = open_tokens(features, FEATURES, 100), open_tokens(tmp_path, FEATURES, 100)
    for index in range(len(half.clips)):
        one, other = half.crop(index, 10**6, 0.0), whole.crop(index, 10**6, 0.0)
        assert 1e-4 < float((one - other).norm() / other.norm()) < 0.05


def test_options_that_mean_nothing_are_named(model, tmp_path):
    teacher = open_teacher(str(model))
    for options, message in (
        ({"storage": "int8"}, "storage should be one of float32, float16, bfloat16, got 'int8'"),
        ({"shard_megabytes": 0}, "the size of a shard should be a positive number of megabytes, got 0"),
        ({"precision": "float16"}, "precision should be float32 or bfloat16, got 'float16'"),
        ({"batch_seconds": -1}, "a batch should have a positive number of seconds, got -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            precompute_features(SOUNDS, tmp_path / "out", teacher, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-4], "its size is not what its header says"),
        (lambda b: b"\xff" * 8 + b[8:], "it has no header"),
        (lambda b: b.replace(b"tokens", b"t0kens"), "its header cannot be read"),
        (lambda b: b.replace(b'"F32"', b'"I64"'), "its header cannot be read"),
        (lambda b: b.replace(b"[5,3]", b"[3,5]"), "its vectors have 5 values, the index says 3"),
        (lambda b: b.replace(b"[5,3]", b"[6,3]"), "its size is not what its header says"),
        (lambda b: b[:-4] + b"\xff\xff\xff\xff", "it holds NaN or infinity"),
        (lambda b: b"", "it has no header"),
    ],
)
@pytest.mark.parametrize("part", [(0, None), (2, 3)])
def test_damaged_tokens_are_named(tmp_path, change, message, part):
    content = pack_tokens(torch.randn(5, 3), torch.float32, "a")
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    member = Member(path, "0.safetensors", 0, len(content))
    assert read_tokens(member, 3, *part).shape == (5 if part[1] is None else 3, 3)
    damaged = change(content)
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match=f"0.safetensors is damaged: {message}"):
        read_tokens(Member(path, "0.safetensors", 0, len(damaged)), 3, *part)


def test_shards_that_do_not_say_what_they_hold_are_refused(features, tmp_path):
    path = sorted(features.glob("*.tar"))[0]
    (tmp_path / "a.tar").write_bytes(path.read_bytes())
    assert len(open_tokens(tmp_path, FEATURES, 0).clips) == len(open_shards(path).samples)
    content = path.read_bytes()
    (tmp_path / "b.tar").write_bytes(re.sub(rb'"fingerprint": "..', b'"fingerprint": "xx', content))
    with pytest.raises(
        TrainingError, match=r"b.tar holds teacher features .* and the shards before it teacher features"
    ):
        open_tokens(tmp_path, FEATURES, 0)
    (tmp_path / "b.tar").unlink()
    (tmp_path / "a.tar").write_bytes(content.replace(b'"width"', b'"wodth"'))
    with pytest.raises(TrainingError, match="the shards do not say what computed their teacher features"):
        open_tokens(tmp_path, FEATURES, 0)
    (tmp_path / "a.tar").write_bytes(content.replace(b'"gram_energy"', b'"gran_energy"'))
    with pytest.raises(
        TrainingError, match=r"none of the teacher features in it can be used; the first: .*no gram_energy"
    ):
        open_tokens(tmp_path, FEATURES, 0)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_both_commands_and_what_they_print(model, tmp_path, capsys):
    command = ("precompute", "features", SOUNDS, "-o", tmp_path / "f", "--teacher", model, "--megabytes", 0.03)
    assert run(*command, "--store", "bfloat16") == 0
    out = capsys.readouterr().out
    assert out.startswith("16 clips, 0.9 minutes, computed into ") or "16 clips" in out
    assert run(*command, "--store", "float16") == 2
    assert '"storage": "bfloat16"' in capsys.readouterr().err
    assert run("precompute", "latents", SOUNDS, "-o", tmp_path / "l", "--model", model, "--device", "cpu") == 0
    assert f"encoded into 1 shard of 0.1 MB together in {tmp_path / 'l'}\n" in capsys.readouterr().out
    options = ("--init", model, "--steps", 2, "--batch-size", 4, "--set", "data.crop_seconds=0.8", "--device", "cpu")
    assert run("train", "sembo", tmp_path / "f", "-o", tmp_path / "run", *options) == 0
    assert "trained for 2 steps" in capsys.readouterr().out
    assert run("precompute", "features", SOUNDS, "-o", tmp_path / "g") == 2
    assert "no teacher: pass --teacher, a model folder" in capsys.readouterr().err


SCRIPT = """
import pathlib, signal
import torch
torch.set_num_threads(1)
from losatok_ext.models.teachers.registry import open_teacher
from losatok_ext.training.precompute.tokens import precompute_features
def wait_after_two_shards(done, total):
    if len(list(pathlib.Path({output!r}).glob("shards-*.json"))) == 2:
        signal.pause()
precompute_features({data!r}, {output!r}, open_teacher({model!r}), "float32", 0.05, on_progress=wait_after_two_shards)
"""


def test_a_killed_process_loses_nothing_that_was_finished(model, features, tmp_path):
    output = tmp_path / "out"
    script = SCRIPT.format(data=str(SOUNDS), output=str(output), model=str(model))
    process = subprocess.Popen([sys.executable, "-c", script])
    while process.poll() is None and len(list(output.glob("shards-*.json"))) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)  # in the third shard
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in output.glob("shards-*.tar")}
    assert len(finished) >= 2
    assert not (output / "index.json").exists()
    with pytest.raises(TrainingError, match="the shards are not finished"):
        open_tokens(output, FEATURES, 0)
    summary = precompute_features(SOUNDS, output, open_teacher(str(model)), "float32", 0.05)
    assert summary.kept >= 2
    for path in sorted(features.glob("*.*")):
        if path.name != ".lock":
            assert (output / path.name).read_bytes() == path.read_bytes()
            assert (output / path.name).stat().st_mtime_ns == finished.get(
                path.name, (output / path.name).stat().st_mtime_ns
            )


def test_two_processes_do_not_write_into_one_folder(model, tmp_path):
    teacher, errors = open_teacher(str(model)), []

    def meanwhile(done, total):
        if not errors:
            with pytest.raises(TrainingError, match="another process is writing shards there") as caught:
                precompute_features(SOUNDS, tmp_path, teacher)
            errors.append(caught)

    precompute_features(SOUNDS, tmp_path, teacher, on_progress=meanwhile)
    assert errors


def test_a_full_disk_is_said_and_what_was_finished_stays(model, tmp_path, monkeypatch):
    from losatok_ext.training.precompute import writing as shard_job

    write, count = shard_job._write_json, 0

    def full(path, values):
        nonlocal count
        count += 1
        if count == 4:  # plan, a shard's entry, plan, and the next
            raise OSError(28, "No space left on device")
        write(path, values)

    monkeypatch.setattr(shard_job, "_write_json", full)
    teacher = open_teacher(str(model))
    with pytest.raises(
        TrainingError, match=r"cannot be written: No space left on device; make room, and start the same"
    ):
        precompute_features(SOUNDS, tmp_path, teacher, "float32", 0.05)
    summary = precompute_features(SOUNDS, tmp_path, teacher, "float32", 0.05)
    assert (summary.kept, summary.clips) == (1, 16)
