"""``losatok evaluate`` and ``losatok analyze`` as a user runs them: files, tables, one-sentence errors."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from losatok_ext.audio.files import write_audio
from small_clap import save_small_clap
from small_models import tone


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two classes of tones by two voices each, in a manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for index in range(12):
        high = index % 2
        write_audio(folder / f"{index}.wav", tone(8_000 + 640 * index, 9 * high + index // 2), 16_000)
        labels = {"height": "high" if high else "low", "voice": f"v{index // 2}"}
        lines.append({"path": f"{index}.wav", "domain": "tones", "labels": labels})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_reconstruction_leaves_json_a_table_and_a_page(losatok, tmp_path, corpus, model_folder):
    (tmp_path / "empty.wav").touch()
    arguments = ["evaluate", "reconstruction", corpus / "manifest.jsonl", tmp_path / "empty.wav", "-m", model_folder]
    options = ["--no-pesq", "--no-stoi", "--by", "height", "--examples", 2]
    result = losatok(*arguments, *options, "-o", tmp_path / "r")
    assert result.code == 2
    assert result.sentences[-1] == "losatok: 1 left out"
    assert "empty.wav is empty" in result.err
    assert names(tmp_path / "r") == [
        f"reconstruction.{suffix}" for suffix in ("clips.jsonl", "html", "json", "md", "png")
    ]
    report = json.loads((tmp_path / "r" / "reconstruction.json").read_text())
    assert [group["value"] for group in report["groups"]] == ["all", "high", "low"]
    assert len(report["failures"]) == 1
    assert "All clips, and by height" in result.out
    assert "±" in result.out
    assert "exists already; pass --overwrite" in losatok(*arguments, "-o", tmp_path / "r").err
    for suffix in ("json", "md", "html", "png"):
        (tmp_path / "r" / f"reconstruction.{suffix}").unlink()
    assert "another measures" in losatok(*arguments, "--pesq", "--no-stoi", "-o", tmp_path / "r").err
    again = losatok(*arguments, *options, "-o", tmp_path / "r")
    assert json.loads((tmp_path / "r" / "reconstruction.json").read_text()) == report
    assert again.out == result.out


def test_a_name_that_is_no_text_is_spelled_out(losatok, tmp_path, corpus, model_folder):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))
    odd.write_bytes((corpus / "0.wav").read_bytes())
    result = losatok("evaluate", "reconstruction", odd, "-m", model_folder, "--no-pesq", "-o", tmp_path / "r")
    assert result.code == 0, result.err
    for suffix in ("json", "md", "html"):
        assert (tmp_path / "r" / f"reconstruction.{suffix}").stat().st_size > 0
    assert "\\udcff.wav" in (tmp_path / "r" / "reconstruction.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["IN/*.flac", "-o", "OUT", "-m", "MODEL"], "matches no file"),
        (["IN/gone.jsonl", "-o", "OUT", "-m", "MODEL"], "cannot read the manifest"),
        (["IN/gone.wav", "-o", "OUT", "-m", "MODEL"], "no recordings to measure; the first: "),
        (["IN", "-o", "IN/manifest.jsonl", "-m", "MODEL"], "is a file; give the name of a folder"),
    ],
)
def test_what_cannot_be_reconstructed_is_one_sentence(losatok, tmp_path, corpus, model_folder, arguments, says):
    places = {"IN": corpus, "OUT": tmp_path / "r", "MODEL": model_folder}
    words = [str(places.get(a, a)).replace("IN/", f"{corpus}/") for a in arguments]
    result = losatok("evaluate", "reconstruction", *words)
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert says in result.err


def test_probe_leaves_a_report_and_keeps_features(losatok, tmp_path, corpus, model_folder):
    arguments = ["evaluate", "probe", corpus / "manifest.jsonl", "-m", model_folder, "--label", "height"]
    result = losatok(*arguments, "--seeds", 2, "-o", tmp_path / "p")
    assert (result.code, result.err) == (0, "")
    assert names(tmp_path / "p") == ["features", "probe.html", "probe.json", "probe.md", "probe.png"]
    assert len(names(tmp_path / "p" / "features")) == 12
    (task,) = json.loads((tmp_path / "p" / "probe.json").read_text())["tasks"]
    assert (task["source_key"], task["sources"], task["clips"]) == ("voice", 6, 12)
    features = ["latents", "semantic", "semantic_low", "semantic+pca:8", "semantic+merge:8"]
    assert [row["feature"] for row in task["rows"]] == [name for name in features for _ in range(2)]
    assert "height, clip level" in result.out
    frames = losatok(*arguments, "--level", "frame", "--feature", "pca:2", "--overwrite", "-o", tmp_path / "p")
    assert "height, frame level" in frames.out


def test_probe_of_files_needs_no_model(losatok, tmp_path, corpus, model_folder):
    assert losatok("encode", corpus, "-o", tmp_path / "l", "-m", model_folder).code == 0
    lines = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        line["path"] = line["path"].replace(".wav", ".losatok")
    (tmp_path / "l" / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = losatok("evaluate", "probe", tmp_path / "l" / "m.jsonl", "--label", "height", "-o", tmp_path / "p")
    assert (result.code, result.err) == (0, "")
    assert "given" in result.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--label", "what"], "no clip has a 'what'; --label takes a key of the manifest: domain, height, voice"),
        (["--label", "voice"], "'voice' has 0 classes with at least 3 sources"),
        (["--label", "height", "--feature", "best"], "--feature is 'best'; it takes latents, semantic"),
        (["--label", "height", "--feature", "pca:99"], "pca:99 needs as many dimensions, and these features have 32"),
        (["--label", "height", "--level", "word"], "--level is 'word'; it takes clip or frame"),
        (["--label", "height", "--pool", "max"], "--pool is 'max'; it takes mean or mean+std"),
        (["--label", "height", "--segments"], "pass --level frame with it"),
        (["--label", "height", "--source", "x"], "has a 'x'; --source takes a key of the manifest"),
        ([], "Missing option '--label'"),
    ],
)
def test_what_cannot_be_probed_is_one_sentence(losatok, tmp_path, corpus, model_folder, options, says):
    arguments = ["evaluate", "probe", corpus / "manifest.jsonl", "-m", model_folder, "-o", tmp_path / "p"]
    result = losatok(*arguments, *options)
    assert (result.code, len(result.sentences)) == (2, 1), result.err
    assert says in result.err
    assert not (tmp_path / "p" / "probe.json").exists()


def test_generation_leaves_a_report(losatok, tmp_path, corpus, model_folder):
    for index in range(3):
        write_audio(tmp_path / "made" / f"{index}.wav", tone(9_000, index), 16_000)
    (tmp_path / "made" / "empty.wav").touch()
    arguments = ["evaluate", "generation", corpus, tmp_path / "made", "-m", model_folder, "-o", tmp_path / "g"]
    result = losatok(*arguments, "--samples", 5, "--examples", 1)
    assert result.code == 2
    assert "empty.wav is empty" in result.err
    report = json.loads((tmp_path / "g" / "generation.json").read_text())
    assert [(row["feature"], row["reference"], row["generated"]) for row in report["rows"]] == [
        ("semantic", 12, 3),
        ("latents", 12, 3),
    ]
    assert "3 rows of 32 dimensions: the Frechet distance is far too large" in result.out
    assert names(tmp_path / "g") == ["features", *(f"generation.{suffix}" for suffix in ("html", "json", "md", "png"))]
    assert "--level is 'word'" in losatok(*arguments, "--level", "word", "--overwrite").err
    assert "no CLAP model can be loaded" in losatok(*arguments, "--clap", tmp_path, "--overwrite").err
    assert "complete features" in losatok(*arguments, "--feature", "pca:4", "--overwrite").err


@pytest.mark.parametrize("name", ["storage", "precision"])
def test_storage_and_precision_leave_the_same_files(losatok, tmp_path, corpus, model_folder, name):
    (tmp_path / "empty.wav").touch()
    arguments = ["evaluate", name, corpus / "0.wav", tmp_path / "empty.wav", "-m", model_folder, "-o", tmp_path / "s"]
    options = ["--budget", 0] if name == "precision" else []
    result = losatok(*arguments, *options)
    assert result.code == 2, result.err
    assert result.sentences[-1] == "losatok: 1 left out"
    assert "empty.wav is empty" in result.err
    assert names(tmp_path / "s") == [f"{name}.{suffix}" for suffix in ("html", "json", "md", "png")]
    report = json.loads((tmp_path / "s" / f"{name}.json").read_text())
    assert report["report"] == name
    assert report["recordings"] == 1
    assert len(report["failures"]) == 1
    assert "What each" in result.out
    assert "mel loss" in result.out
    assert f"{name}.json exists already; pass --overwrite" in losatok(*arguments).err
    assert losatok(*arguments, *options, "--overwrite").code == 2
    missing = losatok("evaluate", name, tmp_path / "*.flac", "-m", model_folder, "-o", tmp_path / "t")
    assert "matches no file" in missing.err


def test_precision_without_a_folder_only_prints(losatok, tmp_path, corpus, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "precision", corpus / "0.wav", "-m", model_folder, "--budget", 0]
    result = losatok(*arguments)
    assert (result.code, result.err) == (0, "")
    assert "bfloat16" in result.out
    assert names(tmp_path) == []
    refused = losatok(*arguments, "-o", tmp_path / "figures.json")
    assert "is named like a file; give the name of a folder" in refused.err
    assert names(tmp_path) == []


def test_escape_sequences_of_a_file_name_reach_neither_terminal_nor_report(losatok, tmp_path, corpus, model_folder):
    odd, empty = tmp_path / "\x1b[31m<b>.wav", tmp_path / "\x1b[32m<i>.wav"
    odd.write_bytes((corpus / "0.wav").read_bytes())
    empty.touch()
    options = ["--no-pesq", "--no-stoi", "--examples", 1]
    result = losatok("evaluate", "reconstruction", odd, empty, "-m", model_folder, *options, "-o", tmp_path / "r")
    assert result.code == 2
    for text in (result.out, result.err):
        assert "\x1b" not in text
    assert "\\x1b[32m<i>.wav is empty" in result.err
    for suffix in ("md", "html"):
        text = (tmp_path / "r" / f"reconstruction.{suffix}").read_text()
        assert "\x1b" not in text
        assert "<b>.wav" not in text
        assert "<i>.wav" not in text
    alone = losatok("evaluate", "reconstruction", empty, "-m", model_folder, "-o", tmp_path / "s")
    assert "\x1b" not in alone.err
    assert "\x1b" not in losatok("encode", empty, "-m", model_folder, "-o", tmp_path / "s").err


def test_analyze_leaves_a_report(losatok, tmp_path, corpus, model_folder):
    result = losatok("analyze", corpus / "manifest.jsonl", "-m", model_folder, "-o", tmp_path / "a", "--by", "height")
    assert (result.code, result.err) == (0, "")
    assert names(tmp_path / "a") == ["analysis.html", "analysis.json", "analysis.md", "analysis.png", "features"]
    report = json.loads((tmp_path / "a" / "analysis.json").read_text())
    groups = [(spectrum["feature"], spectrum["group"]) for spectrum in report["spectra"]]
    assert groups == [(feature, group) for feature in ("semantic", "latents") for group in ("all", "high", "low")]
    assert [(row["method"], row["dims"]) for row in report["reductions"]] == [
        *(("pca", dims) for dims in (8, 16)),
        *(("merge", dims) for dims in (8, 16)),
        ("SemBo", 8),
    ]
    assert "semantic in fewer dimensions" in result.out


def test_analyze_of_files_needs_no_model(losatok, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(50, 12)))
    assert losatok("analyze", tmp_path / "a.npy", "-o", tmp_path / "a").code == 0
    result = losatok("analyze", tmp_path / "a.npy", "-o", tmp_path / "b", "--feature", "latents")
    assert "these files hold features already" in result.err
    assert "a.wav does not exist" in losatok("analyze", tmp_path / "a.wav", "-o", tmp_path / "b").err
    assert not (tmp_path / "b").exists()


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_generation_with_clap_scores_texts(losatok, tmp_path, corpus, model_folder):
    pytest.importorskip("transformers", reason="transformers is not installed (extra text)")
    clap = save_small_clap(tmp_path / "clap")
    lines = [{"path": str(corpus / f"{index}.wav"), "text": "a tone"} for index in range(4)]
    (tmp_path / "made.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["evaluate", "generation", corpus, tmp_path / "made.jsonl", "-m", model_folder, "--clap", clap]
    result = losatok(*arguments, "--samples", 5, "--examples", 0, "-o", tmp_path / "g")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "g" / "generation.json").read_text())
    assert [(row["feature"], row["dims"]) for row in report["rows"]] == [("semantic", 32), ("latents", 8), ("CLAP", 12)]
    assert report["clap_score"]["clips"] == 4
    assert -1 <= report["clap_score"]["mean"] <= 1
