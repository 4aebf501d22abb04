"""The latent file: what is written comes back, and nothing else is ever read for it."""

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from losatok_ext.errors import LatentFileError
from losatok_ext.inference.latent_files import (
    LatentFile,
    LatentHeader,
    describe,
    load_latents,
    read_header,
    save_latents,
)

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def latents(tokens=5, dim=8, logvar=False, **changes):
    header = LatentHeader(
        fingerprint="0123456789abcdef",
        frame_rate=25.0,
        samples_per_token=640,
        sample_rate=16_000,
        tokens=tokens,
        latent_dim=dim,
        samples=tokens * 640 - 17,
        source_name='ein "Name" 音.flac',
        source_rate=44_100,
        source_samples=round((tokens * 640 - 17) * 44_100 / 16_000),
    )
    generator = torch.Generator().manual_seed(1)
    mu = torch.randn(tokens, dim, generator=generator)
    return LatentFile(replace(header, **changes), mu, -mu if logvar else None)


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "a.losatok"
    save_latents(path, latents(logvar=True))
    return path


def rewrite(path, change):
    """Write the file anew with its JSON entry changed and everything else consistent."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8 : 8 + length])
    entry = json.loads(head["__metadata__"]["losatok"])
    change(head, entry)
    if "__metadata__" in head:
        head["__metadata__"]["losatok"] = json.dumps(entry)
    new = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])


@pytest.mark.parametrize("logvar", [False, True])
@pytest.mark.parametrize(("tokens", "dim"), [(1, 1), (3, 128), (1000, 7)])
def test_what_is_saved_is_loaded(tmp_path, tokens, dim, logvar):
    written = latents(tokens, dim, logvar)
    save_latents(tmp_path / "new" / "a.losatok", written)
    read = load_latents(tmp_path / "new" / "a.losatok", written.header.fingerprint)
    assert read.header == written.header == read_header(tmp_path / "new" / "a.losatok")
    assert torch.equal(read.mu, written.mu)
    assert (read.logvar is None) == (not logvar)
    if logvar:
        assert torch.equal(read.logvar, written.logvar)


def test_the_file_is_a_safetensors_file(whole):
    assert set(load_file(whole)) == {"mu", "logvar"}


def test_the_same_latents_give_the_same_bytes_in_any_process(tmp_path, whole):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_latent_files as t; "
        "from losatok_ext.inference.latent_files import save_latents; save_latents(sys.argv[1], t.latents(logvar=True))"
    )
    other = tmp_path / "b.losatok"
    subprocess.run([sys.executable, "-c", code, str(other), str(Path(__file__).parent)], check=True)
    assert other.read_bytes() == whole.read_bytes()


def test_describe_says_what_is_inside(whole):
    facts = describe(whole)
    assert facts["tensors"] == ["logvar", "mu"]
    assert facts["source_name"] == 'ein "Name" 音.flac'
    assert facts["seconds"] == pytest.approx((5 * 640 - 17) / 16_000)
    assert facts["bytes"] == whole.stat().st_size
    assert facts["kbit_per_second"] == pytest.approx(facts["bytes"] * 8 / 1000 / facts["seconds"])
    json.dumps(facts)


def test_latents_of_another_model_need_force(whole):
    with pytest.raises(LatentFileError, match=r"encoded by model 0123456789abcdef, and this is model ffff.*force"):
        load_latents(whole, "ffff")
    assert load_latents(whole, "ffff", force=True).mu.shape == (5, 8)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_version_is_refused_by_its_number(whole, version):
    rewrite(whole, lambda head, entry: entry.update(version=version))
    with pytest.raises(LatentFileError, match=rf"version {version!r}.*reads version 1.*upgrade"):
        load_latents(whole)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda head, entry: entry.update(format="other"), "not a latent file"),
        (lambda head, entry: head.pop("__metadata__"), "not a latent file"),
        (lambda head, entry: entry.pop("samples"), "samples is None"),
        (lambda head, entry: entry.update(samples="many"), "samples is 'many'"),
        (lambda head, entry: entry.update(samples=True), "samples is True"),
        (lambda head, entry: entry.update(samples=10**15), "cannot stand for"),
        (lambda head, entry: entry.update(samples=-5), "cannot stand for"),
        (lambda head, entry: entry.update(frame_rate=float("nan")), "cannot stand for"),
        (lambda head, entry: entry.update(frame_rate=0), "cannot stand for"),
        (lambda head, entry: entry.update(samples_per_token=0), "cannot stand for"),
        (lambda head, entry: entry.update(tokens=6), "another shape or dtype"),
        (lambda head, entry: entry.update(tensors=["mu"]), "should hold the tensor mu"),
        (lambda head, entry: head["mu"].update(dtype="I32"), "another shape or dtype"),
        (lambda head, entry: head["mu"].update(shape=[1 << 40, 8]), "another shape or dtype"),
        (lambda head, entry: (head["mu"].update(shape=[1 << 40, 8]), entry.update(tokens=1 << 40)), "another"),
        (lambda head, entry: head["mu"].update(data_offsets=[0, 1 << 60]), "another number of bytes"),
        (lambda head, entry: head["mu"].update(data_offsets=[-160, 0]), "another shape or dtype"),
        (lambda head, entry: head["mu"].update(data_offsets=head["logvar"]["data_offsets"]), "cannot be read"),
        (lambda head, entry: head.update(mu=7), "another shape or dtype"),
        (lambda head, entry: entry.update(source_name="x"), "checksum"),
        (lambda head, entry: entry.update(crc32=1), "checksum"),
        (lambda head, entry: entry.pop("crc32"), "checksum"),
    ],
)
def test_headers_that_do_not_fit_are_refused(whole, change, says):
    rewrite(whole, change)
    with pytest.raises(LatentFileError, match=says) as caught:
        load_latents(whole, "0123456789abcdef")
    assert str(whole) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a latent file, or is truncated"),
        (b"abc", "not a latent file, or is truncated"),
        (b"RIFF" + b"\0" * 100, "not a latent file, or is truncated"),
        (struct.pack("<Q", 1 << 62) + b"{}", "not a latent file, or is truncated"),
        (struct.pack("<Q", 2) + b"{}", "not a latent file"),
        (struct.pack("<Q", 4) + b"null", "not a latent file"),
        (struct.pack("<Q", 60_000) + b"[" * 60_000, "not a latent file"),
        (struct.pack("<Q", 4) + b"\xff\xfe\xff\xfe", "not a latent file"),
    ],
)
def test_other_bytes_are_refused(tmp_path, content, says):
    path = tmp_path / "a.losatok"
    path.write_bytes(content)
    with pytest.raises(LatentFileError, match=says):
        load_latents(path)


def test_other_safetensors_missing_files_and_folders_are_refused(tmp_path):
    save_file({"mu": torch.zeros(3, 4)}, tmp_path / "a.losatok")
    with pytest.raises(LatentFileError, match="not a latent file"):
        load_latents(tmp_path / "a.losatok")
    with pytest.raises(LatentFileError, match="does not exist"):
        load_latents(tmp_path / "none.losatok")
    with pytest.raises(LatentFileError, match="is not a file"):
        load_latents(tmp_path)


def test_a_hostile_header_costs_no_memory(tmp_path):
    """A file of 200 bytes that declares terabytes is refused before anything of that size is asked for."""
    path = tmp_path / "a.losatok"
    save_latents(path, latents())
    rewrite(
        path,
        lambda head, entry: (
            entry.update(tokens=1 << 36, samples=(1 << 36) * 640),
            head["mu"].update(shape=[1 << 36, 8], data_offsets=[0, 1 << 41]),
        ),
    )
    code = (
        "import resource, sys, torch\n"
        "from losatok_ext.inference.latent_files import load_latents\n"
        "from losatok_ext.errors import LatentFileError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try:\n    load_latents(sys.argv[1])\n"
        "except LatentFileError as error:\n    print(peak() - before, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    grown, _, message = result.stdout.partition(" ")
    assert "bytes" in message
    assert int(grown) < 10_000  # KiB


def loaded_or_refused(path, original):
    """Whatever happened to the file: either the very latents come back, or LatentFileError."""
    try:
        read = load_latents(path, original.header.fingerprint)
    except LatentFileError as error:
        message = str(error)
    else:
        message = None
    if message is not None:
        assert str(path) in message
        return False
    assert read.header == original.header
    assert torch.equal(read.mu, original.mu)
    return True


@FUZZ
@given(data=st.data())
def test_flipped_bits_are_noticed(whole, data):
    original, raw = load_latents(whole), bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    other = whole.with_name("flipped.losatok")
    other.write_bytes(raw)
    loaded_or_refused(other, original)


@FUZZ
@given(cut=st.integers(0, 2000), more=st.binary(max_size=8))
@example(cut=0, more=b"\0")
def test_cut_and_continued_files_are_noticed(whole, cut, more):
    original, raw = load_latents(whole), whole.read_bytes()
    other = whole.with_name("cut.losatok")
    changed = raw[: max(0, len(raw) - cut)] + more
    other.write_bytes(changed)
    assert loaded_or_refused(other, original) == (changed == raw)


@FUZZ
@given(content=st.binary(max_size=400), length=st.integers(0, 400))
def test_random_bytes_are_refused(tmp_path, content, length):
    path = tmp_path / "a.losatok"
    path.write_bytes(struct.pack("<Q", length) + content)
    with pytest.raises(LatentFileError):
        load_latents(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: replace(x, mu=x.mu[:-1]), r"mu should have shape \[T, d\] = \[5, 8\], got \[4, 8\]"),
        (lambda x: replace(x, logvar=x.mu[:, 1:]), "logvar should have shape"),
        (lambda x: replace(x, mu=x.mu / 0), "NaN or infinite"),
    ],
)
def test_bad_latents_are_not_written(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        save_latents(tmp_path / "a.losatok", change(latents()))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_reported(tmp_path):
    (tmp_path / "a.losatok").mkdir()
    with pytest.raises(LatentFileError, match="cannot be written"):
        save_latents(tmp_path / "a.losatok", latents())
    assert [p.name for p in tmp_path.iterdir()] == ["a.losatok"]


def test_strided_and_half_precision_latents(tmp_path):
    x = latents()
    save_latents(tmp_path / "a.losatok", replace(x, mu=x.mu.t().contiguous().t()))
    assert torch.equal(load_latents(tmp_path / "a.losatok").mu, x.mu)
    save_latents(tmp_path / "b.losatok", replace(x, mu=x.mu.bfloat16()))
    assert torch.equal(load_latents(tmp_path / "b.losatok").mu, x.mu.bfloat16().float())
