"""Features of models and of files: exact, kept, never old, and mixed with nothing."""

import numpy as np
import pytest
import torch

from losatok_ext.audio.files import read_audio, read_audio_with_info, write_audio
from losatok_ext.errors import UserError
from losatok_ext.evaluation.tasks import features as module
from losatok_ext.evaluation.tasks.features import FEATURES, GIVEN, Spec, extract, holds_features, parse_spec
from losatok_ext.formats.latent_files import save_latents
from losatok_ext.jobs.tokenize import encode_clip
from losatok_ext.models import LoSATok
from losatok_ext.recordings.labelled import Item, find_items
from small_models import lively, small_config, tone


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lively(LoSATok(small_config()))


@pytest.fixture
def items(tmp_path):
    for index, samples in enumerate((8_000, 12_345)):
        write_audio(tmp_path / "audio" / f"{index}.wav", tone(samples, index), 16_000)
    return find_items([tmp_path / "audio"])[0]


def test_features_are_those_of_the_model(model, items, tmp_path):
    found = extract(model, items, FEATURES, tmp_path / "f")
    assert found.items == items
    assert found.frame_rate == 25
    for name in FEATURES:
        for item, frames in zip(items, found.load(name), strict=True):
            latents = model.encode(read_audio(item.path), features=True)
            expected = getattr(latents, "mu" if name == "latents" else name)[0]
            torch.testing.assert_close(frames, expected, rtol=1e-5, atol=1e-6)


def test_what_is_kept_is_not_computed_again_unless_it_is_old(model, items, tmp_path, monkeypatch):
    extract(model, items, ["latents"], tmp_path / "f")
    calls = []
    real = LoSATok.encode
    monkeypatch.setattr(LoSATok, "encode", lambda self, *a, **k: calls.append(1) or real(self, *a, **k))
    before = extract(model, items, ["latents"], tmp_path / "f").load("latents")
    assert not calls
    extract(model, items, ["latents", "semantic"], tmp_path / "f")
    assert len(calls) == 2
    extract(model, items, ["latents"], tmp_path / "f")
    extract(model, items, ["semantic"], tmp_path / "f")
    assert len(calls) == 2
    (place, *_) = sorted((tmp_path / "f").iterdir())
    place.write_bytes(place.read_bytes()[:50])  # cut off
    again = extract(model, items, ["latents"], tmp_path / "f").load("latents")
    assert len(calls) == 3
    for one, other in zip(before, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    write_audio(items[0].path, tone(9_000, 5), 16_000)
    changed = extract(model, items, ["latents"], tmp_path / "f").load("latents")
    assert len(calls) == 4
    assert changed[0].shape != before[0].shape
    torch.manual_seed(3)
    extract(LoSATok(small_config()).eval(), items, ["latents"], tmp_path / "f")
    assert len(calls) == 6


def test_bad_recordings_are_named_and_the_others_used(model, items, tmp_path, monkeypatch):
    write_audio(tmp_path / "short.wav", tone(100), 16_000)
    bad = [Item(tmp_path / name, name) for name in ("gone.wav", "short.wav")]
    found = extract(model, [bad[0], items[0], bad[1]], ["latents"], tmp_path / "f")
    assert found.items == items[:1]
    assert "does not exist" in found.failures[0].message
    assert "too short for one token" in found.failures[1].message
    with pytest.raises(UserError, match=r"no clip has features; the first: .*gone\.wav"):
        extract(model, bad, ["latents"], tmp_path / "f")
    with pytest.raises(UserError, match=r"gone\.wav does not exist"):
        extract(model, bad, ["latents"], tmp_path / "f", debug=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        extract(model, items, ["latents"], tmp_path / "file" / "f")


def test_files_of_features_and_latents(model, items, tmp_path):
    np.save(tmp_path / "frames.npy", np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "clip.npy", np.arange(3, dtype=np.int16))
    given = find_items([tmp_path / "frames.npy", tmp_path / "clip.npy"], module.SUFFIXES)[0]
    assert holds_features(given)
    found = extract(None, given, [GIVEN], tmp_path / "f")
    assert found.load(GIVEN)[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.load(GIVEN)[1].tolist() == [[0, 1, 2]]
    assert found.frame_rate is None
    latents = encode_clip(model, *read_audio_with_info(items[0].path))
    np.save(tmp_path / "wide.npy", np.zeros((3, 8)))
    wide = find_items([tmp_path / "wide.npy"], module.SUFFIXES)[0]
    save_latents(tmp_path / "a.losatok", latents)
    found = extract(None, find_items([tmp_path / "a.losatok"], module.SUFFIXES)[0], [GIVEN], tmp_path / "f")
    assert found.frame_rate == 25
    torch.testing.assert_close(found.load(GIVEN)[0], latents.mu)
    mixed = extract(None, [*find_items([tmp_path / "a.losatok"], module.SUFFIXES)[0], *wide], [GIVEN], tmp_path / "f")
    assert "wide.npy has frames at an unknown rate and those before it at 25 Hz" in mixed.failures[0].message
    with pytest.raises(UserError, match=r"frames\.npy holds features and .*0\.wav is a recording"):
        holds_features([*given, *items])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros((2, 2, 2)), r"should hold features \[T, D\] or \[D\] in numbers, got float64 \[2, 2, 2\]"),
        (np.zeros((0, 2)), "should hold features"),
        (np.array(["a"]), "should hold features"),
        (np.array([[np.nan, 1]]), "holds NaN or infinite features"),
        (np.zeros((2, 5)), "has features of 5 dimensions and those before it 3"),
    ],
)
def test_files_that_hold_no_features_are_named(tmp_path, values, says):
    np.save(tmp_path / "a.npy", np.zeros((1, 3)))
    np.save(tmp_path / "b.npy", values)
    (tmp_path / "c.npy").write_bytes(b"what")
    found = extract(None, find_items([tmp_path], module.SUFFIXES)[0], [GIVEN], tmp_path / "f")
    assert [item.name for item in found.items] == ["a.npy"]
    with pytest.raises(UserError, match=says):
        raise UserError(found.failures[0].message)
    assert "cannot be read as a NumPy array" in found.failures[1].message


def test_specs():
    assert parse_spec("latents") == Spec("latents")
    assert parse_spec("pca:64") == Spec("semantic", "pca", 64)
    assert parse_spec("acoustic+merge:8") == Spec("acoustic", "merge", 8)
    assert str(parse_spec("pca:64")) == "semantic+pca:64"
    assert parse_spec("merge:2", given=True) == Spec("given", "merge", 2)
    for wrong in ("", "what", "pca", "pca:", "pca:0", "pca:x", "what+pca:3", "+pca:3x", "given", "semantic+"):
        with pytest.raises(UserError, match="--feature is"):
            parse_spec(wrong)
