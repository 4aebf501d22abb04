"""Outputs that exist: those that are what a job would write are kept, stale ones are made again or refused."""

import dataclasses
import errno
import json
import os
import shutil

import pytest
import torch

from losatok_ext.audio.files import read_audio, write_audio
from losatok_ext.formats import StoreOptions, load_latents, save_latents
from losatok_ext.jobs import tokenize as jobs
from losatok_ext.jobs.outputs import RECORD, Record, differences, settings_text
from losatok_ext.models import LoSATok
from losatok_ext.recordings.find import Source
from small_models import lively, small_config, tone


@pytest.fixture(scope="module")
def other_model():
    torch.manual_seed(1)
    return lively(LoSATok(small_config(latent_dim=8, top_db=40.0)))


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, tone(8_000), 16_000)
    return path


def encode(model, path, folder, **options):
    return jobs.encode_files(model, [Source(path, path)], [folder / f"{path.stem}.losatok"], **options)


def decode(model, path, folder, **options):
    return jobs.decode_files(model, [Source(path, path)], [folder / f"{path.stem}.wav"], **options)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    path.write_bytes(content)


# --- encode ---------------------------------------------------------------------------------------------------------


def test_a_replaced_recording_is_encoded_again(tmp_path, model, recording):
    encode(model, recording, tmp_path / "out")
    status = recording.stat()
    write_audio(recording, tone(8_000, 1), 16_000)  # of the same size and, as a copy may have it, the same time
    os.utime(recording, ns=(status.st_atime_ns, status.st_mtime_ns))
    summary = encode(model, recording, tmp_path / "out")
    assert summary.again == {tmp_path / "out" / "a.losatok": "the recording has changed"}
    assert summary.written
    expected = jobs.encode_clip(model, *jobs.read_audio_with_info(recording, 16_000)).mu
    assert torch.equal(load_latents(tmp_path / "out" / "a.losatok").mu, expected)
    summary = encode(model, recording, tmp_path / "out")
    assert summary.kept
    assert not summary.again


def test_a_flipped_bit_is_noticed_and_the_file_made_again(tmp_path, model, recording):
    encode(model, recording, tmp_path / "out")
    path = tmp_path / "out" / "a.losatok"
    whole = path.read_bytes()
    flip_a_bit(path)
    assert encode(model, recording, tmp_path / "out").again == {path: "the latent file was damaged"}
    assert path.read_bytes() == whole


@pytest.mark.parametrize("left", [-10, -400])
def test_a_truncated_latent_file_is_made_again(tmp_path, model, recording, left):
    encode(model, recording, tmp_path / "out")
    path = tmp_path / "out" / "a.losatok"
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    assert encode(model, recording, tmp_path / "out").again == {path: "the latent file was damaged"}
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["text", "newer version", "newer storage", "folder", "link to nothing"])
def test_what_is_not_known_to_be_ours_is_refused_with_the_cure(tmp_path, model, recording, kind):
    path = tmp_path / "out" / "a.losatok"
    encode(model, recording, path.parent)
    whole = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to("nothing")
    elif kind == "text":
        path.write_text("a text file named a.losatok")
    elif kind == "newer version":
        path.write_bytes(whole.replace(b'version\\": 2', b'version\\": 9'))
    else:
        path.write_bytes(whole.replace(b'storage\\": \\"float32', b'storage\\": \\"float99'))
    before = path.read_bytes() if path.is_file() else None
    assert before != whole
    (failure,) = encode(model, recording, path.parent).failures
    assert f"{path} exists and is not a latent file that can be read" in failure.message
    assert "pass --overwrite or another folder" in failure.message
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_recording_that_is_gone_is_named_where_its_output_exists(tmp_path, model, recording):
    encode(model, recording, tmp_path / "out")
    recording.unlink()
    (failure,) = encode(model, recording, tmp_path / "out").failures
    assert failure.message == f"{recording} does not exist; check the name"
    assert (tmp_path / "out" / "a.losatok").exists()


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ({}, {"logvar": True}, "made with logvar=False (now logvar=True)"),
        ({"logvar": True}, {}, "made with logvar=True (now logvar=False)"),
    ],
)
def test_other_options_are_refused_and_named(tmp_path, model, recording, first, then, says):
    encode(model, recording, tmp_path / "out", store=StoreOptions(**first))
    before = (tmp_path / "out" / "a.losatok").read_bytes()
    summary = encode(model, recording, tmp_path / "out", store=StoreOptions(**then))
    assert says in summary.failures[0].message
    assert "pass --overwrite or another folder" in summary.failures[0].message
    assert (tmp_path / "out" / "a.losatok").read_bytes() == before
    assert encode(model, recording, tmp_path / "out", store=StoreOptions(**then), overwrite=True).written


