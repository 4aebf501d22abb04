"""Shards: the same clips and batches as the files they were made of, whoever wrote them and whatever is damaged."""

import io
import json
import sys
import tarfile
from contextlib import suppress

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset import TarWriter, WebDataset

from losatok_ext.audio.samples import sample_folder
from losatok_ext.cli import main
from losatok_ext.errors import ShardError, TrainingError, UserError
from losatok_ext.recordings.shard_files import Member, scan_shard
from losatok_ext.recordings.shard_index import is_shards, open_shards, shards_kind
from losatok_ext.training import TrainConfig, train_sembo
from losatok_ext.training.config.data_options import AugmentConfig, BalanceConfig
from losatok_ext.training.config.options import DataConfig
from losatok_ext.training.data.corpus import BAD_FILES, open_corpus
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.data.labels import LabelClasses, with_labels
from losatok_ext.training.precompute.tokens import shard_recordings
from training_runs import StoppedError, assert_same_reports, stop_at

RATE, HOP = 16000, 640
SAMPLES = sample_folder()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The bundled recordings in three shards."""
    folder = tmp_path_factory.mktemp("shards")
    summary = shard_recordings(SAMPLES, folder, shard_megabytes=1)
    assert (summary.shards, summary.clips, summary.left_out) == (3, 48, [])
    return folder


@pytest.fixture
def copy(shards, tmp_path):
    """A copy to damage."""
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def opened(data, cache=512):
    return open_corpus(data, RATE, HOP, cache)


def source(corpus, workers=0):
    config = DataConfig(crop_seconds=0.8, workers=workers, balance=BalanceConfig("equal"))
    augment = AugmentConfig(mix=0.5, gain=0.5, polarity=0.5)
    return CropSource(corpus, config, batch_size=6, seed=2, multiple=HOP, augment=augment)


def assert_same_batches(one, other, steps=6):
    for a, b in zip(one.batches(0, steps), other.batches(0, steps), strict=True):
        assert (a.names, a.texts, a.seconds) == (b.names, b.texts, b.seconds)
        assert torch.equal(a.lengths, b.lengths)
        assert torch.equal(a.audio, b.audio)


def test_training_reads_the_same_from_shards(shards):
    files, in_shards, on_disk = opened(SAMPLES), opened(shards), opened(shards, cache=0)
    assert files.digest(texts=True, domains=True) == in_shards.digest(texts=True, domains=True)
    assert in_shards.audio is not None
    assert on_disk.audio is None
    assert_same_batches(source(files), source(in_shards))
    assert_same_batches(source(files), source(on_disk, workers=3))
    wanted = list(source(files).batches(0, 5))
    for step in (4, 1):
        assert torch.equal(source(on_disk).batch(step, slice(2, 4)).audio[0], wanted[step].audio[2][: HOP * 20])


@pytest.mark.parametrize("cache", [0, 512])
def test_without_an_index_shards_are_gone_through(shards, copy, cache):
    (copy / "index.json").unlink()
    assert_same_batches(source(opened(shards)), source(opened(copy, cache)))


def test_shards_are_named_in_braces_one_by_one_or_by_their_folder(shards):
    everything = opened(shards)
    assert [c.name for c in opened(shards / "shards-{000000..000002}.tar").clips] == [c.name for c in everything.clips]
    some = opened(shards / "shards-{000000,000002}.tar")
    one = opened(shards / "shards-000001.tar")
    assert {clip.name for clip in some.clips} | {clip.name for clip in one.clips} == {c.name for c in everything.clips}
    assert len(some.clips) + len(one.clips) == 48
    more = opened(shards / "shards-{000002..000004}.tar")
    assert sum("does not exist" in reason for reason in more.skipped) == 2
    with pytest.raises(TrainingError, match=r"none of these 2 shards exists, the first: .*shards-000007.tar"):
        opened(shards / "shards-{000007,000008}.tar")


def test_webdataset_itself_reads_them(shards):
    found = list(WebDataset(str(shards / "shards-000000.tar"), shardshuffle=False))
    files = {clip.name: clip for clip in opened(SAMPLES).clips}
    assert len(found) > 5
    for sample in found:
        values = json.loads(sample["json"])
        audio, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        clip = files[values["path"]]
        assert (len(audio), rate) == (clip.samples, 16000)
        assert np.array_equal(audio, soundfile.read(clip.path, dtype="int16")[0])
        assert (values.get("text", ""), values["domain"]) == (clip.text, clip.domain)


def encoded(seconds, rate, kind, level=0.5):
    audio = level * np.sin(np.arange(round(seconds * rate)) * 440 * 2 * np.pi / rate)
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=kind)
    return file.getvalue()


def test_shards_of_others_are_read_too(tmp_path):
    """Other formats and rates, folders in keys, text files, long names; no seconds, no index."""
    with (tmp_path / "a.tar").open("wb") as file, TarWriter(file, encoder=False) as writer:
        writer.write({"__key__": "en/0", "wav": encoded(1.0, 44100, "WAV"), "txt": b"hello \xc3\xbc\n"})
        writer.write({"__key__": "en/1", "ogg": encoded(0.5, 22050, "OGG"), "json": b'{"domain": "speech"}'})
        writer.write({"__key__": "en/2", "cls": b"3"})
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("x" * 150 + "/" + "y" * 150 + ".mp3", "README", "./folder/z.seg1.FLAC"):
            content = encoded(0.7, 16000, "MP3" if name.endswith("mp3") else "FLAC")
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("folder"))
    for cache in (0, 100):
        corpus = opened(tmp_path, cache)
        lengths = [
            clip.samples if corpus.audio is None else len(audio)
            for clip, audio in zip(corpus.clips, corpus.audio or corpus.clips, strict=True)
        ]
        assert lengths == [pytest.approx(n, abs=1200) for n in (16000, 8000, 11200, 11200)]
        assert [clip.text for clip in corpus.clips] == ["hello ü", "", "", ""]
        assert [clip.domain for clip in corpus.clips] == ["", "speech", "", ""]
        assert [clip.name for clip in corpus.clips][:2] == ["a.tar/en/0", "a.tar/en/1"]
        assert len(corpus.skipped) == 1
        assert "en/2 has no audio (cls)" in corpus.skipped[0]
        for index in range(4):
            assert float(corpus.crop(index, 6400, 0.5).abs().max()) == pytest.approx(0.5, abs=0.05)


def test_a_long_clip_in_a_shard_is_decoded_in_part(tmp_path):
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, RATE * 40).astype(np.float32)
    for kind in ("WAV", "FLAC"):
        content = io.BytesIO()
        soundfile.write(content, audio, RATE, format=kind)
        folder = tmp_path / kind
        folder.mkdir()
        with (folder / "a.tar").open("wb") as file, TarWriter(file, encoder=False) as writer:
            writer.write({"__key__": "0", kind.lower(): content.getvalue()})
        corpus = opened(folder, cache=0)
        whole = torch.from_numpy(soundfile.read(io.BytesIO(content.getvalue()), dtype="float32")[0])
        for place in (0.0, 0.37, 1.0):
            start = int(place * (40 * RATE - 5000))
            torch.testing.assert_close(corpus.crop(0, 5000, place), whole[start : start + 5000], rtol=0, atol=0)


def test_a_damaged_member_is_left_out_counted_and_listed(copy):
    sample = open_shards(copy).samples[20]
    member = sample.member
    content = bytearray(member.shard.read_bytes())
    content[member.offset + member.size // 2] ^= 0x40
    member.shard.write_bytes(content)
    name = sample.values["path"]
    in_memory = opened(copy)
    assert len(in_memory.clips) == 47
    (reason,) = in_memory.skipped
    assert f"{member.shard}: {member.name} is damaged: it does not match its checksum" in reason
    crops = source(opened(copy, cache=0))
    seen = {name for batch in crops.batches(0, 40) for name in batch.names}
    assert list(crops.unreadable) == [name]
    assert len(seen) == 47


def test_a_clip_that_lost_a_part_is_left_out_though_the_shard_is_shorter_than_the_index_says(copy):
    sample = open_shards(copy).samples[20]
    member = sample.member
    content = member.shard.read_bytes()
    place = member.offset + member.size // 2
    member.shard.write_bytes(content[:place] + content[place + 512 :])
    corpus = opened(copy)
    assert any(f"{member.name} is damaged: it does not match its checksum" in line for line in corpus.skipped)
    assert sample.values["path"] not in [clip.name for clip in corpus.clips]


def test_missing_truncated_and_empty_shards_are_listed(copy):
    clips = [len(scan_shard(copy / f"shards-00000{i}.tar").samples) for i in range(3)]
    (copy / "shards-000000.tar").unlink()
    whole = (copy / "shards-000001.tar").read_bytes()
    (copy / "shards-000001.tar").write_bytes(whole[: len(whole) // 2])
    (copy / "more.tar").write_bytes(b"")
    (copy / "noise.tar").write_bytes(np.random.default_rng(0).bytes(5000))
    corpus = opened(copy)
    listed = "\n".join(corpus.skipped)
    assert f"shards-000000.tar does not exist, and with it {clips[0]} clips" in listed
    assert "shards-000001.tar is truncated" in listed
    assert "more.tar cannot be read as a tar file: empty file" in listed
    assert "noise.tar is damaged at byte 0: 5000 bytes are skipped" in listed
    assert clips[2] < len(corpus.clips) < clips[1] + clips[2]


def test_after_a_damaged_header_the_next_clips_are_found(copy):
    (copy / "index.json").unlink()
    before = scan_shard(copy / "shards-000000.tar").samples
    content = bytearray((copy / "shards-000000.tar").read_bytes())
    hit = before[4].member  # a header is 512 bytes long and lies before what it describes
    content[hit.offset - 512 : hit.offset - 400] = b"\x07" * 112
    (copy / "shards-000000.tar").write_bytes(content)
    after = scan_shard(copy / "shards-000000.tar")
    assert [s.key for s in after.samples] == [s.key for s in before if s.key != before[4].key]
    assert "is damaged at byte" in after.left_out[0]
    assert f"{before[4].key} has no audio (json)" in after.left_out[1]


def test_a_shard_that_was_replaced_is_gone_through_again(shards, copy):
    (copy / "shards-000000.tar").write_bytes((copy / "shards-000002.tar").read_bytes())
    names = [clip.name for clip in opened(copy).clips]
    count = len(scan_shard(copy / "shards-000002.tar").samples)
    assert names[:count] == names[-count:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "index.json is damaged"),
        (
            lambda text: text.replace('"version":1', '"version":9'),
            "is of version 9, and this losatok_ext reads version 1",
        ),
        (lambda text: text.replace('"offset":', '"offset":-'), "a clip of shards-000000.tar lies outside it"),
        (lambda text: text.replace('"size":', '"size":9999999'), "a clip of shards-000000.tar lies outside it"),
        (lambda text: text.replace("shards-000001.tar", "../000001.tar"), "'../000001.tar' is not the name of a shard"),
        (lambda text: text.replace('"recordings"', '"videos"'), "it has no valid kind or facts"),
    ],
)
def test_a_damaged_index_is_named_with_the_cure(copy, change, message):
    index = copy / "index.json"
    index.write_text(change(index.read_text()))
    with pytest.raises(TrainingError, match=message):
        opened(copy)
    index.unlink()
    assert len(opened(copy).clips) == 48


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.floats(0, 1, exclude_max=True), max_size=4),
    value=st.integers(0, 255),
    cut=st.floats(0.0, 1.0),
    indexed=st.booleans(),
)
def test_any_damage_loses_clips_and_nothing_else(shards, tmp_path, places, value, cut, indexed):
    content = bytearray((shards / "shards-000002.tar").read_bytes())
    for place in places:
        content[int(place * len(content))] = value
    path = tmp_path / "shards-000002.tar"
    path.write_bytes(content[: int(cut * len(content))] if cut > 0.3 else content)
    if indexed:
        (tmp_path / "index.json").write_bytes((shards / "index.json").read_bytes())
    else:
        (tmp_path / "index.json").unlink(missing_ok=True)
    whole = {c.name for c in opened(shards / "shards-000002.tar").clips}
    found = open_shards(path)
    intact = []
    for sample in found.samples:
        try:
            sample.member.read()
        except ShardError as error:
            found.left_out.append(str(error))
        else:
            intact.append(sample.values.get("path"))
    assert len(intact) <= len(whole)
    assert len(intact) == len(whole) or found.left_out
    if indexed and len(content) == path.stat().st_size:
        assert set(intact) <= whole  # by checksum, of files that are named by the index


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3), value=st.integers(32, 126))
def test_any_damage_to_an_index_is_found_or_costs_clips(shards, tmp_path, places, value):
    content = bytearray((shards / "index.json").read_bytes())
    for place in places:
        content[int(place * len(content))] = value
    for path in shards.glob("*.tar"):
        if not (tmp_path / path.name).exists():
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "index.json").write_bytes(content)
    try:
        corpus = opened(tmp_path, cache=0)
    except TrainingError:
        return
    assert len(corpus.clips) + len(corpus.skipped) >= 40
    for index in range(0, len(corpus.clips), 8):
        with suppress(*BAD_FILES):
            assert len(corpus.crop(index, 1000, 0.5)) == 1000


def test_what_a_shard_says_of_a_clip_may_be_nonsense(tmp_path):
    with (tmp_path / "a.tar").open("wb") as file, TarWriter(file, encoder=False) as writer:
        for number, values in enumerate([{"text": 3}, {"seconds": -1}, {"domain": []}, {"path": 7}, [], {"path": ""}]):
            sample = {"__key__": str(number), "flac": encoded(0.5, 16000, "FLAC"), "json": json.dumps(values).encode()}
            writer.write(sample)
        writer.write({"__key__": "6", "flac": encoded(0.5, 16000, "FLAC"), "json": b" " * 2_000_000})
        writer.write({"__key__": "7", "flac": encoded(0.5, 16000, "FLAC"), "txt": b"\xff\xfe"})
    corpus = opened(tmp_path)
    assert [clip.name for clip in corpus.clips] == ["a.tar/3", "a.tar/5"]
    listed = "\n".join(corpus.skipped)
    assert len(corpus.skipped) == 6
    for reason in ('a.tar/0: "text" should be', 'a.tar/1: "seconds" should be', 'a.tar/2: "domain" should be'):
        assert reason in listed
    assert "the description of 4 cannot be read: 4.json holds no object" in listed
    assert "6.json has 2000000 bytes" in listed
    assert "the description of 7 cannot be read: " in listed


def test_a_window_is_a_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(100)))
    with Member(path, "a", 10, 20).open() as window:
        assert window.read(3) == bytes([10, 11, 12])
        assert window.seek(-2, io.SEEK_END) == 18
        assert window.read() == bytes([28, 29])
        assert window.read() == b""
        assert window.seek(50) == 50
        assert window.read() == b""
        with pytest.raises(ValueError, match="before the beginning"):
            window.seek(-60, io.SEEK_CUR)
    with pytest.raises(ShardError, match="a cannot be read: the shard is truncated"):
        Member(path, "a", 90, 20).open()
    with pytest.raises(ShardError, match="No such file"):
        Member(tmp_path / "gone.tar", "a", 0, 1).read()


def test_shards_of_shards_are_the_same(shards, tmp_path):
    seen = []
    shard_recordings(shards, tmp_path, shard_megabytes=1, on_progress=lambda done, total: seen.append((done, total)))
    for path in shards.glob("*.tar"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert seen == [(done, 48) for done in range(1, 49)]


def test_a_rate_that_flac_does_not_take_is_said_before_any_work(tmp_path, capsys):
    assert main(["shard", str(SAMPLES), str(tmp_path / "shards"), "--sample-rate", "1000000"]) == 2
    assert "--sample-rate" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_text_and_label_are_both_kept(tmp_path):
    """A generator reads the texts, a classifier the labels; with and without an index."""
    clips = sorted((SAMPLES / "speech").glob("*.flac"))[:4]
    lines = [{"path": str(path), "text": f"text {i}", "label": "ab"[i % 2]} for i, path in enumerate(clips)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert not shard_recordings(tmp_path / "m.jsonl", tmp_path / "shards").left_out
    for _ in range(2):
        corpus = opened(tmp_path / "shards")
        assert [(clip.text, clip.label) for clip in corpus.clips] == [(f"text {i}", "ab"[i % 2]) for i in range(4)]
        assert corpus.digest(texts=True) == opened(tmp_path / "m.jsonl").digest(texts=True)
        assert LabelClasses(tmp_path / "shards", with_labels(corpus)).names == ["a", "b"]
        (tmp_path / "shards" / "index.json").unlink(missing_ok=True)


def test_a_folder_of_shards_and_audio_files_is_ambiguous(copy):
    (copy / "sub").mkdir()
    (copy / "sub" / "a.flac").write_bytes(encoded(1, 16000, "FLAC"))
    with pytest.raises(TrainingError, match=r"holds both shards \(.tar\) and single files to train on; keep them in"):
        opened(copy)
    assert len(opened(copy / "shards-{000000..000002}.tar").clips) == 48


def test_without_webdataset_an_index_is_enough_to_read(copy, tmp_path_factory, capsys, monkeypatch):
    for name in ("webdataset", "webdataset.tariterators", "braceexpand"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(opened(copy).clips) == 48
    with pytest.raises(UserError, match=r"names in braces need webdataset .* pip install 'losatok-ext\[train\]'"):
        opened(copy / "shards-{000000..000001}.tar")
    (copy / "index.json").unlink()
    with pytest.raises(UserError, match=r"shards without an index need webdataset .*; pip install 'losatok-ext"):
        opened(copy)
    out = tmp_path_factory.mktemp("none") / "out"
    assert run("shard", SAMPLES, out) == 2
    assert "writing shards needs webdataset" in capsys.readouterr().err
    monkeypatch.undo()
    assert run("shard", SAMPLES, out) == 0


def test_what_shards_hold_is_known_with_and_without_an_index(copy):
    assert shards_kind(copy) == "recordings"
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(dict(reversed(index.items())), indent=1))  # as others may write it
    assert shards_kind(copy) == shards_kind(copy / "shards-{000000..000001}.tar") == "recordings"
    assert len(opened(copy).clips) == 48
    (copy / "index.json").write_text('{"mine": 1}')
    assert shards_kind(copy / "shards-000001.tar") == "recordings"
    assert len(opened(copy).clips) == 48
    assert shards_kind(SAMPLES) is None


def test_what_is_no_shard_is_something_else(tmp_path):
    assert not is_shards(tmp_path)
    assert not is_shards(tmp_path / "gone.tar")
    (tmp_path / ".hidden.tar").write_bytes(b"")
    assert not is_shards(tmp_path)
    with pytest.raises(TrainingError, match="no such folder or manifest; give a folder of audio files"):
        opened(tmp_path / "gone.tar")


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_packing_goes_on_where_it_stopped_and_gives_the_same_bytes(shards, tmp_path, capsys, monkeypatch):
    from losatok_ext.training.precompute import tokens as precompute

    encode, count = precompute.flac_bytes, 0

    def stop(*arguments):
        nonlocal count
        count += 1
        if count == 35:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(precompute, "flac_bytes", stop)
    command = ("shard", SAMPLES, tmp_path / "out", "--megabytes", 1)
    assert run(*command) == 130
    assert "the same command goes on from the last finished shard" in capsys.readouterr().err
    with pytest.raises(TrainingError, match="the shards are not finished; let the command that writes them end"):
        opened(tmp_path / "out")
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert 0 < len(written) < 3
    (tmp_path / "out" / ".shards-000001-leftover.tar").write_bytes(b"half a shard")
    assert run(*command) == 0
    assert (
        f"48 clips, 2.4 minutes, packed into 3 shards of 2.6 MB together in {tmp_path / 'out'}, {len(written)} of "
        in (capsys.readouterr().out)
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != ".lock") == [
        "index.json",
        *(f"shards-00000{i}.tar" for i in range(3)),
    ]
    for path in (tmp_path / "out").glob("*.*"):
        assert path.read_bytes() == (shards / path.name).read_bytes() or path.name == ".lock"
        assert path.stat().st_mtime_ns == written.get(path.name, path.stat().st_mtime_ns)
    (tmp_path / "out" / "shards-000001.tar").unlink()  # lost: written again, alone
    assert run(*command) == 0
    assert "2 of them finished before" in capsys.readouterr().out
    assert len(opened(tmp_path / "out").clips) == 48


def test_recordings_that_cannot_be_used_are_left_out_and_named(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", np.sin(np.arange(48000) / 9), 48000, subtype="PCM_24")
    soundfile.write(folder / "nan.wav", np.full(9000, np.nan), 16000, subtype="FLOAT")
    (folder / "broken.flac").write_bytes(b"fLaC and no more")
    assert run("shard", folder, tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert "losatok: left out: " in captured.err
    assert "nan.wav holds NaN" in captured.err
    assert "broken.flac" in captured.err
    assert "2 clips, 0.0 minutes, packed into 1 shard" in captured.out
    corpus = opened(tmp_path / "out")
    assert [clip.samples for clip in corpus.clips] == [16000, 16000]
    assert any("nan.wav holds NaN" in reason for reason in corpus.skipped)


def test_a_folder_of_something_else_is_not_written_to(shards, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run("shard", SAMPLES, tmp_path) == 2
    assert "holds other files already; choose a new folder" in capsys.readouterr().err
    assert run("shard", SAMPLES / "music", shards, "--megabytes", 1) == 2
    assert "holds shards of other data or options (other recordings)" in capsys.readouterr().err
    assert run("shard", SAMPLES, shards, "--megabytes", 2) == 2
    assert "(megabytes was 1.0, is now 2.0)" in capsys.readouterr().err
    assert run("shard", SAMPLES, SAMPLES / "manifest.jsonl") == 2
    assert "is a file; give the name of a folder" in capsys.readouterr().err


def test_a_run_goes_on_bit_for_bit_from_shards_of_its_recordings(shards, tmp_path):
    """With everything on: balance, augmentation, a corpus that is read as needed."""
    model = {"embed_dim": 32, "depth": 1, "num_heads": 2, "latent_dim": 8, "bottleneck_dim": 16, "decoder_dim": 16}
    config = TrainConfig.from_dict({
        "preset": "tiny", "model": model | {"decoder_depth": 1, "decoder_hidden": 32}, "steps": 4, "batch_size": 3,
        "device": "cpu", "data": {"crop_seconds": 0.4, "cache_megabytes": 0, "balance": {"mode": "equal"}},
        "augment": {"mix": 0.5, "gain": 0.5, "polarity": 0.5}, "checkpoint": {"every": 2}, "log": {"every": 1},
    })  # fmt: skip
    straight, parts, starts = [], [], []
    train_sembo(SAMPLES, tmp_path / "straight", config, on_start=starts.append, on_step=straight.append)
    assert [(domain.name, domain.clips, round(domain.share, 3)) for domain in starts[0].domains] == [
        ("environment", 16, 0.333),
        ("music", 16, 0.333),
        ("speech", 16, 0.333),
    ]
    assert starts[0].crops == 12
    with pytest.raises(StoppedError):
        train_sembo(SAMPLES, tmp_path / "parts", config, on_step=stop_at(3))
    train_sembo(shards, tmp_path / "parts", config, on_step=parts.append)
    assert_same_reports(straight[2:], parts)
