"""Manifests as people write them: what is understood, what is left out and told, and what is refused by line."""

import codecs
import json

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from losatok_ext.audio.files import audio_info
from losatok_ext.errors import AudioFileError, InputError, TrainingError, UserError
from losatok_ext.recordings import find_dataset
from losatok_ext.training.data import corpus as corpora
from losatok_ext.training.data.corpus import open_corpus

RATE, HOP = 16000, 640


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c", "sub/ü d", "outside/e"):
        path = tmp_path / "data" / f"{name}.wav" if name != "outside/e" else tmp_path / "outside" / "e.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.sin(np.arange(8000) / 9) / 2, RATE)
    return tmp_path / "data"


def manifest(folder, *lines, end="\n", encoding="utf-8"):
    path = folder / "list.jsonl"
    text = end.join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_bytes(text.encode(encoding))
    return path


def names(path):
    return [entry.name for entry in find_dataset(path).items]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n \n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_byte_order_marks_of_any_system(folder, end, encoding):
    path = manifest(folder, {"path": "a.wav"}, {"path": "sub/ü d.wav", "domain": "música"}, end=end, encoding=encoding)
    assert names(path) == ["a.wav", "sub/ü d.wav"]
    assert [entry.domain for entry in find_dataset(path).items] == ["", "música"]


def test_line_separators_within_a_text_do_not_end_a_line(folder):
    text = "one\u2028two\x85three\x0c"
    path = manifest(folder, json.dumps({"path": "a.wav", "text": text}, ensure_ascii=False))
    assert find_dataset(path).items[0].text == text


def test_paths_may_be_absolute_or_lead_out_of_the_folder(folder):
    path = manifest(folder, {"path": str(folder / "a.wav")}, {"path": "../outside/e.wav"}, {"path": "./sub/../b.wav"})
    corpus = open_corpus(path, RATE, HOP, 100)
    assert [clip.samples for clip in corpus.clips] == [8000] * 3
    assert corpus.skipped == ()


def test_a_line_that_comes_twice_counts_once(folder):
    again = [{"path": "./a.wav", "text": "first"}, {"path": str(folder / "a.wav"), "text": "first"}]
    found = find_dataset(manifest(folder, {"path": "a.wav", "text": "first"}, {"path": "b.wav"}, *again))
    assert [(entry.name, entry.text) for entry in found.items] == [("a.wav", "first"), ("b.wav", "")]
    (sentence,) = found.left_out
    assert "list.jsonl: 2 lines repeat another line, the first: ./a.wav (line 3 repeats line 1)" in sentence
    captions = [{"path": "a.wav", "text": text} for text in ("a dog", "a dog barks", "barking")]
    assert [entry.text for entry in find_dataset(manifest(folder, *captions)).items] == [
        "a dog",
        "a dog barks",
        "barking",
    ]


def test_missing_files_are_counted_and_the_first_is_named(folder):
    lines = [{"path": "a.wav"}, "", {"path": "gone.wav", "seconds": 1}, {"path": "b.wav"}, {"path": "gone too.wav"}]
    corpus = open_corpus(manifest(folder, *lines), RATE, HOP, 0)
    assert [clip.name for clip in corpus.clips] == ["a.wav", "b.wav"]
    (sentence,) = corpus.skipped
    assert "list.jsonl: 2 of its 4 files do not exist, the first: gone.wav (line 3), looked for as" in sentence
    with pytest.raises(TrainingError, match=r"none of its 2 audio files can be used; the first: .*2 of its 2 files"):
        open_corpus(manifest(folder, {"path": "x.wav"}, {"path": "y.wav"}), RATE, HOP, 0)


@pytest.mark.parametrize("name", ["a\0b.wav", "\ud800.wav", "x" * 5000 + ".wav", "no/such/folder/a.wav", "a.wav/"])
def test_names_that_no_file_can_have_are_missing(folder, name):
    corpus = open_corpus(manifest(folder, {"path": "a.wav"}, json.dumps({"path": name})), RATE, HOP, 0)
    assert len(corpus.clips) == 1
    assert len(corpus.skipped) == 1


def test_a_folder_where_a_file_should_be_is_named(folder):
    corpus = open_corpus(manifest(folder, {"path": "a.wav"}, {"path": "sub"}), RATE, HOP, 100)
    assert [clip.name for clip in corpus.clips] == ["a.wav"]
    assert "sub is a folder, not an audio file" in corpus.skipped[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"path": "a.wav", "domain": 3}', r'list.jsonl:2: "domain" should be text, got 3'),
        ('{"path": "a.wav", "seconds": -1}', r'list.jsonl:2: "seconds" should be'),
        ('{"path": "a.wav", "seconds": NaN}', r'list.jsonl:2: "seconds" should be'),
        ('{"path": "a.wav", "seconds": true}', r'list.jsonl:2: "seconds" should be'),
        ('{"path": ""}', r'list.jsonl:2: the line has no "path"'),
        ('{"path": ["a.wav"]}', r'list.jsonl:2: the line has no "path"'),
        ("[" * 100_000, r"list.jsonl:2: not valid JSON"),
        ('{"path": "a.wav"', r"list.jsonl:2: not valid JSON"),
        ("a.wav", r"list.jsonl:2: not valid JSON"),
        ('{"path": "a.wav", "seconds": ' + "9" * 5000 + "}", r"list.jsonl:2: "),
    ],
)
def test_a_broken_line_is_named(folder, line, message):
    with pytest.raises(InputError, match=message):
        find_dataset(manifest(folder, {"path": "b.wav"}, line))


