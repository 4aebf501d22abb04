"""The reconstruction report: its figures against their definitions, groups, going on, and bad recordings."""

import json

import pytest
import torch

from losatok_ext.audio.files import read_audio, write_audio
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics import spectra, waveform
from losatok_ext.evaluation.metrics.pitch import pitch_error
from losatok_ext.evaluation.reporting.markdown import document
from losatok_ext.evaluation.reporting.writing import report_places, write_report
from losatok_ext.evaluation.tasks import reconstruction as module
from losatok_ext.evaluation.tasks.journal import JournalError
from losatok_ext.evaluation.tasks.reconstruction import METRICS, evaluate_reconstruction
from losatok_ext.evaluation.tasks.reconstruction_report import choose_examples, reconstruction_report
from losatok_ext.models import LoSATok
from losatok_ext.recordings.labelled import Item, find_items
from small_models import small_config, tone

SAMPLES = {"speech": (16_000, 9_001), "music": (25_600,), "noise": (700, 12_800)}


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    lines = []
    for seed, (domain, sizes) in enumerate(SAMPLES.items()):
        for index, samples in enumerate(sizes):
            write_audio(folder / domain / f"{index}.wav", tone(samples, seed + index), 16_000)
            lines.append({"path": f"{domain}/{index}.wav", "domain": domain, "labels": {"take": index}})
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return find_items([folder / "m.jsonl"])[0]


@pytest.fixture(scope="module")
def found(model, items, tmp_path_factory):
    journal = tmp_path_factory.mktemp("report") / "j.jsonl"
    return evaluate_reconstruction(model, items, journal, keys=("domain", "take", "absent"))


