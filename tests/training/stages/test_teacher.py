"""The teacher stage: it learns, resumes exactly, leaves a folder that SemBo starts from, and refuses what cannot be."""

import pytest
import torch

from losatok_ext.audio.files import read_audio
from losatok_ext.errors import ConfigError
from losatok_ext.models import LoSATok
from losatok_ext.training import read_log, train_sembo, train_teacher
from training_runs import MODEL, SPEECH, StoppedError, assert_same_weights, small_run, stop_at, weights

TWO_LAYERS = MODEL | {"depth": 2}


def config(steps=6, **more):
    values = {"model": TWO_LAYERS, "batch_size": 4, "data": {"crop_seconds": 0.8}, "optimizer": {"lr": 3e-3}}
    return small_run(steps, **values | more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("teacher")
    train_teacher(SPEECH, output, config(steps=60))
    return output


def test_it_learns_to_restore_what_is_hidden(trained):
    lines = read_log(trained)
    first, last = (sum(line["masked"] for line in part) / 10 for part in (lines[:10], lines[-10:]))
    assert last < 0.8 * first


def test_mel_statistics_are_those_of_the_recordings(trained):
    """Normalised by them, the mel bins of the corpus have mean 0 and deviation 1."""
    encoder = LoSATok.from_pretrained(trained / "model").semantic_encoder
    frames = []
    for path in sorted(SPEECH.iterdir()):
        audio = read_audio(path, 16000)
        patches, tokens = encoder.patches(audio[None], torch.tensor([len(audio)]))
        frames.append(
            encoder.normalise(patches)[0, : int(tokens[0])].unflatten(1, (64, 4)).transpose(1, 2).flatten(0, 1)
        )
    values = torch.cat(frames)
    torch.testing.assert_close(values.mean(0), torch.zeros(64), rtol=0, atol=1e-3)
    torch.testing.assert_close(values.std(0), torch.ones(64), rtol=1e-2, atol=0)


def test_resume_is_exact(tmp_path):
    train_teacher(SPEECH, tmp_path / "whole", config())
    with pytest.raises(StoppedError):
        train_teacher(SPEECH, tmp_path / "cut", config(), on_step=stop_at(4))
    train_teacher(SPEECH, tmp_path / "cut", config())
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_sembo_starts_from_it(trained, tmp_path):
    """The encoder is the trained one to the bit, before and after SemBo."""
    result = train_sembo(SPEECH, tmp_path, config(steps=2, preset=None, model={}, init=str(trained)))
    teacher, sembo = (LoSATok.from_pretrained(folder) for folder in (trained / "model", result.model))
    theirs = sembo.semantic_encoder.state_dict()
    for name, value in teacher.semantic_encoder.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_going_on_keeps_the_statistics(trained, tmp_path):
    """A teacher adapted to another domain normalises as it learned to."""
    result = train_teacher(SPEECH, tmp_path, config(steps=1, preset=None, model={}, init=str(trained)))
    before, after = (LoSATok.from_pretrained(f).semantic_encoder.batch_norm for f in (trained / "model", result.model))
    assert torch.equal(before.running_mean, after.running_mean)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"data": {"crop_seconds": 11.0}}, r"data\.crop_seconds is 11, and the semantic encoder sees 10\.08 s at once"),
        ({"teacher": "x.safetensors"}, "train teacher takes no teacher"),
        ({"model": {"depht": 2}}, "model: "),
        (
            {"masked_autoencoder": {"mask_ratio": 1.0}},
            r"mask_ratio should be a number above 0 and below 1, got 1\.0",
        ),
        (
            {"masked_autoencoder": {"decoder_dim": 0}},
            "decoder_dim should be a whole number within 1..65536 or null",
        ),
        ({"masked_autoencoder": {"statistics_seconds": 0}}, "statistics_seconds should be a number above 0"),
    ],
)
def test_what_it_refuses(tmp_path, more, says):
    with pytest.raises(ConfigError, match=says):
        train_teacher(SPEECH, tmp_path / "run", config(**more))
    assert not (tmp_path / "run").exists()
