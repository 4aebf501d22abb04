"""Analyses: ranks of known features by group, reductions on clips they were not fitted to, report and picture."""

import json

import numpy as np
import pytest
import torch

from losatok_ext import ops
from losatok_ext.audio.files import write_audio
from losatok_ext.errors import UserError
from losatok_ext.evaluation.metrics.baselines import PCA
from losatok_ext.evaluation.tasks.analysis import analyze
from losatok_ext.evaluation.tasks.analysis_report import analysis_report
from losatok_ext.evaluation.tasks.features import GIVEN, SUFFIXES, extract
from losatok_ext.models import LoSATok
from losatok_ext.recordings.labelled import find_items
from small_models import lively, small_config, tone


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Four clips of 12 dimensions: of equal variance in one domain, of two only in the other."""
    folder = tmp_path_factory.mktemp("features")
    lines = []
    for index in range(4):
        x = torch.randn(400, 12)
        if index % 2:
            x[:, 2:] = 0
        np.save(folder / f"{index}.npy", (x + 1).numpy())
        lines.append({"path": f"{index}.npy", "domain": "flat" if index % 2 else "full"})
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return extract(None, find_items([folder / "m.jsonl"], SUFFIXES)[0], [GIVEN], folder)


def test_ranks_by_group(given):
    found = analyze(given, [GIVEN])
    by = {spectrum.group: spectrum for spectrum in found.spectra}
    assert list(by) == ["all", "flat", "full"]
    assert by["full"].effective_rank == pytest.approx(12, abs=0.2)
    assert by["flat"].effective_rank == pytest.approx(2, abs=0.01)
    assert by["flat"].participation_ratio == pytest.approx(2, abs=0.02)
    assert by["flat"].axes_for == {0.9: 2, 0.95: 2, 0.99: 2}
    assert (by["all"].clips, by["all"].frames, by["all"].dims) == (4, 1600, 12)
    assert by["all"].explained[-1] == pytest.approx(1)
    assert by["full"].explained[5] == pytest.approx(0.5, abs=0.07)
    assert not found.reductions
    assert [spectrum.group for spectrum in analyze(given, [GIVEN], "absent").spectra] == ["all"]


def test_reductions_are_measured_on_the_other_clips(given):
    found = analyze(given, [GIVEN], dims=(2, 4, 12, 99), reduced=GIVEN)
    assert [(row.method, row.dims) for row in found.reductions] == [(m, d) for m in ("pca", "merge") for d in (2, 4)]
    assert (found.fitted_clips, found.measured_clips) == (2, 2)
    pca = PCA(4).fit(torch.cat([given.load_one(i, GIVEN) for i in (0, 2)]))
    clips = [given.load_one(i, GIVEN) for i in (1, 3)]
    restored = [pca.restore(pca.transform(clip)) for clip in clips]
    row = found.reductions[1]
    every = torch.cat(clips).double()
    error = sum(float((r.double() - c.double()).square().sum()) for r, c in zip(restored, clips, strict=True))
    assert row.explained == pytest.approx(1 - error / float((every - every.mean(0)).square().sum()), rel=1e-6)
    cosine = torch.cosine_similarity(torch.cat(restored), torch.cat(clips), dim=1).mean()
    assert row.cosine == pytest.approx(float(cosine), rel=1e-5)
    losses = [float(ops.time_relation_loss(pca.transform(clip)[None], clip[None])) for clip in clips]
    assert row.relation == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_sembo_stands_beside_them(tmp_path):
    torch.manual_seed(0)
    model = lively(LoSATok(small_config()))
    for index in range(4):
        write_audio(tmp_path / f"{index}.wav", tone(16_000, index), 16_000)
    features = extract(model, find_items([tmp_path])[0], ["semantic"], tmp_path / "f")
    found = analyze(features, ["semantic"], dims=(8,), reduced="semantic", model=model)
    assert [(row.method, row.dims) for row in found.reductions] == [("pca", 8), ("merge", 8), ("SemBo", 8)]
    sembo = found.reductions[2]
    clips = [features.load_one(i, "semantic") for i in (1, 3)]
    losses = [model.sembo_losses(clip[None]) for clip in clips]
    assert sembo.relation == pytest.approx(sum(float(loss["sembo_relation"].detach()) for loss in losses) / 2, rel=1e-4)
    high = sum(float(loss["sembo_reconstruction"].detach()) for loss in losses) / 2
    assert sembo.cosine == pytest.approx(1 - high * 32 / 2, abs=1e-5)
    only = analyze(features, ["semantic"], dims=(8,), reduced="semantic")
    assert {row.method for row in only.reductions} == {"pca", "merge"}


def test_one_clip_is_fitted_and_measured_and_one_frame_is_too_few(tmp_path):
    np.save(tmp_path / "a.npy", torch.randn(20, 6).numpy())
    one = extract(None, find_items([tmp_path / "a.npy"], SUFFIXES)[0], [GIVEN], tmp_path)
    found = analyze(one, [GIVEN], dims=(2,), reduced=GIVEN)
    assert (found.fitted_clips, found.measured_clips, len(found.reductions)) == (1, 1, 2)
    np.save(tmp_path / "b.npy", torch.randn(6).numpy())
    frame = extract(None, find_items([tmp_path / "b.npy"], SUFFIXES)[0], [GIVEN], tmp_path)
    with pytest.raises(UserError, match="fewer than 2 frames"):
        analyze(frame, [GIVEN])


def test_the_report(given):
    found = analyze(given, [GIVEN], dims=(2, 4), reduced=GIVEN)
    report = analysis_report(found, given, {"model": "m"})
    assert [table.title for table in report.tables] == [
        "Effective rank and explained variance",
        "given in fewer dimensions",
    ]
    values = json.loads(json.dumps(report.to_dict()))
    assert values["spectra"][0]["axes_for"]["0.9"] == found.spectra[0].axes_for[0.9]
    assert values["reductions"][0]["method"] == "pca"
    assert report.charts[0].lines["flat"].points[-1] == (12.0, pytest.approx(1))
    assert [chart.title for chart in report.charts[-2:]] == [
        "given: explained variance, restored",
        "given: time-relation loss",
    ]
    assert [point[0] for point in report.charts[-1].lines["pca"].points] == [2, 4]


def test_few_frames_are_noted(tmp_path):
    np.save(tmp_path / "a.npy", torch.randn(20, 6).numpy())
    one = extract(None, find_items([tmp_path / "a.npy"], SUFFIXES)[0], [GIVEN], tmp_path)
    report = analysis_report(analyze(one, [GIVEN]), one, {})
    assert report.tables[0].note == "Few frames for their dimensions, so ranks are too low: given, all."
