"""Items of manifests and folders, and journals that a measurement goes on from."""

import json

import pytest

from losatok_ext.errors import UserError
from losatok_ext.evaluation.tasks.journal import Journal, JournalError
from losatok_ext.recordings import Segment, find_items


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_a_manifest_says_what_is_known_of_each_file(tmp_path):
    manifest = write(
        tmp_path / "m.jsonl",
        {"path": "a/x.wav", "domain": "speech", "labels": {"digit": 3, "voice": "v"}, "seconds": 1.5, "ok": True},
        "",
        {"path": "b/x.wav", "label": "dog", "segments": [[0, 0.5, "bark"], [0.5, 1, 7]], "nested": {"not": "plain"}},
    )
    (first, second), failures = find_items([manifest])
    assert not failures
    assert first.path == tmp_path / "a" / "x.wav"
    assert first.domain == "speech"
    expected = {"path": "a/x.wav", "domain": "speech", "digit": "3", "voice": "v", "seconds": "1.5", "ok": "true"}
    assert first.values == expected
    assert second.domain == ""
    assert second.segments == (Segment(0.0, 0.5, "bark"), Segment(0.5, 1.0, "7"))


def test_a_manifest_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav", "label": 3}\n', encoding="utf-8-sig")
    (item,), _ = find_items([tmp_path / "m.jsonl"])
    assert (item.path, item.label) == (tmp_path / "a.wav", "3")


def test_a_text_may_hold_any_line_break(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav", "text": "one\u2028two"}\r\n', encoding="utf-8")
    (item,), _ = find_items([tmp_path / "m.jsonl"])
    assert item.values["text"] == "one\u2028two"


def test_folders_give_domains_and_names_are_told_apart(tmp_path):
    for name in ("one/speech/a.wav", "one/b.wav", "two/speech/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    items, failures = find_items([tmp_path / "one", tmp_path / "two", tmp_path / "one" / "b.wav", tmp_path / "no*.wav"])
    assert [(item.path.name, item.domain) for item in items] == [
        ("b.wav", ""),
        ("a.wav", "speech"),
        ("a.wav", "speech"),
    ]
    assert len({item.name for item in items}) == 3
    assert len(failures) == 1
    assert "matches no file" in failures[0].message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", ":1: not valid JSON"),
        ("[]", ':1: the line has no "path"'),
        ({"path": 3}, ':1: the line has no "path"'),
        ({"path": "a", "labels": ["x"]}, ':1: "labels" should be an object'),
        (
            {"path": "a", "segments": [[0, 1]]},
            r':1: "segments" should be a list of \[start, end, label\], got \[0, 1\]',
        ),
        ({"path": "a", "segments": "x"}, ':1: "segments" should be'),
        ("", "the manifest is empty"),
    ],
)
def test_a_broken_manifest_is_named_by_line(tmp_path, line, says):
    with pytest.raises(UserError, match=says):
        find_items([write(tmp_path / "m.jsonl", line)])
    with pytest.raises(UserError, match="cannot read the manifest"):
        find_items([tmp_path / "gone.jsonl"])


def test_the_key_of_an_item_changes_with_its_file(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"one")
    (item,), _ = find_items([tmp_path / "a.wav"])
    before = item.key()
    assert item.key() == before
    (tmp_path / "a.wav").write_bytes(b"other")
    assert item.key() != before


def test_a_journal_goes_on_and_drops_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "new" / "j.jsonl"
    with Journal(path, {"model": "m"}) as journal:
        journal.add("a", {"x": 0.1})
        journal.add("b", {"x": None})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "c", "x": 1')
    with Journal(path, {"model": "m"}) as journal:
        assert journal.done == {"a": {"x": 0.1}, "b": {"x": None}}
        journal.add("c", {"x": 3.0})
    assert path.read_bytes().startswith(whole)
    with Journal(path, {"model": "m"}) as journal:
        assert list(journal.done) == ["a", "b", "c"]
    with Journal(path, {"model": "m"}, fresh=True) as journal:
        assert not journal.done


@pytest.mark.parametrize("cut", [0, 3])
def test_a_journal_whose_first_line_was_cut_off_begins_anew(tmp_path, cut):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"model": "m"}'[:cut])
    with Journal(path, {"model": "m"}) as journal:
        journal.add("a", {})
    with Journal(path, {"model": "m"}) as journal:
        assert list(journal.done) == ["a"]


def test_a_journal_of_other_facts_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, {"model": "m", "measures": ["a"]}):
        pass
    with pytest.raises(JournalError, match=r"another model \('m' and not 'n'\); pass --overwrite"):
        Journal(path, {"model": "n", "measures": ["a"]})
    path.write_text('{"model": "m"}\n[1]\n')
    with pytest.raises(JournalError, match=r"j\.jsonl:2 is damaged"):
        Journal(path, {"model": "m"})
    path.write_text('{"model": "m"}\n' + "[" * 100_000 + "\n")
    with pytest.raises(JournalError, match=r"j\.jsonl:2 is damaged"):
        Journal(path, {"model": "m"})
    for other in ("what\n", "[" * 100_000 + "\n"):
        path.write_text(other)
        with pytest.raises(JournalError, match="figures of something else"):
            Journal(path, {"model": "m"})
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(path / "below", {"model": "m"})


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with Journal(tmp_path / "j.jsonl", {}) as journal:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(JournalError, match="cannot be written: No space left on device"):
            journal.add("a", {})
