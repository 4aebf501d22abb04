"""Generated clips beside a reference: rows, warnings, CLAP from a folder, and the report."""

import json
import sys

import pytest
import torch

from losatok_ext.audio.files import write_audio
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.clap import Clap
from losatok_ext.evaluation.metrics.distances import frechet_distance, kernel_distance
from losatok_ext.evaluation.tasks.features import FeatureSet, Spec, extract
from losatok_ext.evaluation.tasks.generation import GenerationResult, clap_rows, clap_score, clip_rows, compare
from losatok_ext.evaluation.tasks.generation_report import generation_report
from losatok_ext.models import LoSATok
from losatok_ext.recordings.labelled import Item, find_items
from small_clap import save_small_clap
from small_models import lively, small_config, tone


def clips(count, shift=0.0, dims=3, frames=4):
    return [torch.randn(frames, dims, dtype=torch.float64) + shift for _ in range(count)]


def test_distances_are_those_of_all_rows_and_order_sets_by_how_far_they_are():
    x, near, far = clips(60), clips(60), clips(60, 0.7)
    close, distant = compare("f", x, near, 20), compare("f", x, far, 20)
    assert distant.frechet.value == frechet_distance(torch.cat(x), torch.cat(far))
    assert distant.kernel.value == kernel_distance(torch.cat(x), torch.cat(far))
    assert close.frechet.high < distant.frechet.low
    assert close.kernel.high < distant.kernel.low
    assert close.frechet.low >= 0
    assert close.halves_frechet < distant.frechet.low
    assert distant.extrapolated == pytest.approx(distant.frechet.value, rel=0.25)
    assert (distant.dims, distant.reference, distant.generated, distant.warnings) == (3, 240, 240, [])


def test_sets_that_are_too_small_are_warned_of():
    row = compare("f", clips(3, dims=8, frames=1), clips(4, dims=8, frames=1), 5)
    assert "3 rows of 8 dimensions" in row.warnings[0]
    assert "3 clips are few" in row.warnings[1]
    assert (row.extrapolated, row.halves_frechet) == (None, None)
    assert "12 rows are few for 3 dimensions" in compare("f", clips(3), clips(9), 5).warnings[0]
    with pytest.raises(UserError, match="GENERATED has 1 usable clips"):
        compare("f", clips(3), clips(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lively(LoSATok(small_config()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for index in range(4):
        write_audio(folder / f"{index}.wav", tone(8_000 + 640 * index, index), 16_000)
    return folder


def test_rows_of_clips_and_of_frames(model, folder, tmp_path, monkeypatch):
    features = extract(model, find_items([folder])[0], ["semantic"], tmp_path)
    means = clip_rows(features, Spec("semantic"), "clip")
    assert torch.equal(means[1], features.load_one(1, "semantic").double().mean(0, keepdim=True))
    frames = clip_rows(features, Spec("semantic"), "frame")
    assert [len(rows) for rows in frames] == [12, 13, 14, 15]
    monkeypatch.setattr("losatok_ext.evaluation.tasks.generation.MAX_FRAMES", 30)
    thinned = clip_rows(features, Spec("semantic"), "frame")
    assert [len(rows) for rows in thinned] == [6, 7, 7, 8]
    assert torch.equal(thinned[0], frames[0][::2])
    with pytest.raises(UserError, match="distances are computed on complete features"):
        clip_rows(FeatureSet(), Spec("semantic", "pca", 4), "clip")


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed (extra text)")
    return save_small_clap(tmp_path_factory.mktemp("clap"))


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_clap_embeds_clips_of_any_length_and_texts(clap_folder):
    clap = Clap(clap_folder)
    short, long = clap.audio(tone(9_000), 16_000), clap.audio(tone(40_000), 16_000)
    assert short.shape == (12,)
    for vector in (short, long):
        assert float(vector.norm()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(clap.audio(tone(40_000), 16_000), long)
    parts = torch.stack([clap.audio(part, 16_000) for part in tone(40_000).split(16_000)])
    torch.testing.assert_close(long, torch.nn.functional.normalize(parts.mean(0), dim=0), rtol=1e-4, atol=1e-5)
    texts = clap.texts(["a dog", "rain on a roof"])
    assert texts.shape == (2, 12)
    torch.testing.assert_close(clap.texts(["a dog"])[0], texts[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_clap_judges_clips_with_texts(clap_folder, folder):
    clap = Clap(clap_folder)
    items = [Item(folder / f"{i}.wav", str(i), {"text": "a dog"} if i < 2 else {}) for i in range(3)]
    used, rows, failures = clap_rows(clap, [*items, Item(folder / "gone.wav", "gone")], 16_000)
    assert used == items
    assert "does not exist" in failures[0].message
    score = clap_score(clap, used, rows)
    text = clap.texts(["a dog"])[0].double()
    expected = torch.stack([row[0] @ text for row in rows[:2]])
    assert score.mean == pytest.approx(float(expected.mean()), abs=1e-6)
    assert score.spread == pytest.approx(float(expected.std()), abs=1e-6)
    assert score.clips == 2
    assert clap_score(clap, used[2:], rows[2:]) is None


def test_a_folder_without_clap_is_said(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed (extra text)")
    with pytest.raises(UserError, match="no CLAP model can be loaded from"):
        Clap(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"CLAP needs transformers .*losatok-ext\[text\]"):
        Clap(tmp_path)


def test_the_report(folder):
    items = find_items([folder])[0]
    row = compare("semantic", clips(20), clips(20, 0.5), 10)
    report = generation_report(GenerationResult([row], items, items[:2]), {"model": "m"}, 16_000, examples=3)
    assert [[sound.label for sound in example.sounds] for example in report.examples] == [
        ["reference: 0.wav", "generated: 0.wav"],
        ["reference: 1.wav", "generated: 1.wav"],
        ["reference: 2.wav"],
    ]
    values = json.loads(json.dumps(report.to_dict()))
    assert values["rows"][0]["frechet"]["value"] == row.frechet.value
    assert values["clap_score"] is None
    assert any("clips are few" in note for note in report.notes)
    assert [bar.label for bar in report.charts[0].bars] == ["generated", "extrapolated", "halves of reference"]
