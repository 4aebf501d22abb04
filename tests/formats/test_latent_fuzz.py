"""Damaged and hostile latent files: LatentFileError or the very latents, and no more memory than the file is worth."""

import json
import struct
import subprocess
import sys
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from formats.latent_cases import STORAGES, latents, parts, rewrite, write_parts
from losatok_ext.errors import LatentFileError
from losatok_ext.formats import latent_container
from losatok_ext.formats.latent_files import describe, load_latents, save_latents

FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def files(tmp_path):
    """A whole file of each storage."""
    for storage in STORAGES:
        save_latents(tmp_path / f"{storage}.losatok", latents(logvar=True, storage=storage))
    return [tmp_path / f"{storage}.losatok" for storage in STORAGES]


@pytest.fixture
def float_file(tmp_path):
    path = tmp_path / "a.losatok"
    save_latents(path, latents(logvar=True))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda head, entry: entry.update(format="other"), "not a latent file"),
        (lambda head, entry: head.pop("__metadata__"), "not a latent file"),
        (lambda head, entry: entry.pop("samples"), "samples is None"),
        (lambda head, entry: entry.update(samples="many"), "samples is 'many'"),
        (lambda head, entry: entry.update(samples=True), "samples is True"),
        (lambda head, entry: entry.update(samples=10**15), "cannot stand for"),
        (lambda head, entry: entry.update(samples=10**30), r"samples is 1000000"),
        (lambda head, entry: entry.update(samples=-5), "cannot stand for"),
        (lambda head, entry: entry.update(source_rate=0), "cannot stand for"),
        (lambda head, entry: entry.update(latent_dim=0), "cannot stand for"),
        (lambda head, entry: entry.update(frame_rate=float("nan")), "cannot stand for"),
        (lambda head, entry: entry.update(frame_rate=10**400), "frame_rate is 1000000"),
        (lambda head, entry: entry.update(frame_rate=0), "cannot stand for"),
        (lambda head, entry: entry.update(samples_per_token=0), "cannot stand for"),
        (lambda head, entry: entry.update(quantizer=7), "quantizer is 7"),
        (lambda head, entry: entry.pop("code_sizes"), "code_sizes is None"),
        (lambda head, entry: entry.update(code_sizes=[0]), r"code_sizes is \[0\]"),
        (lambda head, entry: entry.update(code_sizes=[1 << 70]), "code_sizes is"),
        (lambda head, entry: entry.update(code_sizes=["8"] * 10**4), "code_sizes is"),
        (lambda head, entry: entry.update(storage="int2"), "stores latents as 'int2'.*knows float32.*upgrade"),
        (lambda head, entry: entry.update(storage=["float32"]), "stores latents as"),
        (lambda head, entry: entry.update(storage="float16"), "another shape or dtype"),
        (lambda head, entry: entry.update(storage="int8"), "should hold"),
        (lambda head, entry: entry.update(storage="int8", frames_per_scale=0), "frames_per_scale is 0"),
        (lambda head, entry: entry.update(storage="int4", frames_per_scale=3), "frames_per_scale is 3"),
        (lambda head, entry: entry.update(storage="codes"), r"code_sizes is \(\)"),
        (lambda head, entry: entry.update(storage="codes", code_sizes=[4]), "should hold codes, logvar, but lists"),
        (lambda head, entry: entry.update(tokens=6), "another shape or dtype"),
        (lambda head, entry: entry.update(tensors=["mu"]), "should hold mu, but lists"),
        (lambda head, entry: entry.update(tensors=None), "should hold mu, but lists"),
        (lambda head, entry: head.update({"x" * 10**4: 1}), "should hold logvar, mu, but lists"),
        (lambda head, entry: head["mu"].update(dtype="I32"), "another shape or dtype"),
        (lambda head, entry: head["mu"].update(dtype=["F32"]), "another shape or dtype"),
        (lambda head, entry: head["mu"].update(shape=[1 << 40, 8]), "another shape or dtype"),
        (lambda head, entry: head["mu"].update(shape=[5.0, 8]), "cannot be read|checksum"),
        (lambda head, entry: (head["mu"].update(shape=[1 << 40, 8]), entry.update(tokens=1 << 40)), "cannot stand for"),
        (lambda head, entry: head["mu"].update(data_offsets=[0, 1 << 60]), "another number of bytes"),
        (lambda head, entry: head["mu"].update(data_offsets=[-160, 0]), "another number of bytes"),
        (lambda head, entry: head["mu"].update(data_offsets=[0, 160, 320]), "another number of bytes"),
        (lambda head, entry: head["mu"].update(data_offsets=head["logvar"]["data_offsets"]), "does not begin where"),
        (lambda head, entry: head["logvar"].update(data_offsets=[320, 480]), "does not begin where"),
        (lambda head, entry: head.update(mu=7), "another shape or dtype"),
        (lambda head, entry: entry.update(source_name="x"), "checksum"),
        (lambda head, entry: entry.update(source_name="\ud800"), "checksum"),
        (lambda head, entry: entry.update(crc32=1), "checksum"),
        (lambda head, entry: entry.update(crc32=[{}]), "checksum"),
        (lambda head, entry: entry.pop("crc32"), "checksum"),
    ],
)
def test_headers_that_do_not_fit_are_refused(float_file, change, says):
    rewrite(float_file, change)
    with pytest.raises(LatentFileError, match=says) as caught:
        load_latents(float_file, "0123456789abcdef")
    assert str(float_file) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a latent file, or is truncated"),
        (b"abc", "not a latent file, or is truncated"),
        (b"RIFF" + b"\0" * 100, "not a latent file, or is truncated"),
        (struct.pack("<Q", 1 << 62) + b"{}", "not a latent file, or is truncated"),
        (struct.pack("<Q", 1 << 21) + b" " * (1 << 21), "not a latent file, or is truncated"),
        (struct.pack("<Q", 2) + b"{}", "not a latent file"),
        (struct.pack("<Q", 4) + b"null", "not a latent file"),
        (struct.pack("<Q", 60_000) + b"[" * 60_000, "not a latent file"),
        (struct.pack("<Q", 300_000) + b'{"a":' * 60_000, "not a latent file"),
        (struct.pack("<Q", 9_000) + b'{"a": ' + b"9" * 8_993 + b"}", "not a latent file"),
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


