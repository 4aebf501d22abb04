"""The precision report: its figures against what the definitions give, and what it does with bad recordings."""

import json
import math

import pytest
import torch

from losatok_ext.audio.files import read_audio, write_audio
from losatok_ext.errors import UserError
from losatok_ext.evaluation.reporting.markdown import document
from losatok_ext.evaluation.tasks import precision, side_by_side
from losatok_ext.evaluation.tasks.precision import PrecisionResult, evaluate_precision, in_each_precision
from losatok_ext.evaluation.tasks.precision_report import precision_report
from losatok_ext.models.storage.precision import DTYPES, dtype_name
from losatok_ext.recordings.labelled import Item
from small_models import tone


@pytest.fixture(scope="module")
def models(model):
    return in_each_precision(model)


@pytest.fixture(scope="module")
def items(tones):
    return tones[:2]


@pytest.fixture(scope="module")
def report(models, items):
    return evaluate_precision(models, items, "A model", "2026-11-25", budget=0.0)


def test_each_precision_is_what_it_says(models):
    assert list(models) == list(DTYPES)
    assert [dtype_name(model) for model in models.values()] == list(DTYPES)
    assert len({model.fingerprint() for model in models.values()}) == 1
    assert models["bfloat16"].fc_mu.weight.data_ptr() == models["float32"].fc_mu.weight.data_ptr()


def test_errors_are_those_of_the_definitions(models, items, report):
    assert [row.dtype for row in report.rows] == list(DTYPES)
    exact = models["float32"]
    clips = [read_audio(item.path, 16_000) for item in items]
    for row, model in zip(report.rows, models.values(), strict=True):
        pairs = [(model.encode(clip).mu[0], exact.encode(clip).mu[0]) for clip in clips]
        errors = [float((ours - z).norm() / z.norm()) for ours, z in pairs]
        ours, z = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        assert row.token_error == pytest.approx(float((ours - z).norm() / z.norm()), rel=1e-4)
        assert row.worst_token_error == pytest.approx(max(errors), rel=1e-4)
        assert row.cosine == pytest.approx(float(torch.cosine_similarity(ours, z, dim=-1).mean()), rel=1e-5)
        heard = torch.cat([model.decode(ours[None])[0] for ours, _ in pairs])
        alone = torch.cat([model.decode(z[None])[0] for _, z in pairs])
        wanted = torch.cat([exact.decode(z[None])[0] for _, z in pairs])
        for measured, waveform in ((row.snr, heard), (row.decoder_snr, alone)):
            noise = float((waveform - wanted).square().sum())
            expected = 10 * math.log10(float(wanted.square().sum()) / noise) if noise else math.inf
            assert measured == pytest.approx(expected, rel=1e-3)
    exact, half, int8 = report.rows
    assert (exact.token_error, exact.cosine, exact.mel_loss) == (0, pytest.approx(1), 0)
    assert 0 < half.token_error < int8.token_error
    assert half.snr > int8.snr
    assert 0 < half.mel_loss < int8.mel_loss


def test_size_speed_and_memory(models, report, tmp_path):
    for row, model in zip(report.rows, models.values(), strict=True):
        model.save_pretrained(tmp_path)
        assert 0 < (tmp_path / "model.safetensors").stat().st_size - row.bytes < 20_000  # the names and shapes
        assert row.encode_seconds > 0
        assert row.encode_speed == report.rows[0].encode_seconds / row.encode_seconds
        assert row.decode_speed == report.rows[0].decode_seconds / row.decode_seconds
        assert row.peak_bytes >= 0
    assert report.rows[0].bytes > report.rows[1].bytes > report.rows[2].bytes


def test_json_and_markdown(report):
    written = precision_report(report)
    values = json.loads(json.dumps(written.to_dict(), allow_nan=False))
    assert values["report"] == "precision"
    assert values["rows"][0]["snr"] is None
    assert PrecisionResult.from_dict(values) == report
    text = document(written)
    assert "\n| float32 | 0 | 0 | 1.00000 | exact | exact | 0.000 | " in text
    assert "\nA model; 2 recordings, 1.6 s. " in text
    assert [bar.label for bar in written.charts[0].bars] == list(DTYPES)


def test_bad_recordings_stop_nothing(models, items, tmp_path):
    short, broken = tmp_path / "short.wav", tmp_path / "broken.wav"
    write_audio(short, tone(300), 16_000)
    broken.write_bytes(b"no audio")
    bad = [Item(path, path.name) for path in (short, broken)]
    seen = []
    report = evaluate_precision(models, [*bad, items[1]], "A model", "today", 0.0, seen.append)
    assert report.recordings == 1
    assert [failure.path for failure in report.failures] == [short, broken]
    assert "shorter than a token" in report.failures[0].message
    assert len(seen) == 3
    with pytest.raises(UserError, match=r"no recordings to measure; the first: .*short"):
        evaluate_precision(models, bad, "A model", "today")
    with pytest.raises(UserError, match="shorter than a token"):
        evaluate_precision(models, bad, "A model", "today", debug=True)


def test_a_recording_that_fails_half_way_adds_nothing(models, items, monkeypatch):
    whole = evaluate_precision(models, items[:1], "m", "d", budget=0.0)
    lowest = list(models)[-1]
    encode, calls = models[lowest].encode, []

    def fails_the_second_time(audio, *more, **options):
        calls.append(len(audio))
        if len(calls) == 2:
            raise RuntimeError("half way")
        return encode(audio, *more, **options)

    monkeypatch.setattr(models[lowest], "encode", fails_the_second_time)
    found = evaluate_precision(models, items, "m", "d", budget=0.0)
    assert (found.recordings, len(found.failures)) == (1, 1)
    for ours, theirs in zip(found.rows, whole.rows, strict=True):
        assert (ours.token_error, ours.cosine, ours.mel_loss) == (
            theirs.token_error, theirs.cosine, theirs.mel_loss
        )  # fmt: skip


def test_a_system_that_does_not_tell_its_peak_is_said_so(models, items, monkeypatch):
    def unknown(*_):
        raise side_by_side.PeakUnknownError("no VmHWM")

    monkeypatch.setattr(precision, "peak_memory", unknown)
    report = evaluate_precision(models, items[:1], "m", "d", budget=0.0)
    assert {row.peak_bytes for row in report.rows} == {None}
    assert "| not known |" in document(precision_report(report))
