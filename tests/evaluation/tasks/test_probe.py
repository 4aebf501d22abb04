"""The probe report: tasks and splits, what each level sees, baselines without a leak, and files that are left."""

import json

import numpy as np
import pytest
import torch

from losatok_ext.errors import UserError
from losatok_ext.evaluation.tasks import probe as module
from losatok_ext.evaluation.tasks.features import GIVEN, SUFFIXES, Spec, extract
from losatok_ext.evaluation.tasks.probe import evaluate_probe, find_task
from losatok_ext.evaluation.tasks.probe_report import probe_report
from losatok_ext.recordings.labelled import Item, find_items


def corpus(folder, per_class=12, frames=10, signal=3.0, segments=False):
    """Two classes that one of six dimensions tells apart, four clips of each source."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for index in range(2 * per_class):
        label = index % 2
        x = torch.randn(frames + index % 3, 6, generator=generator)
        x[:, 0] += signal * label
        np.save(folder / f"{index:03d}.npy", x.numpy())
        line = {"path": f"{index:03d}.npy", "label": "ab"[label], "voice": f"v{index // 4}"}
        lines.append(line)
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items, _ = find_items([folder / "m.jsonl"], SUFFIXES)
    return extract(None, items, [GIVEN], folder)


def item(name, **values):
    return Item(None, name, values)


def test_a_task_takes_the_source_that_the_manifest_has():
    items = [item(str(i), label="ab"[i % 2], voice=f"v{i // 2}") for i in range(8)] + [item("none")]
    task = find_task(items, "label")
    assert (task.source_key, task.classes, task.clips) == ("voice", ("a", "b"), tuple(range(8)))
    assert task.sources[:4] == ("v0", "v0", "v1", "v1")
    assert find_task(items, "label", "clip").sources == tuple(f"clip {i}" for i in range(8))
    with pytest.raises(UserError, match="no clip with a 'label' has a 'session'"):
        find_task(items, "label", "session")
    with pytest.raises(UserError, match="no clip has a 'what'; --label takes a key of the manifest: label, voice"):
        find_task(items, "what")


def test_a_label_that_is_the_source_is_split_by_clip():
    items = [item(str(i), voice=f"v{i % 2}") for i in range(8)]
    assert find_task(items, "voice").source_key == "clip"


def test_classes_with_too_few_sources_are_left_out_and_counted():
    items = [item(str(i), label=label) for i, label in enumerate("aaabbbcc")]
    task = find_task(items, "label")
    assert (task.classes, task.left_out, len(task.clips)) == (("a", "b"), {"c": 2}, 6)
    with pytest.raises(UserError, match=r"'label' has 1 classes with at least 3 sources \(by clip: a 3, c 2\)"):
        find_task([*items[:3], *items[6:]], "label")
    one_voice = [item(str(i), label=label, voice="v") for i, label in enumerate("aaabbb")]
    with pytest.raises(UserError, match="or --source clip to split by clip"):
        find_task(one_voice, "label")


@pytest.mark.parametrize("level", ["clip", "frame"])
def test_what_can_be_told_is_told_at_either_level(tmp_path, level):
    features = corpus(tmp_path)
    task = find_task(features.items, "label")
    specs = [Spec(GIVEN), Spec(GIVEN, "pca", 1), Spec(GIVEN, "merge", 1)]
    found = evaluate_probe(features, task, specs, level=level, seeds=[0, 1, 2])
    by = {(row.feature, row.probe): row for row in found.rows}
    assert by["given", "linear"].accuracy.mean > (0.95 if level == "clip" else 0.85)
    assert by["given+pca:1", "linear"].accuracy.mean > 0.85  # the class is what varies most
    assert by["given", "linear"].dims == 6
    assert by["given+merge:1", "linear"].dims == 1
    assert 0.3 <= found.majority.mean <= 0.6
    assert len(by["given", "knn"].accuracy.each) == 3
    assert by["given", "knn"].accuracy.spread == pytest.approx(
        float(torch.tensor(by["given", "knn"].accuracy.each, dtype=torch.float64).std()), abs=1e-12
    )
    assert found == evaluate_probe(features, task, specs, level=level, seeds=[0, 1, 2])


def test_noise_is_not_told(tmp_path):
    features = corpus(tmp_path, per_class=60, signal=0.0)
    found = evaluate_probe(features, find_task(features.items, "label"), [Spec(GIVEN)])
    assert all(row.accuracy.mean < 0.65 for row in found.rows)


def test_the_spread_within_a_clip_is_seen_where_it_is_asked_for(tmp_path):
    lines = []
    for index in range(40):
        np.save(tmp_path / f"{index}.npy", torch.randn(30, 2).numpy() * (1 + 4 * (index % 2)))
        lines.append({"path": f"{index}.npy", "label": index % 2})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    features = extract(None, find_items([tmp_path / "m.jsonl"], SUFFIXES)[0], [GIVEN], tmp_path)
    task = find_task(features.items, "label")
    both = evaluate_probe(features, task, [Spec(GIVEN)], pool="mean+std").rows[0]
    assert both.dims == 4
    assert both.accuracy.mean == 1
    assert evaluate_probe(features, task, [Spec(GIVEN)]).rows[0].accuracy.mean < 0.9


def test_baselines_are_fitted_to_training_clips_alone(tmp_path, monkeypatch):
    features = corpus(tmp_path)
    task = find_task(features.items, "label")
    split = module.split_by_source(task.labels, task.sources, 0)
    expected = torch.cat(
        [features.load_one(clip, GIVEN) for clip, place in zip(task.clips, split, strict=True) if place == 0]
    )
    seen = []
    real = module.take_moments
    monkeypatch.setattr(module, "take_moments", lambda frames: seen.append(frames) or real(frames))
    evaluate_probe(features, task, [Spec(GIVEN, "pca", 2)], seeds=[0])
    torch.testing.assert_close(seen[0], expected)


def test_frames_take_the_class_of_their_segment(tmp_path):
    lines = []
    for index in range(12):
        x = torch.randn(50, 4)
        x[25:, 1] += 4
        x[:5] = 100  # outside of all segments
        np.save(tmp_path / f"{index}.npy", x.numpy())
        lines.append({"path": f"{index}.npy", "segments": [[0.2, 1, "early"], [1, 9, "late"]]})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    features = extract(None, find_items([tmp_path / "m.jsonl"], SUFFIXES)[0], [GIVEN], tmp_path)
    task = find_task(features.items, "what", segments=True)
    assert task.classes == ("early", "late")
    with pytest.raises(UserError, match="have no frame rate"):
        evaluate_probe(features, task, [Spec(GIVEN)], level="frame", segments=True)
    features.frame_rate = 25.0
    found = evaluate_probe(features, task, [Spec(GIVEN)], level="frame", segments=True)
    assert found.rows[0].accuracy.mean > 0.95
    assert set(found.test_rows) <= {45 * n for n in range(1, 5)}


def test_frames_are_thinned_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FRAMES", 30)
    features = corpus(tmp_path)
    found = evaluate_probe(features, find_task(features.items, "label"), [Spec(GIVEN)], level="frame")
    assert found.test_rows == [30] * 5


def test_a_class_that_training_lacks_is_not_tested(tmp_path, monkeypatch):
    features = corpus(tmp_path)
    for index in range(3):
        features.items[index] = Item(features.items[index].path, str(index), {"label": "c"})
    task = find_task(features.items, "label")
    assert task.classes == ("a", "b", "c")
    places = torch.tensor([2, 1, 2, *([0, 0, 0, 0, 1, 1, 2] * 3)])
    monkeypatch.setattr(module, "split_by_source", lambda *_: places)
    found = evaluate_probe(features, task, [Spec(GIVEN)], seeds=[0, 1])
    assert (found.unseen, found.test_rows) == ([2, 2], [3, 3])
    report = probe_report([found], features, {})
    assert "4 test clips of all seeds were left out: training had none of their class." in report.tables[0].note


def test_bad_arguments(tmp_path):
    features = corpus(tmp_path)
    task = find_task(features.items, "label")
    for options in ({"level": "word"}, {"pool": "max"}, {"seeds": []}):
        with pytest.raises(ValueError, match="level should be"):
            evaluate_probe(features, task, [Spec(GIVEN)], **options)
    alone = [Item(i.path, i.name, {**i.values, "voice": "one"}) for i in features.items]
    with pytest.raises(UserError, match="with at least 3 sources"):
        find_task(alone, "label")


def test_the_report(tmp_path):
    features = corpus(tmp_path)
    features.items.append(features.items[0])
    task = find_task([*features.items[:-1], Item(None, "x", {"label": "rare"})], "label")
    features.items.pop()
    found = evaluate_probe(features, task, [Spec(GIVEN), Spec(GIVEN, "pca", 2)])
    report = probe_report([found], features, {"model": "m"})
    assert [row[0] for row in report.tables[0].rows] == ["given", "given+pca:2"]
    assert "Left out, with fewer than 3 sources: 1 classes: rare (1)." in report.tables[0].note
    values = json.loads(json.dumps(report.to_dict()))
    row = values["tasks"][0]["rows"][0]
    assert row["accuracy"]["mean"] == found.rows[0].accuracy.mean
    assert values["tasks"][0]["classes"] == {"a": 12, "b": 12}
    assert [chart.title.partition(": ")[2] for chart in report.charts] == [
        "accuracy of a linear probe",
        "accuracy of nearest neighbours",
    ]
    assert report.charts[0].reference == (100 * found.majority.mean, "majority")