def declare(path, tokens):
    """Let a file say that it holds so many tokens, in every header, consistently."""
    head, entry, payload = parts(path)
    entry.update(tokens=tokens, samples=tokens * 640)
    end = 0
    for name, tensor in head.items():
        if name != "__metadata__":
            width = {"U8": 1, "F16": 2, "F32": 4}[tensor["dtype"]]
            shape = [tokens, *tensor["shape"][1:]]
            size = width * shape[0] * (shape[1] if len(shape) > 1 else 1)
            tensor.update(shape=shape, data_offsets=[end, end + size])
            end += size
    write_parts(path, head, entry, payload)


def test_a_hostile_header_costs_no_memory(files):
    """Files of a thousand bytes that declare terabytes are refused before anything of that size is asked for."""
    for path in files:
        declare(path, 1 << 36)
    code = (
        "import resource, sys, torch\n"
        "from losatok_ext.formats.latent_files import load_latents\n"
        "from losatok_ext.errors import LatentFileError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    before = peak()\n"
        "    try:\n        load_latents(path)\n"
        "    except LatentFileError as error:\n        print(peak() - before, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == len(STORAGES)
    for line in lines:
        grown, _, message = line.partition(" ")
        assert "truncated or damaged" in message
        assert int(grown) < 10_000  # KiB


def frugally(path, fingerprint=None):
    """What the file holds, or None where it is refused; in either case without much memory."""
    read = message = None
    tracemalloc.start()
    try:
        read = load_latents(path, fingerprint)
        describe(path)
    except LatentFileError as error:
        message = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 21  # bytes of Python and NumPy, for files of a thousand
    assert message is None or str(path) in message
    return read if message is None else None


def read_or_refuse(path, original):
    """Whatever happened to the file: either the very latents come back, or LatentFileError; True for the former."""
    read = frugally(path, original.header.fingerprint)
    if read is None:
        return False
    assert read.header == original.header
    for name in ("mu", "logvar", "codes"):
        one, other = getattr(read, name), getattr(original, name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    return True


@FUZZ
@given(data=st.data())
def test_flipped_bits_are_noticed(files, data):
    whole = data.draw(st.sampled_from(files))
    original, raw = load_latents(whole), bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    other = whole.with_name("flipped.losatok")
    other.write_bytes(raw)
    read_or_refuse(other, original)


@FUZZ
@given(which=st.integers(0, len(STORAGES) - 1), cut=st.integers(0, 2000), more=st.binary(max_size=8))
@example(which=0, cut=0, more=b"\0")
@example(which=4, cut=0, more=b"")
def test_cut_and_continued_files_are_noticed(files, which, cut, more):
    whole = files[which]
    original, raw = load_latents(whole), whole.read_bytes()
    other = whole.with_name("cut.losatok")
    changed = raw[: max(0, len(raw) - cut)] + more
    other.write_bytes(changed)
    assert read_or_refuse(other, original) == (changed == raw)


@FUZZ
@given(content=st.binary(max_size=400), length=st.integers(0, 400))
def test_random_bytes_are_refused(tmp_path, content, length):
    path = tmp_path / "a.losatok"
    path.write_bytes(struct.pack("<Q", length) + content)
    with pytest.raises(LatentFileError):
        load_latents(path)


SIZES = st.one_of(
    st.integers(-3, 70), st.sampled_from([1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 64, 10**40, -(1 << 63)])
)
LEAVES = st.one_of(SIZES, st.none(), st.booleans(), st.floats(), st.text(max_size=4), st.sampled_from(STORAGES))
VALUES = st.recursive(LEAVES, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=3), x, max_size=3))
TENSOR_CHANGE = st.dictionaries(
    st.sampled_from(["shape", "data_offsets", "dtype"]),
    st.one_of(VALUES, st.lists(SIZES, max_size=3), st.sampled_from(["F64", "F32", "F16", "U8", "I64", "BF16"])),
    max_size=2,
)


