"""Corpora and crops: what is found, what is refused, and that a batch is a function of the seed and the step alone."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext.audio.samples import sample_folder
from losatok_ext.errors import AudioFileError, InputError, TrainingError
from losatok_ext.recordings.regions import read_region
from losatok_ext.training.config.options import DataConfig
from losatok_ext.training.data.corpus import Clip, Corpus, open_corpus
from losatok_ext.training.data.crops import CropSource

RATE = 16000
HOP = 640


def write(path, seconds, rate=RATE, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = round(seconds * rate)
    audio = np.sin(np.arange(samples) * 440 * 2 * np.pi / rate) * 0.5 if value is None else np.full(samples, value)
    soundfile.write(path, audio, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def opened(data, cache=512):
    return open_corpus(data, RATE, HOP, cache)


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        write(tmp_path / "a" / f"{i}.wav", 0.3 + 0.4 * i)
    write(tmp_path / "b" / "c" / "deep.flac", 1.0)
    write(tmp_path / "b" / "other.ogg", 0.7, rate=22050)
    return tmp_path


def test_the_bundled_clips_are_a_corpus_both_ways():
    by_folder, by_manifest = opened(sample_folder()), opened(sample_folder() / "manifest.jsonl")
    assert len(by_folder.clips) == len(by_manifest.clips) == 48
    assert by_folder.skipped == by_manifest.skipped == ()
    assert by_folder.audio is not None
    assert by_folder.seconds == pytest.approx(sum(len(a) for a in by_folder.audio) / RATE, abs=0.01)


def test_a_folder_is_searched_through_in_a_fixed_order(folder):
    (folder / "notes.txt").write_text("no audio")
    names = [clip.name for clip in opened(folder).clips]
    assert names == [*(f"a/{i}.wav" for i in range(5)), "b/c/deep.flac", "b/other.ogg"]


def test_unusable_files_are_named_and_the_rest_is_used(folder):
    (folder / "a" / "broken.wav").write_bytes(b"RIFF and no more")
    (folder / "a" / "empty.flac").write_bytes(b"")
    write(folder / "a" / "short.wav", 0.02)
    write(folder / "a" / "nan.wav", 0.5, value=np.nan)
    write(folder / "a" / "silent.wav", 0.5, value=0.0)
    corpus = opened(folder)
    assert len(corpus.clips) == 8  # the seven and the silent one
    assert sorted(re.search(r"(\w+)\.(wav|flac)", reason)[1] for reason in corpus.skipped) == [
        "broken",
        "empty",
        "nan",
        "short",
    ]
    assert "too short, 0.020 s" in next(r for r in corpus.skipped if "short.wav" in r)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"path": "a/0.wav"}', "{nonsense"], r"list.jsonl:2: not valid JSON"),
        (['{"path": "a/0.wav"}', "", '{"file": "a/1.wav"}'], r'list.jsonl:3: the line has no "path"'),
        (['["a/0.wav"]'], r'list.jsonl:1: the line has no "path"'),
        (['{"path": "a/0.wav", "seconds": "long"}'], r'list.jsonl:1: "seconds" should be'),
        ([""], r"list.jsonl: the manifest is empty"),
    ],
)
def test_a_broken_manifest_is_named_by_file_and_line(folder, lines, message):
    manifest = folder / "list.jsonl"
    manifest.write_text("\n".join(lines))
    with pytest.raises((InputError, TrainingError), match=message):
        opened(manifest)


def test_a_manifest_without_a_usable_file_is_refused(folder):
    manifest = folder / "list.jsonl"
    manifest.write_text('{"path": "a/gone.wav"}')
    with pytest.raises(
        TrainingError, match=r"list.jsonl: none of its 1 audio files can be used; the first: .*gone.wav"
    ):
        opened(manifest)


def test_data_that_is_none_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no such folder or manifest"):
        opened(tmp_path / "gone")
    with pytest.raises(TrainingError, match="the folder holds no audio files"):
        opened(tmp_path)
    with pytest.raises(TrainingError, match="is an audio file; give the folder"):
        opened(write(tmp_path / "one.wav", 1))


def source(corpus, **options):
    settings = {"batch_size": 3, "seed": 7, "multiple": HOP, "crop": 0.5, "workers": 0} | options
    config = DataConfig(crop_seconds=settings.pop("crop"), workers=settings.pop("workers"))
    return CropSource(corpus, config, **settings)


def assert_same(one, other):
    assert one.names == other.names
    assert torch.equal(one.lengths, other.lengths)
    assert torch.equal(one.audio, other.audio)


def test_a_batch_depends_on_seed_and_step_alone(folder):
    corpus = opened(folder)
    first, again, other = source(corpus), source(corpus), source(corpus, seed=8)
    ahead = list(first.batches(0, 12))
    for step in (11, 3, 0, 7):
        assert_same(again.batch(step), ahead[step])
    assert any(a.names != b.names for a, b in zip(ahead, other.batches(0, 12), strict=True))


def test_workers_and_the_cache_change_nothing(folder):
    in_memory, on_disk = opened(folder), opened(folder, cache=0)
    assert in_memory.audio is not None
    assert on_disk.audio is None
    for one, other in zip(source(in_memory).batches(2, 14), source(on_disk, workers=3).batches(2, 14), strict=True):
        assert_same(one, other)


def test_batches_are_padded_to_whole_tokens_and_zero_past_a_length(folder):
    for batch in source(opened(folder)).batches(0, 8):
        assert batch.audio.shape[1] % HOP == 0
        assert batch.audio.shape[1] - int(batch.lengths.max()) < HOP
        for row, length in zip(batch.audio, batch.lengths.tolist(), strict=True):
            assert HOP <= length <= 8320  # half a second, rounded to whole tokens
            assert row[:length].abs().max() > 0.1
            assert not row[length:].any()


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(640, 40000), min_size=1, max_size=12), batch=st.integers(1, 7), seed=st.integers(0, 9)
)
def test_an_epoch_visits_every_clip_by_its_length(lengths, batch, seed):
    clips = tuple(Clip(None, str(i), n) for i, n in enumerate(lengths))
    audio = tuple(torch.full((n,), float(i + 1)) for i, n in enumerate(lengths))
    crops = source(Corpus(clips, RATE, HOP, (), audio), batch_size=batch, seed=seed)
    visits = [max(n // crops.crop, 1) for n in lengths]
    seen = [name for b in crops.batches(0, -(-sum(visits) // batch)) for name in b.names][: sum(visits)]
    assert [seen.count(str(i)) for i in range(len(lengths))] == visits


def test_a_file_that_breaks_on_the_way_is_replaced_and_named(folder):
    corpus = opened(folder, cache=0)
    corpus.clips[2].path.write_bytes(b"gone bad")
    crops = source(corpus)
    names = {name for batch in crops.batches(0, 10) for name in batch.names}
    assert "a/2.wav" not in names
    assert list(crops.unreadable) == ["a/2.wav"]
    for clip in corpus.clips:
        clip.path.unlink()
    with pytest.raises(TrainingError, match=r"16 files in a row cannot be read, the last: .*does not exist"):
        source(corpus, workers=2).batch(0)


@pytest.mark.parametrize(("rate", "suffix"), [(16000, ".wav"), (16000, ".flac"), (44100, ".flac"), (22050, ".wav")])
def test_a_region_is_what_the_whole_file_has_there(tmp_path, rate, suffix):
    from losatok_ext.audio.files import read_audio

    path = tmp_path / f"long{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (rate * 4, 2)), rate)
    whole = read_audio(path, RATE)
    for start in (0, 1, 640, 23457, len(whole) - 3000):
        region = read_region(path, start, 3000, RATE)
        assert len(region) == 3000
        difference = (region - whole[start : start + 3000]).abs().max()
        assert difference == 0 if rate == RATE else difference < 2e-4


def test_of_long_clips_only_the_crop_is_decoded(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, RATE * 40), RATE)
    in_memory, on_disk = source(opened(tmp_path)), source(opened(tmp_path, cache=0))
    for one, other in zip(in_memory.batches(0, 4), on_disk.batches(0, 4), strict=True):
        assert torch.equal(one.lengths, other.lengths)
        rows = torch.stack([*one.audio, *other.audio])
        assert rows.abs().amax(1).min() > 0.4


def test_a_region_that_cannot_be_read_is_named(tmp_path):
    path = write(tmp_path / "nan.wav", 1, value=np.nan)
    with pytest.raises(AudioFileError, match=r"nan.wav holds NaN or infinite samples"):
        read_region(path, 0, 100, RATE)
    with pytest.raises(AudioFileError, match=r"nan.wav .*it is truncated|nan.wav is truncated"):
        read_region(path, 2 * RATE, 100, RATE)


def test_manifest_seconds_save_opening_every_file(folder):
    manifest = folder / "list.jsonl"
    (folder / "a" / "none.wav").write_bytes(b"no audio")
    lines = [{"path": "a/1.wav", "seconds": 0.7}, {"path": "a/none.wav", "seconds": 2.0}]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    assert len(opened(manifest, cache=0).clips) == 2  # a file that is no audio is found when it is wanted
    assert len(opened(manifest).clips) == 1