def pairs(model, items):
    for item in items:
        audio = read_audio(item.path)
        audio = audio[: len(audio) // 640 * 640]
        yield model.reconstruct(audio[None])[0], audio


def test_figures_of_clips_are_as_defined(model, items, found):
    assert [clip.item for clip in found.clips] == items
    for clip, (ours, theirs) in zip(found.clips, pairs(model, items), strict=True):
        assert clip.seconds == len(theirs) / 16_000
        batch = ours[None], theirs[None]
        pitch = pitch_error(ours, theirs, 16_000)
        expected = {
            "log_band": float(spectra.log_band_distance(*batch)),
            "mel_distance": float(spectra.mel_distance(*batch, 16_000)),
            "stft": float(spectra.stft_distance(*batch)),
            "convergence": float(spectra.spectral_convergence(*batch)),
            "si_sdr": waveform.si_sdr(ours, theirs),
            "voicing": pitch.voicing,
        }
        assert {name: clip.values[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert clip.values["f0_fine"] == pytest.approx(pitch.fine, abs=1e-3)
        assert clip.values["f0_cents"] == pytest.approx(pitch.cents, abs=1e-3)
        assert clip.values["rtf"] > 0
        assert (clip.values["pesq"], clip.values["stoi"]) == (None, None)


def test_the_whole_corpus_scores_as_the_box_does(model, items, found):
    score = spectra.log_band_score(pairs(model, items))
    assert found.constant == pytest.approx(score.constant, rel=1e-5)
    assert found.overall.metrics["log_band_ratio"].mean == pytest.approx(score.ratio, rel=1e-5)


def test_groups_hold_their_clips_and_spreads(found):
    names = [(group.key, group.value, group.clips) for group in found.groups]
    domains = [("domain", "music", 1), ("domain", "noise", 2), ("domain", "speech", 2)]
    assert names == [("", "all", 5), *domains, ("take", "0", 3), ("take", "1", 2)]
    speech = found.groups[3]
    values = torch.tensor(
        [c.values["mel_distance"] for c in found.clips if c.item.domain == "speech"], dtype=torch.float64
    )
    assert speech.metrics["mel_distance"].mean == pytest.approx(float(values.mean()))
    assert speech.metrics["mel_distance"].spread == pytest.approx(float(values.std()))
    assert found.groups[1].metrics["mel_distance"].spread is None
    spent = [(c.values["rtf"] * c.seconds, c.seconds) for c in found.clips if c.item.domain == "speech"]
    assert speech.metrics["rtf"].mean == pytest.approx(sum(s for s, _ in spent) / sum(s for _, s in spent))


def test_it_goes_on_where_it_was_stopped(model, items, tmp_path, monkeypatch):
    measured = []
    real = module.measure_clip

    def measure(model, audio, perceptual=()):
        measured.append(len(audio))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return real(model, audio, perceptual)

    monkeypatch.setattr(module, "measure_clip", measure)
    with pytest.raises(KeyboardInterrupt):
        evaluate_reconstruction(model, items, tmp_path / "j.jsonl")
    found = evaluate_reconstruction(model, items, tmp_path / "j.jsonl")
    assert len(measured) == 3 + len(items) - 2
    assert len(found.clips) == len(items)
    again = evaluate_reconstruction(model, items, tmp_path / "j.jsonl")
    assert len(measured) == 3 + len(items) - 2
    assert again == found
    evaluate_reconstruction(model, items, tmp_path / "j.jsonl", fresh=True)
    assert len(measured) == 3 + 2 * len(items) - 2


def test_figures_of_another_model_or_with_other_measures_are_not_mixed(model, items, tmp_path):
    evaluate_reconstruction(model, items[:1], tmp_path / "j.jsonl")
    torch.manual_seed(1)
    with pytest.raises(JournalError, match="another model"):
        evaluate_reconstruction(LoSATok(small_config()).eval(), items[:1], tmp_path / "j.jsonl")
    with pytest.raises(JournalError, match="another measures"):
        evaluate_reconstruction(model, items[:1], tmp_path / "j.jsonl", perceptual=["pesq"])


def test_bad_recordings_are_named_and_the_others_measured(model, items, tmp_path, monkeypatch):
    write_audio(tmp_path / "short.wav", tone(639), 16_000)
    (tmp_path / "empty.wav").touch()
    bad = [Item(tmp_path / name, name) for name in ("gone.wav", "short.wav", "empty.wav")]
    seen = []
    found = evaluate_reconstruction(model, [*bad, items[0]], tmp_path / "j.jsonl", progress=seen.append)
    assert [clip.item for clip in found.clips] == items[:1]
    says = [failure.message for failure in found.failures]
    for message, part in zip(says, ("does not exist", "shorter than one token (640 samples)", "is empty"), strict=True):
        assert part in message
    assert len(seen) == 4
    with pytest.raises(UserError, match=r"no recordings to measure; the first: .*gone\.wav does not exist"):
        evaluate_reconstruction(model, bad, tmp_path / "k.jsonl")

    def broken(*_):
        raise RuntimeError("what. ever")

    monkeypatch.setattr(module, "measure_clip", broken)
    with pytest.raises(UserError, match="RuntimeError: what"):
        evaluate_reconstruction(model, items[:1], tmp_path / "k.jsonl")
    with pytest.raises(RuntimeError):
        evaluate_reconstruction(model, items[:1], tmp_path / "k.jsonl", debug=True)


def test_a_disk_that_is_full_ends_it(model, items, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(JournalError, match="No space left"):
        evaluate_reconstruction(model, items, tmp_path / "j.jsonl")


def test_silence_has_figures_that_json_can_hold(model, tmp_path):
    write_audio(tmp_path / "silence.wav", torch.zeros(16_000), 16_000)
    found = evaluate_reconstruction(model, find_items([tmp_path])[0], tmp_path / "j.jsonl")
    values = found.clips[0].values
    assert (values["convergence"], values["si_sdr"], values["f0_cents"]) == (None, None, None)
    assert values["log_band_ratio"] is None  # its own constant spectrum is it
    write_report(reconstruction_report(model, found), report_places(tmp_path, "reconstruction", False))
    assert json.loads((tmp_path / "reconstruction.json").read_text())["clips"][0]["si_sdr"] is None


def test_which_perceptual_measures_are_made(monkeypatch):
    missing = {"pesq": None, "stoi": "pystoi"}
    monkeypatch.setattr(waveform, "missing_package", missing.__getitem__)
    chosen, notes = module.perceptual_measures(None, None)
    assert chosen == ["pesq"]
    assert notes == {"STOI": "not measured, pystoi is not installed: pip install pystoi"}
    assert module.perceptual_measures(False, False) == ([], {})
    with pytest.raises(UserError, match="--stoi needs pystoi"):
        module.perceptual_measures(None, True)


def test_the_report_has_every_figure(model, found, tmp_path):
    report = reconstruction_report(model, found, examples=4)
    assert [table.title for table in report.tables] == [
        "All clips, and by domain",
        "All clips, and by take",
        "Clip by clip",
    ]
    assert report.tables[0].columns == ["", "all", "music", "noise", "speech"]
    assert [row[0] for row in report.tables[0].rows][:2] == ["clips", "log bands ↓"]
    mel = found.overall.metrics["mel_distance"]
    (row,) = [row for row in report.tables[0].rows if row[0] == "mel distance ↓"]
    assert row[1] == f"{mel.mean:.3f} ± {mel.spread:.3f}"
    clips = report.tables[2]
    assert clips.rows[0][0] == max(found.clips, key=lambda clip: clip.values["log_band"]).item.name
    assert "Clip by clip" not in document(report)
    assert len(report.examples) == 4
    values = report.to_dict()
    assert {"log_band_ratio", "mel_distance", "rtf"} <= values["groups"][0].keys()
    assert len(values["clips"]) == 5
    assert set(values["metrics"]) == set(METRICS)


def test_many_groups_stand_in_rows(model, items, tmp_path):
    many = [Item(item.path, item.name, {"voice": str(i)}) for i, item in enumerate([*items, *items])]
    found = evaluate_reconstruction(model, many, tmp_path / "j.jsonl", keys=("voice",))
    titles = [(table.title, len(table.rows)) for table in reconstruction_report(model, found, 0).tables]
    assert titles[0][0] == "All clips"
    assert titles[1] == ("By voice", 10)


def test_examples_are_shared_among_domains(found):
    for count, expected in ((0, 0), (2, 2), (3, 3), (9, 5)):
        assert len(choose_examples(found.clips, count)) == expected
    places = [place for place, _ in choose_examples(found.clips, 6)]
    assert places == ["best of 2", "worst of 2", "only one of 1", "best of 2", "worst of 2"]