def test_another_precision_is_refused_and_named(tmp_path, model, recording):
    model.save_pretrained(tmp_path / "model")
    encode(model, recording, tmp_path / "out")
    for dtype in ("bfloat16", "int8"):
        summary = encode(LoSATok.from_pretrained(tmp_path / "model", dtype=dtype), recording, tmp_path / "out")
        assert f"made with dtype=float32 (now dtype={dtype})" in summary.failures[0].message


def test_files_of_releases_that_kept_no_settings_are_kept(tmp_path, model, recording):
    encode(model, recording, tmp_path / "out")
    path = tmp_path / "out" / "a.losatok"
    latents = load_latents(path)
    header = dataclasses.replace(latents.header, source_digest=None, settings=None)
    save_latents(path, dataclasses.replace(latents, header=header))
    assert load_latents(path).header == header
    assert encode(model, recording, tmp_path / "out").kept == [path]
    summary = encode(model, recording, tmp_path / "out", store=StoreOptions(logvar=True))
    assert "exists and stores no log variance" in summary.failures[0].message


# --- decode ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def latents(tmp_path, model, recording):
    encode(model, recording, tmp_path)
    return tmp_path / "a.losatok"


def test_audio_is_kept_and_made_again_where_its_latents_have_changed(tmp_path, model, recording, latents):
    out = tmp_path / "out" / "a.wav"
    assert decode(model, latents, out.parent).written == [out]
    assert decode(model, latents, out.parent).kept == [out]
    write_audio(recording, tone(9_000, 2), 16_000)
    encode(model, recording, tmp_path)
    assert decode(model, latents, out.parent).again == {out: "the latent file has changed"}
    assert len(read_audio(out)) == 9_000
    assert decode(model, latents, out.parent).kept == [out]


@pytest.mark.parametrize("content", ["a text file named a.wav", "changed", "moved"])
def test_a_file_that_is_not_as_it_was_decoded_is_refused(tmp_path, model, latents, content):
    out = tmp_path / "out" / "a.wav"
    decode(model, latents, out.parent)
    if content == "changed":
        flip_a_bit(out)
    elif content == "moved":
        (out.parent / RECORD).unlink()
    else:
        out.write_text(content)
    before = out.read_bytes()
    summary = decode(model, latents, out.parent)
    assert summary.kept == summary.written == []
    message = "exists, and is not as `losatok decode` wrote it; pass --overwrite or another folder"
    assert message in summary.failures[0].message
    assert out.read_bytes() == before
    assert decode(model, latents, out.parent, overwrite=True).written == [out]
    assert decode(model, latents, out.parent).kept == [out]


@pytest.mark.parametrize("kind", ["folder", "link to nothing"])
def test_an_output_that_is_no_file_is_refused(tmp_path, model, latents, kind):
    out = tmp_path / "out" / "a.wav"
    out.parent.mkdir()
    if kind == "folder":
        out.mkdir()
    else:
        out.symlink_to("nothing")
    (failure,) = decode(model, latents, out.parent).failures
    assert f"{out} exists, and is not as `losatok decode` wrote it; pass --overwrite" in failure.message


