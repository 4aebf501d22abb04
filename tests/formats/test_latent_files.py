"""The latent file: what is written comes back, by any version and storage, and nothing else is ever read for it."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from formats.latent_cases import STORAGES, latents, parts, rewrite, write_parts
from losatok_ext.errors import LatentFileError
from losatok_ext.formats import latent_container
from losatok_ext.formats.latent_files import describe, load_latents, read_header, read_storage, save_latents


@pytest.fixture(params=STORAGES)
def whole(request, tmp_path):
    path = tmp_path / "a.losatok"
    save_latents(path, latents(logvar=True, storage=request.param))
    return path


def closeness(storage, expected):
    """How near ``expected`` comes back (of integers the tests of the storage tell more)."""
    spread = (expected.amax() - expected.amin()).item()
    return {"float32": 0.0, "float16": 2e-3, "int8": spread / 500, "int4": spread / 29}[storage]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("logvar", [False, True])
@pytest.mark.parametrize(("tokens", "dim"), [(1, 1), (3, 128), (1000, 7)])
def test_what_is_saved_is_loaded(tmp_path, tokens, dim, logvar, storage):
    written = latents(tokens, dim, logvar, storage)
    path = tmp_path / "new" / "a.losatok"
    save_latents(path, written)
    read = load_latents(path, written.header.fingerprint)
    assert read.header == written.header == read_header(path)
    assert read.storage == storage == read_storage(path)
    assert (read.logvar is None) == (not logvar)
    if storage == "codes":
        assert read.mu is None
        assert torch.equal(read.codes, written.codes)
    else:
        assert read.codes is None
        assert read.mu.dtype == torch.float32
        torch.testing.assert_close(read.mu, written.mu, rtol=0, atol=closeness(storage, written.mu))
    if logvar:
        exact = storage == "float32"
        torch.testing.assert_close(read.logvar, written.logvar, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-6)


def test_files_that_are_read_are_written_again_alike(tmp_path, whole):
    read = load_latents(whole)
    save_latents(tmp_path / "again.losatok", read)
    again = load_latents(tmp_path / "again.losatok")
    for name in ("mu", "logvar", "codes"):
        one, other = getattr(read, name), getattr(again, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert again.header == read.header


# --- versions ---------------------------------------------------------------------------------------------------------


def known(tokens=6, dim=8):
    """The latents in every stored file: multiples of 1/16, which come back exactly from all but integers."""
    t, i = torch.arange(tokens)[:, None], torch.arange(dim)[None]
    return ((37 * t + 11 * i) % 256 - 100) / 16, torch.stack([37 * t[:, 0] % 1024, 5 * t[:, 0] % 3], 1)


VERSIONS = {
    "version_1": 0.0,
    "version_1_float16": 0.0,
    "version_2_float32": 0.0,
    "version_2_float16": 0.0,
    "version_2_int8": 0.026,
    "version_2_int4": 0.43,
    "version_2_codes": None,
    "version_3_float32": 0.0,
    "version_3_int8": 0.026,
}
"""The stored files, and how near their latents come back: half a step of a range of at most 12.75."""


@pytest.mark.parametrize("name", VERSIONS)
def test_every_version_that_was_ever_written_is_read(data, name):
    read = load_latents(data / "latents" / f"{name}.losatok", "0123456789abcdef")
    mu, codes = known()
    if name[8] == "3":
        assert (read.header.dims, read.header.latent_dim) == (5, 8)
        mu[:, 5:] = 0
    assert read.header.samples == 6 * 640 - 17
    assert read.header.source_name == "recording.flac"
    if VERSIONS[name] is None:
        assert torch.equal(read.codes, codes)
        assert (read.header.quantizer_name, read.header.code_sizes) == ("rvq 1024,3", (1024, 3))
    else:
        torch.testing.assert_close(read.mu, mu, rtol=0, atol=VERSIONS[name])
    torch.testing.assert_close(read.logvar, -mu, rtol=0, atol=0)
    assert describe(data / "latents" / f"{name}.losatok")["format"] == f"losatok-latents, version {name[8]}"


@pytest.mark.parametrize("storage", STORAGES)
def test_the_newest_version_is_written_as_it_was(data, tmp_path, storage):
    """A change of these bytes is a new version of the format."""
    stored = data / "latents" / f"version_2_{storage}.losatok"
    mu, codes = known()
    sizes = {"quantizer": "fedcba9876543210", "quantizer_name": "rvq 1024,3", "code_sizes": (1024, 3)}
    more = sizes if storage == "codes" else {}
    made = latents(6, 8, True, "float32", source_name="recording.flac", source_samples=10_537, **more)
    save_latents(tmp_path / "a.losatok", replace(made, mu=mu, logvar=-mu, codes=codes, storage=storage))
    assert (tmp_path / "a.losatok").read_bytes() == stored.read_bytes()


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_cut_latents_are_written_as_they_were(data, tmp_path, storage):
    mu, _ = known()
    mu[:, 5:] = 0
    made = latents(6, 8, True, "float32", source_name="recording.flac", source_samples=10_537, dims=5)
    save_latents(tmp_path / "a.losatok", replace(made, mu=mu, logvar=-mu, storage=storage))
    assert (tmp_path / "a.losatok").read_bytes() == (data / "latents" / f"version_3_{storage}.losatok").read_bytes()


@pytest.mark.parametrize("storage", [s for s in STORAGES if s != "codes"])
def test_only_the_dimensions_that_were_kept_are_stored(tmp_path, storage):
    made = latents(300, 8, True, storage, dims=3)
    mu = torch.where(torch.arange(8) < 3, made.mu, 0.0)
    save_latents(tmp_path / "cut.losatok", replace(made, mu=mu, logvar=-mu))
    read = load_latents(tmp_path / "cut.losatok")
    assert read.header == made.header
    assert read.header.stored_dims == 3
    torch.testing.assert_close(read.mu, mu, rtol=0, atol=closeness(storage, mu))
    assert not read.mu[:, 3:].any()
    assert not read.logvar[:, 3:].any()
    save_latents(tmp_path / "whole.losatok", replace(made, header=replace(made.header, dims=None)))
    cut, whole = (describe(tmp_path / f"{name}.losatok")["latent_bits_per_second"] for name in ("cut", "whole"))
    assert cut == pytest.approx(3 / 8 * whole)
    with pytest.raises(ValueError, match="mu should be zero from dimension 3 on, since dims is"):
        save_latents(tmp_path / "cut.losatok", made)
    with pytest.raises(ValueError, match="codes should be zero from dimension 3 on"):
        save_latents(tmp_path / "cut.losatok", latents(dims=3, storage="codes"))


@pytest.mark.parametrize("dims", [0, 9, -1, None, True, "3", 2**70])
def test_dimensions_that_cannot_be_are_refused(tmp_path, dims):
    made = latents(dims=3)
    save_latents(tmp_path / "a.losatok", replace(made, mu=torch.where(torch.arange(8) < 3, made.mu, 0.0)))
    rewrite(tmp_path / "a.losatok", lambda head, entry: entry.update(dims=dims))
    with pytest.raises(LatentFileError, match="damaged header: dims is"):
        load_latents(tmp_path / "a.losatok")
    save_latents(tmp_path / "b.losatok", latents(storage="codes"))
    rewrite(tmp_path / "b.losatok", lambda head, entry: entry.update(version=3, dims=3))
    with pytest.raises(LatentFileError, match="damaged header: dims is 3"):
        load_latents(tmp_path / "b.losatok")


@pytest.mark.parametrize("version", [0, 4, -1, "1", None, True, 1.0, [1] * 500])
def test_an_unknown_version_is_refused_by_its_number(whole, version):
    rewrite(whole, lambda head, entry: entry.update(version=version))
    with pytest.raises(LatentFileError, match=r"version .*reads versions 1 to 3.*upgrade") as caught:
        load_latents(whole)
    assert repr(version)[:50] in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_file_is_a_safetensors_file(whole):
    _, entry, _ = parts(whole)
    assert sorted(load_file(whole)) == entry["tensors"]


def test_the_same_latents_give_the_same_bytes_in_any_process(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from formats.latent_cases import STORAGES, latents; "
        "from losatok_ext.formats.latent_files import save_latents; "
        "[save_latents(f'{sys.argv[1]}/{s}', latents(logvar=True, storage=s)) for s in STORAGES]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parents[1])], check=True)
    for storage in STORAGES:
        save_latents(tmp_path / "here", latents(logvar=True, storage=storage))
        assert (tmp_path / storage).read_bytes() == (tmp_path / "here").read_bytes()


# --- what is inside ---------------------------------------------------------------------------------------------------


def test_describe_notices_a_flipped_bit(whole):
    content = bytearray(whole.read_bytes())
    content[-3] ^= 4
    whole.write_bytes(content)
    with pytest.raises(LatentFileError, match="does not match its checksum; encode the recording again"):
        describe(whole)


def test_describe_says_what_is_inside(whole):
    facts = describe(whole)
    read = load_latents(whole)
    assert facts["storage"] == read.storage
    assert facts["tensors"] == sorted(load_file(whole))
    assert facts["source_name"] == 'ein "Name" 音.flac'
    assert facts["quantizer"] == (None if read.codes is None else "odd (fedcba9876543210)")
    seconds = (5 * 640 - 17) / 16_000
    assert facts["seconds"] == pytest.approx(seconds)
    assert facts["bytes"] == whole.stat().st_size
    assert facts["kbit_per_second"] == pytest.approx(facts["bytes"] * 8 / 1000 / seconds)
    payload = sum(t.numel() * t.element_size() for t in load_file(whole).values())
    assert facts["latent_bits_per_second"] == pytest.approx(payload * 8 / seconds)
    json.dumps(facts)


def test_latents_of_another_model_need_force(whole):
    says = r"encoded by model 0123456789abcdef.*, and this is model ffff.*force"
    with pytest.raises(LatentFileError, match=says) as caught:
        load_latents(whole, "ffff")
    named = "with the quantizer odd (fedcba9876543210)" in str(caught.value)
    assert named == (read_storage(whole) == "codes")
    assert load_latents(whole, "ffff", force=True).header.tokens == 5


# --- what is not written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "change", "says"),
    [
        ("float32", {"mu": torch.zeros(4, 8)}, r"mu should have shape \[T, d\] = \[5, 8\], got \[4, 8\]"),
        ("int8", {"mu": torch.zeros(5, 9)}, "mu should have shape"),
        ("float32", {"logvar": torch.zeros(5, 7)}, "logvar should have shape"),
        ("int4", {"mu": torch.full((5, 8), torch.inf)}, "NaN or infinite"),
        ("float32", {"logvar": torch.full((5, 8), torch.nan)}, "NaN or infinite"),
        ("float32", {"mu": None}, "mu should be given: storage 'float32' stores it"),
        ("codes", {"codes": None}, "codes should be given"),
        ("codes", {"codes": torch.zeros(5, 2, dtype=torch.int64)}, r"codes should have shape \[T, Q\] = \[5, 3\]"),
        ("codes", {"codes": torch.full((5, 3), -1)}, r"codes should lie within 0..1023 at place 0, got -1..-1"),
        ("codes", {"codes": torch.tensor([[0, 3, 0]] * 5)}, r"within 0..2 at place 1, got 3..3"),
        ("float32", {"storage": "int2"}, "storage should be one of float32, float16, int8, int4, codes, got 'int2'"),
    ],
)
def test_bad_latents_are_not_written(tmp_path, storage, change, says):
    with pytest.raises(ValueError, match=says):
        save_latents(tmp_path / "a.losatok", replace(latents(storage=storage), **change))
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_float16_is_said(tmp_path):
    large = replace(latents(storage="float16"), mu=torch.full((5, 8), 1e5))
    with pytest.raises(LatentFileError, match=r"a\.losatok cannot be written: a latent of 100000 is too large for"):
        save_latents(tmp_path / "a.losatok", large)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_reported(tmp_path):
    (tmp_path / "a.losatok").mkdir()
    with pytest.raises(LatentFileError, match="cannot be written"):
        save_latents(tmp_path / "a.losatok", latents())
    assert [p.name for p in tmp_path.iterdir()] == ["a.losatok"]


def test_an_interrupted_write_leaves_the_old_file(whole, monkeypatch):
    before = whole.read_bytes()
    monkeypatch.setattr(latent_container, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(LatentFileError, match="cannot be written: No space left"):
        save_latents(whole, latents())
    assert whole.read_bytes() == before
    assert [p.name for p in whole.parent.iterdir()] == [whole.name]


def test_strided_and_half_precision_latents(tmp_path):
    x = latents()
    save_latents(tmp_path / "a.losatok", replace(x, mu=x.mu.t().contiguous().t()))
    assert torch.equal(load_latents(tmp_path / "a.losatok").mu, x.mu)
    save_latents(tmp_path / "b.losatok", replace(x, mu=x.mu.bfloat16()))
    assert torch.equal(load_latents(tmp_path / "b.losatok").mu, x.mu.bfloat16().float())


def test_values_that_are_not_finite_are_refused_even_with_a_right_checksum(tmp_path):
    path = tmp_path / "a.losatok"
    made = latents()
    entry = {**asdict(made.header), "code_sizes": [], "storage": "float32", "tensors": ["mu"]}
    latent_container.write(path, 2, entry, {"mu": torch.full((5, 8), torch.nan)})
    with pytest.raises(LatentFileError, match="mu holds NaN or infinite values"):
        load_latents(path)


def test_codes_out_of_range_are_refused_even_with_a_right_checksum(tmp_path):
    path = tmp_path / "a.losatok"
    made = latents(storage="codes", sizes=(600,))
    save_latents(path, made)
    head, entry, payload = parts(path)
    entry["code_sizes"] = [513]  # as many bits
    entry["crc32"] = latent_container.checksum(entry, load_file(path))
    write_parts(path, head, entry, payload)
    with pytest.raises(LatentFileError, match=r"is damaged: codes should lie within 0\.\.512 at place 0"):
        load_latents(path)
