"""``losatok evaluate`` and ``losatok analyze`` as a user runs them: files, tables, one-sentence errors."""

import json

import pytest

from losatok_ext.audio.files import write_audio
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
    (corpus / "empty.wav").touch()
    arguments = ["evaluate", "reconstruction", corpus / "manifest.jsonl", corpus / "empty.wav", "-m", model_folder]
    options = ["--no-pesq", "--no-stoi", "--by", "height", "--examples", 2]
    result = losatok(*arguments, *options, "-o", tmp_path / "r")
    assert result.code == 2
    assert result.sentences[-1] == "losatok: 1 left out"
    assert "empty.wav is empty" in result.err
    assert names(tmp_path / "r") == [f"reconstruction.{suffix}" for suffix in ("clips.jsonl", "html", "json", "md")]
    report = json.loads((tmp_path / "r" / "reconstruction.json").read_text())
    assert [group["value"] for group in report["groups"]] == ["all", "high", "low"]
    assert len(report["failures"]) == 1
    assert "All clips, and by height" in result.out
    assert "±" in result.out
    assert "exists already; pass --overwrite" in losatok(*arguments, "-o", tmp_path / "r").err
    (tmp_path / "r" / "reconstruction.json").unlink()
    (tmp_path / "r" / "reconstruction.md").unlink()
    (tmp_path / "r" / "reconstruction.html").unlink()
    assert "another measures" in losatok(*arguments, "--pesq", "--no-stoi", "-o", tmp_path / "r").err
    again = losatok(*arguments, *options, "-o", tmp_path / "r")
    assert json.loads((tmp_path / "r" / "reconstruction.json").read_text()) == report
    assert again.out == result.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["IN", "-o", "OUT"], "no model: pass --model"),
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