def test_a_latent_file_that_is_gone_is_named_where_its_audio_exists(tmp_path, model, latents):
    decode(model, latents, tmp_path / "out")
    latents.unlink()
    (failure,) = decode(model, latents, tmp_path / "out").failures
    assert failure.message == f"{latents} does not exist; check the name"
    assert (tmp_path / "out" / "a.wav").exists()


def test_audio_of_another_model_is_refused_and_named(tmp_path, model, other_model, recording, latents):
    decode(model, latents, tmp_path / "out")
    encode(other_model, recording, tmp_path, overwrite=True)
    summary = decode(other_model, latents, tmp_path / "out")
    names = f"made with model={model.fingerprint()} (now model={other_model.fingerprint()})"
    assert names in summary.failures[0].message


# --- the record -----------------------------------------------------------------------------------------------------


def test_a_crash_between_record_and_rename_leaves_what_is_true(tmp_path, model, recording, latents, monkeypatch):
    out = tmp_path / "out" / "a.wav"
    decode(model, latents, out.parent)
    old = out.read_bytes()
    write_audio(recording, tone(9_000, 2), 16_000)
    encode(model, recording, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decode(model, latents, out.parent)
    assert out.read_bytes() == old
    assert decode(model, latents, out.parent).again == {out: "the latent file has changed"}
    out.write_bytes(old)  # as if the rename had not come to the disk
    assert decode(model, latents, out.parent).again == {out: "the latent file has changed"}


def test_lines_that_a_crash_or_another_program_left_do_not_matter(tmp_path):
    output = tmp_path / "a.wav"
    output.write_bytes(b"one")
    Record(tmp_path).add(output, output, "s1", "x=1")
    with (tmp_path / RECORD).open("ab") as file:
        file.write(b'{"name": "a.wav", "digest": "12')  # cut off
    Record(tmp_path).add(tmp_path / "b.wav", output, "s2", "x=2")
    with (tmp_path / RECORD).open("ab") as file:
        file.write(b"[1]\n\xff\xfe\nnull\n" + b"[" * 100_000 + b"\n" + json.dumps({"name": "a.wav"}).encode())
    record = Record(tmp_path)
    assert record.find(output)["settings"] == "x=1"
    shutil.copy(output, tmp_path / "b.wav")
    assert record.find(tmp_path / "b.wav")["source"] == "s2"
    output.write_bytes(b"two")
    assert record.find(output) is None


def test_what_another_process_has_added_since_is_found(tmp_path):
    output = tmp_path / "a.wav"
    output.write_bytes(b"one")
    record = Record(tmp_path)
    assert record.find(output) is None
    Record(tmp_path).add(output, output, "s1", "x=1")
    assert record.find(output)["source"] == "s1"


def test_a_line_that_is_written_in_pieces_is_whole(tmp_path, monkeypatch):
    output = tmp_path / "a.wav"
    output.write_bytes(b"one")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:10]))
        Record(tmp_path).add(output, output, "s1", "x=1")
    assert Record(tmp_path).find(output)["source"] == "s1"


def test_a_disk_that_fills_up_within_a_line_leaves_no_audio(tmp_path, model, latents, monkeypatch):
    write, calls = os.write, []

    def full(handle, data):
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr("losatok_ext.jobs.outputs.os.write", full)
        (failure,) = decode(model, latents, tmp_path / "out").failures
    assert "cannot be written: No space left on device" in failure.message
    assert not (tmp_path / "out" / "a.wav").exists()
    assert decode(model, latents, tmp_path / "out").written


def test_differences_name_what_differs():
    then, now = settings_text(dtype="float32", logvar=False), settings_text(dtype="int8", logvar=False)
    assert differences(then, now) == "dtype=float32 (now dtype=int8)"