@FUZZ
@given(data=st.data())
def test_hostile_headers_with_a_right_checksum_are_refused_or_harmless(files, data):
    """Headers of any content, in a file that is otherwise consistent: the checksum is not what protects the reader."""
    whole = data.draw(st.sampled_from(files))
    head, entry, payload = parts(whole)
    fields = [*entry, "storage", "frames_per_scale", "code_sizes"]
    entry.update(data.draw(st.dictionaries(st.sampled_from(sorted(set(fields))), VALUES, max_size=3)))
    for name in entry["tensors"] if data.draw(st.booleans()) and isinstance(entry["tensors"], list) else ():
        if isinstance(name, str) and isinstance(head.get(name), dict):
            head[name].update(data.draw(TENSOR_CHANGE))
    payload += bytes(data.draw(st.sampled_from([0, 0, 0, 1, 1000])))
    path = whole.with_name("hostile.losatok")
    original = {"__metadata__": {"losatok": "{}"}, **{k: v for k, v in head.items() if k != "__metadata__"}}
    write_parts(path, original, entry, payload)
    try:
        tensors = latent_container.load(path.read_bytes())
    except Exception:  # no safetensors file at all
        tensors = {}
    entry["crc32"] = latent_container.checksum(entry, tensors)
    write_parts(path, original, entry, payload)
    frugally(path)


@pytest.mark.parametrize("which", range(len(STORAGES)), ids=STORAGES)
def test_the_fuzzed_checksum_is_the_right_one(files, which):
    """Else the test above would test no more than the checksum."""
    whole = files[which]
    head, entry, payload = parts(whole)
    entry["source_name"] = "another.wav"
    entry["crc32"] = latent_container.checksum(entry, latent_container.load(whole.read_bytes()))
    write_parts(whole, head, entry, payload)
    assert load_latents(whole).header.source_name == "another.wav"
    assert json.loads(parts(whole)[0]["__metadata__"]["losatok"]) == entry
