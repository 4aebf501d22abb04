"""Encoding and decoding many files: the model's own results, whole files, and no failure that stops the others."""

import os
import threading

import numpy as np
import pytest
import soundfile
import torch

from losatok_ext.audio.files import read_audio, write_audio
from losatok_ext.errors import LatentFileError, UserError
from losatok_ext.formats import StoreOptions, load_latents, save_latents
from losatok_ext.jobs import tokenize as jobs
from losatok_ext.models import LoSATok
from losatok_ext.nn import ResidualVQConfig, VQConfig
from losatok_ext.ops.dispatch import BackendUnavailableError
from losatok_ext.recordings.find import Source
from small_models import small_config, tone


@pytest.fixture(scope="module")
def other_model():
    torch.manual_seed(1)
    return LoSATok(small_config()).eval()


def recordings(folder, *samples):
    sources = []
    for index, count in enumerate(samples):
        path = folder / "in" / f"{index}.wav"
        write_audio(path, tone(count, index), 16_000)
        sources.append(Source(path, path.relative_to(folder / "in")))
    return sources


def encode(model, sources, folder, **options):
    outputs = [folder / source.relative.with_suffix(".losatok") for source in sources]
    return jobs.encode_files(model, sources, outputs, **options), outputs


@pytest.mark.parametrize("samples", [16_000, 12_800, 12_801, 12_799, 1279, 480, 100, 1])
def test_a_file_holds_the_models_own_latents_and_decodes_to_its_own_length(tmp_path, model, samples):
    sources = recordings(tmp_path, samples)
    summary, (output,) = encode(model, sources, tmp_path, store=StoreOptions(logvar=True))
    assert summary.failures == []
    latents = load_latents(output, model.fingerprint())
    audio = read_audio(sources[0].path)
    padded = torch.nn.functional.pad(audio, (0, model.config.covering_samples(samples) - samples))
    expected = model.encode(padded)
    torch.testing.assert_close(latents.mu, expected.mu[0], rtol=0, atol=0)
    torch.testing.assert_close(latents.logvar, expected.logvar[0], rtol=0, atol=0)
    assert (latents.header.samples, latents.header.source_samples) == (samples, samples)
    decoded = jobs.decode_clip(model, latents)
    assert decoded.shape == (samples,)
    torch.testing.assert_close(decoded, model.reconstruct(audio)[0], rtol=0, atol=1e-6)
    assert decoded.abs().max() > 0


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_are_remembered_and_the_length_at_16_khz_is_restored(tmp_path, model, rate):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([np.sin(np.arange(rate * 2 // 3) / 9)] * 2, 1) * 0.3, rate)
    summary, (output,) = encode(model, [Source(path, path.relative_to(tmp_path))], tmp_path)
    header = load_latents(output).header
    assert summary.written == [output]
    assert (header.source_name, header.source_rate, header.source_samples) == ("a.flac", rate, rate * 2 // 3)
    assert header.samples == len(read_audio(path))
    assert jobs.decode_clip(model, load_latents(output)).shape == (header.samples,)


def test_bad_files_do_not_stop_the_others(tmp_path, model):
    sources = recordings(tmp_path, 8_000, 8_000, 8_000)
    sources[1].path.write_bytes(b"")
    missing = Source(tmp_path / "missing.wav", tmp_path / "missing.wav")
    seen = []
    summary, outputs = encode(
        model, [missing, *sources], tmp_path / "out", on_source=lambda source: seen.append(source.path)
    )
    assert [failure.path for failure in summary.failures] == [missing.path, sources[1].path]
    assert "does not exist" in summary.failures[0].message
    assert "is empty" in summary.failures[1].message
    assert summary.written == [outputs[1], outputs[3]]
    assert summary.audio_seconds == pytest.approx(1.0)
    assert seen == [missing.path, *(source.path for source in sources)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.losatok", "2.losatok"]


def test_a_failing_model_is_reported_per_file_and_debug_lets_it_through(tmp_path, model, monkeypatch):
    sources = recordings(tmp_path, 8_000, 8_000)
    real = jobs.encode_clip

    def fails_on_the_first(model, audio, info, *more):
        if info.path == sources[0].path:
            raise RuntimeError("first line. second sentence\nmore")
        return real(model, audio, info, *more)

    monkeypatch.setattr(jobs, "encode_clip", fails_on_the_first)
    summary, _ = encode(model, sources, tmp_path / "out")
    assert [failure.message for failure in summary.failures] == [f"{sources[0].path}: RuntimeError: first line"]
    assert len(summary.written) == 1
    with pytest.raises(RuntimeError, match="second sentence"):
        encode(model, sources, tmp_path / "out2", debug=True)


def test_what_no_file_could_be_encoded_with_stops_at_once(tmp_path, model, monkeypatch):
    def unavailable(*_, **__):
        raise BackendUnavailableError("no kernels here")

    monkeypatch.setattr(jobs, "encode_clip", unavailable)
    with pytest.raises(BackendUnavailableError, match="no kernels here"):
        encode(model, recordings(tmp_path, 8_000, 8_000), tmp_path)


def test_memory_that_runs_out_is_said_in_plain_words(tmp_path, model, monkeypatch):
    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 TiB")

    monkeypatch.setattr(jobs, "encode_clip", too_large)
    summary, _ = encode(model, recordings(tmp_path, 8_000), tmp_path)
    assert "does not fit in memory; cut it" in summary.failures[0].message


def test_existing_outputs_are_kept_unless_overwritten(tmp_path, model):
    sources = recordings(tmp_path, 8_000, 9_000)
    _, outputs = encode(model, sources[:1], tmp_path / "out")
    before = outputs[0].stat().st_mtime_ns
    summary, outputs = encode(model, sources, tmp_path / "out")
    assert (summary.kept, summary.written) == ([outputs[0]], [outputs[1]])
    assert outputs[0].stat().st_mtime_ns == before
    summary, _ = encode(model, sources, tmp_path / "out", overwrite=True)
    assert (summary.kept, summary.written) == ([], outputs)


def test_an_existing_output_of_something_else_is_not_passed_off(tmp_path, model, other_model):
    sources = recordings(tmp_path, 8_000, 8_000)
    _, outputs = encode(other_model, sources[:1], tmp_path / "out")
    outputs[0].rename(tmp_path / "out" / "1.losatok")
    outputs[0].write_bytes(b"interrupted")
    summary, outputs = encode(model, sources, tmp_path / "out")
    assert "exists and is not a latent file that can be read; pass --overwrite" in summary.failures[0].message
    assert f"written by another model ({other_model.fingerprint()})" in summary.failures[1].message
    assert summary.written == summary.kept == []

    encode(model, sources, tmp_path / "new")
    (tmp_path / "new" / "1.losatok").rename(tmp_path / "new" / "0.losatok")
    summary, _ = encode(model, sources, tmp_path / "new")
    assert "holds 1.wav" in summary.failures[0].message


def test_decoding_files(tmp_path, model, other_model):
    sources = recordings(tmp_path, 8_000, 9_001, 10_000)
    _, latents = encode(model, sources, tmp_path)
    latents[1].write_bytes(latents[1].read_bytes()[:-1])
    inputs = [Source(path, path.relative_to(tmp_path)) for path in latents]
    outputs = [tmp_path / "out" / f"{path.stem}.wav" for path in latents]
    summary = jobs.decode_files(model, inputs, outputs)
    assert [failure.path for failure in summary.failures] == [latents[1]]
    assert summary.written == [outputs[0], outputs[2]]
    assert [len(read_audio(path)) for path in summary.written] == [8_000, 10_000]
    exact = model.reconstruct(read_audio(sources[0].path))[0].clamp(-1, 1)
    torch.testing.assert_close(read_audio(outputs[0]), exact, rtol=0, atol=1e-4)

    refused = jobs.decode_files(other_model, inputs[:1], [tmp_path / "no.wav"])
    assert "was encoded by model" in refused.failures[0].message
    assert jobs.decode_files(other_model, inputs[:1], [tmp_path / "yes.wav"], force=True).written


def test_latents_of_another_width_are_refused_even_by_force(tmp_path, model):
    _, (path,) = encode(model, recordings(tmp_path, 8_000), tmp_path)
    torch.manual_seed(2)
    wider = LoSATok(small_config(latent_dim=12)).eval()
    with pytest.raises(LatentFileError, match=r"8 dimensions.*the model has 12"):
        jobs.decode_clip(wider, load_latents(path, wider.fingerprint(), force=True))


def test_a_name_that_is_no_text_is_stored_readably(tmp_path, model):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    write_audio(path, tone(8_000), 16_000)
    summary, _ = encode(model, [Source(path, path.relative_to(tmp_path))], tmp_path)
    assert summary.failures == []
    (output,) = summary.written
    assert load_latents(output).header.source_name == "caf\N{REPLACEMENT CHARACTER}.wav"
    again, _ = encode(model, [Source(path, path.relative_to(tmp_path))], tmp_path)
    assert again.kept == [output]


def test_reading_runs_one_file_ahead_and_no_further():
    started, release = [], threading.Semaphore(0)

    def read(item):
        started.append(item)
        release.acquire()
        return item

    release.release()
    order = []
    for item, result in jobs.read_ahead([1, 2, 3, 4], read):
        order.append((item, result.result()))
        assert len(started) <= item + 1
        release.release()
    assert order == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert list(jobs.read_ahead([], read)) == []


def test_latents_that_cannot_be_written_fail_alone(tmp_path, model):
    sources = recordings(tmp_path, 8_000, 8_000)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.losatok").mkdir()
    summary, outputs = encode(model, sources, tmp_path / "out", overwrite=True)
    assert "cannot be written" in summary.failures[0].message
    assert summary.written == [outputs[1]]


def test_saved_latents_survive_another_save(tmp_path, model):
    _, (path,) = encode(model, recordings(tmp_path, 8_000), tmp_path)
    latents = load_latents(path)
    before = path.read_bytes()
    save_latents(path, latents)
    assert path.read_bytes() == before
    with pytest.raises(UserError):
        load_latents(tmp_path / "other.losatok")


# --- storages and codes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded(model):
    """The model with two codes per token."""
    torch.manual_seed(3)
    return model.with_quantizer(ResidualVQConfig(stages=2, codebook_size=16, kmeans=False))


@pytest.mark.parametrize("storage", ["float16", "int8", "int4"])
def test_a_file_of_fewer_bits_decodes_to_nearly_the_same(tmp_path, model, storage):
    sources = recordings(tmp_path, 12_345)
    _, (exact,) = encode(model, sources, tmp_path / "exact")
    summary, (small,) = encode(model, sources, tmp_path / "small", store=StoreOptions(storage))
    assert summary.failures == []
    assert load_latents(small).storage == storage
    assert small.stat().st_size < exact.stat().st_size
    one, other = (jobs.decode_clip(model, load_latents(path, model.fingerprint())) for path in (exact, small))
    assert other.shape == (12_345,)
    loss = ((one - other).square().mean() / one.square().mean()).sqrt()
    assert 0 < loss < {"float16": 0.01, "int8": 0.1, "int4": 1.0}[storage]


def test_codes_are_stored_by_default_and_decode_to_what_the_model_hears(tmp_path, coded):
    sources = recordings(tmp_path, 12_345)
    summary, (path,) = encode(coded, sources, tmp_path / "out", store=StoreOptions(logvar=True))
    assert summary.failures == []
    latents = load_latents(path, coded.fingerprint())
    assert latents.storage == "codes"
    assert latents.mu is None
    assert latents.logvar is not None
    assert (latents.header.quantizer_name, latents.header.code_sizes) == ("rvq 2x16", (16, 16))
    assert latents.header.quantizer == coded.quantizer_fingerprint()
    exact = coded.reconstruct(read_audio(sources[0].path))[0]
    torch.testing.assert_close(jobs.decode_clip(coded, latents), exact, rtol=0, atol=1e-6)


def test_means_of_a_model_with_codes_go_through_its_quantizer(tmp_path, coded):
    sources = recordings(tmp_path, 12_345)
    _, (codes,) = encode(coded, sources, tmp_path / "codes")
    _, (means,) = encode(coded, sources, tmp_path / "means", store=StoreOptions("float32"))
    one, other = (jobs.decode_clip(coded, load_latents(path)) for path in (codes, means))
    assert torch.equal(one, other)


def test_one_code_per_token_goes_there_and_back(tmp_path, model):
    torch.manual_seed(4)
    single = model.with_quantizer(VQConfig(codebook_size=10, kmeans=False))
    _, (path,) = encode(single, recordings(tmp_path, 9_000), tmp_path)
    latents = load_latents(path)
    assert latents.codes.shape == (latents.header.tokens, 1)
    expected = single.reconstruct(tone(9_000))[0]
    torch.testing.assert_close(jobs.decode_clip(single, latents), expected, rtol=0, atol=1e-3)  # 16-bit recording


def test_codes_of_another_quantizer_are_refused_by_name(tmp_path, model, coded):
    torch.manual_seed(5)
    other = model.with_quantizer(ResidualVQConfig(stages=3, codebook_size=16, kmeans=False))
    _, (path,) = encode(coded, recordings(tmp_path, 8_000), tmp_path)
    says = rf"with the quantizer rvq 2x16 \({coded.quantizer_fingerprint()}\), and this is model {other.fingerprint()}"
    with pytest.raises(LatentFileError, match=says):
        load_latents(path, other.fingerprint())
    with pytest.raises(LatentFileError, match="codes of the quantizer rvq 2x16, and this model has rvq 3x16"):
        jobs.decode_clip(other, load_latents(path, other.fingerprint(), force=True))
    with pytest.raises(LatentFileError, match="codes of the quantizer rvq 2x16, and this model has no quantizer"):
        jobs.decode_clip(model, load_latents(path, model.fingerprint(), force=True))


def test_what_a_model_cannot_store_is_said_before_any_file(tmp_path, model):
    sources = recordings(tmp_path, 8_000)
    with pytest.raises(UserError, match="--store codes: this model has no quantizer; `losatok fit-quantizer` makes"):
        encode(model, sources, tmp_path / "out", store=StoreOptions("codes"))
    with pytest.raises(UserError, match="--store is 'int2'; it takes float32, float16, int8, int4, codes"):
        encode(model, sources, tmp_path / "out", store=StoreOptions("int2"))
    assert not (tmp_path / "out").exists()


def test_an_existing_output_of_another_storage_is_not_passed_off(tmp_path, model):
    sources = recordings(tmp_path, 8_000)
    encode(model, sources, tmp_path / "out", store=StoreOptions("int8"))
    summary, _ = encode(model, sources, tmp_path / "out", store=StoreOptions("float16"))
    assert "exists and stores int8; pass --overwrite" in summary.failures[0].message
    summary, outputs = encode(model, sources, tmp_path / "out", store=StoreOptions("int8"))
    assert summary.kept == outputs
