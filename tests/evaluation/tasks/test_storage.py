"""The storage report: its figures against what the definitions give, and what it does with bad recordings."""

import dataclasses
import itertools
import json

import pytest
import torch

from losatok_ext.audio.files import read_audio
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.spectra import MEL_LOSS
from losatok_ext.evaluation.reporting.markdown import document
from losatok_ext.evaluation.tasks.storage import FLOATS, StorageResult, StorageRow, evaluate_storage
from losatok_ext.evaluation.tasks.storage_report import storage_report
from losatok_ext.models import LoSATok, LoSATokConfig
from losatok_ext.nn import MultiScaleMelLoss, ResidualVQConfig, VQConfig
from losatok_ext.recordings.labelled import Item
from small_models import small_config

SAMPLES = (16_000, 9_001, 25_600)


@pytest.fixture(scope="module")
def coded(model):
    torch.manual_seed(1)
    return model.with_quantizer(ResidualVQConfig(stages=2, codebook_size=32, kmeans=False))


@pytest.fixture(scope="module")
def report(model, coded, tones):
    return evaluate_storage(model, tones, [coded])


def row_of(report, storage):
    (row,) = [row for row in report.rows if row.storage == storage]
    return row


def test_every_storage_has_a_row_from_most_bits_to_fewest(report):
    assert [row.storage for row in report.rows] == [*FLOATS, "rvq 2x32"]
    assert report.recordings == 3
    assert report.seconds == pytest.approx(sum(SAMPLES) / 16_000)
    assert report.failures == []


