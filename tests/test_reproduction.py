"""tools/reproduce.py: what it trains differs as its tables say, and the verdicts follow from the figures."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tools(monkeypatch):
    """The parts of tools/reproduction: noise, measure, plan, report."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from reproduction import measure, noise, plan, report

    yield noise, measure, plan, report
    for name in [name for name in sys.modules if name.split(".")[0] in ("reproduction", "make_corpus")]:
        del sys.modules[name]


def figures(report, plan, values):
    """Of one seed, where ``values`` gives the accuracy of each row by name (0.5 for the rest)."""

    def row(name):
        return {"probes": dict.fromkeys(report.TASKS, values.get(name, 0.5)), "spectra": values.get("spectra", 0.3)}

    return {
        "ranks": {domain: {"effective_rank": 20.0, "tenth": 0.9} for domain in ("speech", "music")},
        "compression": {name: row(name) for name in report.COMPRESSIONS},
        "tokenizers": {variant.name: row(variant.name) for variant in plan.TOKENIZERS},
    }


def test_verdicts(tools):
    *_, report = tools
    assert report.claim("c", [0.1, 0.11, 0.09, 0.1])[2] == "agrees"
    assert report.claim("c", [-0.1, -0.11, -0.09, -0.1])[2] == "**contradicts**"
    assert report.claim("c", [0.1, -0.1, 0.2, -0.15])[2] == "no significant difference"
    assert report.claim("c", [0.1])[2] == "one seed is not enough"


def test_the_interval_is_student_s(tools):
    *_, report = tools
    # Four values of deviation 1: t(0.975, 3) / sqrt(4), t from the tables.
    values = np.array([-1.0, 1.0, -1.0, 1.0])
    assert report.interval(list(values / values.std(ddof=1))) == pytest.approx(3.182 / 2, abs=2e-3)
    ten = np.random.default_rng(0).standard_normal(10)
    assert report.interval(list(ten)) == pytest.approx(2.262 * ten.std(ddof=1) / np.sqrt(10), rel=2e-3)


def test_the_page_has_every_row_and_says_what_contradicts(tools):
    _, _, plan, report = tools
    seeds = [figures(report, plan, {"SemBo": 0.6 + s / 100, report.PCA: 0.8 + s / 100}) for s in range(4)]
    page = report.write(seeds, "a setting")
    for name in (*report.COMPRESSIONS, *(variant.name for variant in plan.TOKENIZERS)):
        assert f"\n| {name} | " in page
    verdicts = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines()}
    assert verdicts["SemBo is more accurate than channel merging"].endswith("| agrees |")
    assert verdicts["SemBo is more accurate than PCA"].endswith("| **contradicts** |")


def test_the_page_is_what_the_kept_figures_say(tools):
    *_, report = tools
    docs = TOOLS.parent / "docs"
    page = report.write(json.loads((docs / "reproduction.json").read_text()), "")
    assert page.strip() in (docs / "reproduction.md").read_text()


def test_runs_differ_in_what_they_are_named_for(tools):
    _, _, plan, _ = tools
    for stage, variants in (("sembo", plan.BOTTLENECKS), ("tokenizer", plan.TOKENIZERS)):
        recipe = plan.settings(stage, 0, 1.0, {}, Path("start")).to_dict()
        for variant in variants:
            run = plan.settings(stage, 0, 1.0, variant.changes, Path("start")).to_dict()
            assert {key for key in recipe if run[key] != recipe[key]} == set(variant.changes)
            for group, changes in variant.changes.items():
                assert {k: v for k, v in run[group].items() if recipe[group][k] != v} == changes
    assert len({variant.name for variant in (*plan.BOTTLENECKS, *plan.TOKENIZERS)}) == 11


def test_noise_has_the_power_that_was_asked_for(tools, tmp_path):
    noise, *_ = tools
    clean, rate = np.random.default_rng(1).standard_normal(16_000).astype(np.float32) / 10, 16_000
    (tmp_path / "clean" / "a").mkdir(parents=True)
    soundfile.write(tmp_path / "clean" / "a" / "0.flac", clean, rate)
    manifest = tmp_path / "clean" / "manifest.jsonl"
    manifest.write_text(json.dumps({"path": "a/0.flac", "domain": "a"}) + "\n")
    copy = noise.noisy(manifest, tmp_path / "heard", -5.0, 3)
    assert copy.read_text() == manifest.read_text()
    heard, _ = soundfile.read(tmp_path / "heard" / "a" / "0.flac", dtype="float32")
    gain = clean @ heard / (clean @ clean)
    assert 10 * np.log10((gain * clean).var() / (heard - gain * clean).var()) == pytest.approx(-5.0, abs=0.2)
    before = copy.stat().st_mtime_ns
    assert noise.noisy(manifest, tmp_path / "heard", -5.0, 3).stat().st_mtime_ns == before


def test_chance_is_the_commonest_answer(tools):
    _, measure, *_ = tools

    class Item:
        def __init__(self, **values):
            self.values = values

    items = [Item(digit="one"), Item(digit="two"), Item(digit="one"), Item(event="rain")]
    assert measure.chance(items, ("digit", "event")) == {"digit": 2 / 3, "event": 1.0}