def test_another_encoding_is_named_with_the_cure(folder):
    with pytest.raises(InputError, match=r"list.jsonl: cannot read the manifest: .*; save it as UTF-8"):
        find_dataset(manifest(folder, {"path": "a.wav"}, encoding="utf-16"))
    (folder / "latin.jsonl").write_bytes(codecs.encode('{"path": "ü.wav"}', "latin-1"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        find_dataset(folder / "latin.jsonl")


def test_a_folder_has_its_domains_from_its_first_folders(folder):
    for path in ("speech/en/a.wav", "speech/b.wav", "music/c.wav"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((folder / "a.wav").read_bytes())
    found = {entry.name: (entry.domain, entry.text) for entry in find_dataset(folder).items}
    assert found["speech/en/a.wav"] == ("speech", "en")
    assert found["speech/b.wav"] == ("speech", "speech")
    assert found["music/c.wav"] == ("music", "music")
    assert found["a.wav"] == ("", "")


def test_only_what_a_manifest_does_not_say_is_looked_up(folder, monkeypatch):
    """Of many lines no file is opened whose length is given, and none twice."""
    opened = []
    monkeypatch.setattr(corpora, "audio_info", lambda path, content: opened.append(path) or audio_info(path, content))
    lines = [{"path": f"a/{i}.wav", "seconds": 3.5, "domain": f"d{i % 7}", "text": f"clip {i}"} for i in range(2000)]
    corpus = open_corpus(manifest(folder, *lines, {"path": "a.wav", "seconds": 0.5}, {"path": "b.wav"}), RATE, HOP, 0)
    assert "2000 of its 2002 files do not exist, the first: a/0.wav (line 1)" in corpus.skipped[0]
    assert len(corpus.clips) == 2
    assert opened == [folder / "b.wav"]


def test_a_wrong_length_in_a_manifest_is_called_one(folder):
    long = folder / "long.wav"
    soundfile.write(long, np.zeros(40 * 1000), 1000)
    corpus = open_corpus(manifest(folder, {"path": "long.wav", "seconds": 400}), RATE, HOP, 0)
    with pytest.raises(AudioFileError, match=r'has 40\.00 s, and "seconds" in the manifest says 400\.00; correct it'):
        corpus.crop(0, RATE, 0.9)
    corpus = open_corpus(manifest(folder, {"path": "a.wav", "seconds": 9e3}), RATE, HOP, 0)
    with pytest.raises(AudioFileError, match=r'has 0\.50 s, and "seconds" in the manifest says 9000\.00'):
        corpus.crop(0, RATE, 0.0001)


def test_a_length_that_no_file_can_have_is_left_out(folder):
    """It would be planned for: the order of the crops of 28 years is billions of numbers."""
    corpus = open_corpus(manifest(folder, {"path": "a.wav", "seconds": 9e8}, {"path": "b.wav"}), RATE, HOP, 0)
    assert [clip.name for clip in corpus.clips] == ["b.wav"]
    assert 'list.jsonl:1: "seconds" is 9e+08, and a.wav has only 16044 bytes; correct' in corpus.skipped[0]


def test_label_and_text_are_both_kept(folder):
    line = {"path": "a.wav", "text": "a dog barks", "label": "dog", "labels": {"size": "small"}}
    (item,) = find_dataset(manifest(folder, line)).items
    assert (item.text, item.label) == ("a dog barks", "dog")
    assert (item.values["label"], item.values["size"]) == ("dog", "small")
    lines = [{"path": "a.wav", "label": 3}, {"path": "b.wav", "labels": {"x": 1, "y": "two"}}]
    assert [(i.text, i.label) for i in find_dataset(manifest(folder, *lines)).items] == [("3", "3"), ("1 two", "")]


def test_a_folder_is_searched_as_everywhere(folder):
    """Links are followed, circles and hidden files are not; each file counts once."""
    (folder / ".hidden").mkdir()
    for name in (".hidden/x.wav", ".x.wav"):
        (folder / name).write_bytes((folder / "a.wav").read_bytes())
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "again.wav").symlink_to("a.wav")
    found = find_dataset(folder)
    assert [item.name for item in found.items] == ["a.wav", "b.wav", "c.wav", "link/e.wav", "sub/ü d.wav"]
    assert found.left_out == []


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["path", "seconds", "domain", "text", "label", "labels"])
SETTINGS = {"deadline": None, "max_examples": 150, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(**SETTINGS)
@given(values=st.dictionaries(KEYS, JSON) | JSON, named=st.booleans())
def test_any_values_are_read_or_refused_by_line(folder, values, named):
    if named and isinstance(values, dict):
        values["path"] = "a.wav"
    path = manifest(folder, {"path": "b.wav"}, json.dumps(values))
    refused, found = "", None
    try:
        found = find_dataset(path)
    except InputError as error:
        refused = str(error)
    assert "list.jsonl:2" in refused or found is not None
    if found is not None:
        assert found.items[0].name == "b.wav"
        assert found.named == 2 or values.get("path") == "b.wav"


@settings(**SETTINGS)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(folder, content):
    path = folder / "list.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"list\.jsonl"):
        find_dataset(path)  # none of these is the name of a file