def test_bits_are_those_of_the_tensors(report):
    tokens = [-(-samples // 640) for samples in SAMPLES]
    frames, blocks, seconds = sum(tokens), len(tokens), sum(SAMPLES) / 16_000
    expected = {
        "float32": 32 * 8 * frames,
        "float16": 16 * 8 * frames,
        "int8": 8 * 8 * frames + 64 * 8 * blocks,
        "int4": 8 * 8 * sum(-(-t // 2) for t in tokens) + 64 * 8 * blocks,
        "rvq 2x32": 8 * sum(-(-10 * t // 8) for t in tokens),
    }
    for storage, bits in expected.items():
        row = row_of(report, storage)
        assert row.bits_per_second == pytest.approx(bits / seconds, rel=1e-9)
        assert row.file_bits_per_second > row.bits_per_second


def test_errors_and_distances_are_as_defined(model, coded, tones, report):
    mel = MultiScaleMelLoss(LoSATokConfig.mel_loss_windows, LoSATokConfig.mel_loss_bins, 16_000)
    rows, codes, distances = [], [], []
    for item in tones:
        audio = read_audio(item.path)
        padded = torch.nn.functional.pad(audio, (0, model.config.covering_samples(len(audio)) - len(audio)))
        plain, quantized = (m.encode(padded) for m in (model, coded))
        rows.append(plain.mu[0].double())
        codes.append(quantized.z[0].double())
        heard = [model.decode(x.z)[:, : len(audio)] for x in (plain, quantized)]
        distances.append([len(audio), mel(heard[0], audio[None]), mel(heard[1], audio[None]), mel(heard[1], heard[0])])
    rows, codes, table = torch.cat(rows), torch.cat(codes), torch.tensor(distances, dtype=torch.float64)
    weighted = (table[:, :1] * table[:, 1:]).sum(0) / table[:, 0].sum()
    exact, row = row_of(report, "float32"), row_of(report, "rvq 2x32")
    assert (exact.latent_error, exact.mel_loss_to_float32) == (0.0, 0.0)
    assert exact.mel_loss_to_recording == pytest.approx(float(weighted[0]), rel=1e-5)
    assert row.mel_loss_to_recording == pytest.approx(float(weighted[1]), rel=1e-5)
    assert row.mel_loss_to_float32 == pytest.approx(float(weighted[2]), rel=1e-5)
    error = ((codes - rows).square().sum() / (rows - rows.mean(0)).square().sum()).sqrt()
    assert row.latent_error == pytest.approx(float(error), rel=1e-4)


def test_fewer_bits_err_more(report):
    rows = [row_of(report, storage) for storage in ("float32", "float16", "int8", "int4")]
    for before, after in itertools.pairwise(rows):
        assert after.latent_error > 3 * before.latent_error
        assert after.mel_loss_to_float32 > before.mel_loss_to_float32


def test_a_model_with_a_quantizer_is_compared_with_its_own_latents(coded, tones, report):
    own = evaluate_storage(coded, tones)
    # To rounding: libraries may add up in another order where memory lies otherwise.
    for mine, theirs in zip(map(dataclasses.asdict, own.rows), map(dataclasses.asdict, report.rows), strict=True):
        assert mine.pop("storage") == theirs.pop("storage")
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-7)
    assert own.fingerprint == report.fingerprint


def test_two_quantizers_of_one_name_are_told_apart(model, coded, tones):
    torch.manual_seed(2)
    other = model.with_quantizer(ResidualVQConfig(stages=2, codebook_size=32, kmeans=False))
    names = [row.storage for row in evaluate_storage(model, tones[1:2], [coded, other]).rows]
    assert "rvq 2x32" in names
    assert f"rvq 2x32 ({other.quantizer_fingerprint()})" in names


def test_models_that_do_not_belong_together_are_refused(model, coded, tones):
    torch.manual_seed(3)
    other = LoSATok(small_config()).eval()
    with pytest.raises(UserError, match="has no quantizer; pass what `losatok fit-quantizer` wrote"):
        evaluate_storage(model, tones, [other])
    stranger = other.with_quantizer(VQConfig(codebook_size=4))
    with pytest.raises(UserError, match=rf"with vq 4 is no copy of model {model.fingerprint()}"):
        evaluate_storage(model, tones, [stranger])


def test_bad_recordings_are_named_and_the_others_measured(model, tones, tmp_path):
    missing, empty = tmp_path / "missing.wav", tmp_path / "empty.wav"
    empty.touch()
    bad = [Item(path, path.name) for path in (missing, empty)]
    seen = []
    report = evaluate_storage(model, [bad[0], tones[1], bad[1]], progress=seen.append)
    assert report.recordings == 1
    assert [failure.path for failure in report.failures] == [missing, empty]
    assert len(seen) == 3
    with pytest.raises(UserError, match=r"no recordings to measure; the first: .*missing\.wav does not exist"):
        evaluate_storage(model, bad)


def test_what_is_no_fault_of_the_recording_is_named_too_and_debug_lets_it_through(model, tones, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("first line. more")

    monkeypatch.setattr("losatok_ext.evaluation.tasks.storage.decode_clip", broken)
    with pytest.raises(UserError, match="RuntimeError: first line"):
        evaluate_storage(model, tones[:1])
    with pytest.raises(RuntimeError, match="more"):
        evaluate_storage(model, tones[:1], debug=True)


def test_the_report(report):
    written = storage_report(report)
    (table,) = written.tables
    assert [row[0] for row in table.rows] == [*FLOATS, "rvq 2x32"]
    assert written.facts["latent"] == "8 dimensions at 25 Hz"
    assert (written.facts["recordings"], written.facts["audio"]) == ("3", "3.2 s")
    assert f"- Mel loss: {MEL_LOSS}." in document(written)
    values = json.loads(json.dumps(written.to_dict(), allow_nan=False))
    assert values["rows"][0]["storage"] == "float32"
    assert values["seconds"] == report.seconds
    error, mel = written.charts
    assert error.lines["latents"].labels == ["int4", "int8", "float16"]  # an axis of logarithms has no place for 0
    assert mel.lines["latents"].labels[-1] == "float32"
    assert not mel.lines["codes"].joined


def test_without_any_error_only_the_mel_loss_is_drawn():
    rows = [StorageRow(name, bits, bits + 1.0, 0.0, 0.0, 0.0) for name, bits in (("float32", 9.0), ("int8", 3.0))]
    written = storage_report(StorageResult("0" * 16, 25.0, 8, rows, recordings=1, seconds=1.0))
    assert [chart.title for chart in written.charts] == ["Mel loss to the recording"]
