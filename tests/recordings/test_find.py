"""Which files a command line means, and that no two of them are written to one place."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losatok_ext.errors import InputError, UserError
from losatok_ext.recordings import Source, find_inputs, find_items, place_outputs

AUDIO = (".wav", ".flac")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found_in(names):
    found = find_inputs(names, AUDIO)
    return [source.relative.as_posix() for source in found.sources], [failure.message for failure in found.failures]


def test_folders_are_searched_and_keep_their_tree(tmp_path):
    touch(tmp_path, "b.wav", "a b/ü.FLAC", "a b/c/d.wav", "notes.txt", ".hidden.wav", ".git/x.wav")
    assert found_in([tmp_path]) == (["a b/c/d.wav", "a b/ü.FLAC", "b.wav"], [])


def test_named_files_are_taken_whatever_their_suffix(tmp_path):
    touch(tmp_path, "x/recording.dat")
    assert found_in([tmp_path / "x" / "recording.dat"]) == (["recording.dat"], [])
    assert found_in([tmp_path / "missing.wav"]) == (["missing.wav"], [])  # reading it will say so


def test_patterns_keep_the_tree_below_their_fixed_part(tmp_path):
    touch(tmp_path, "p/1/a.wav", "p/2/a.wav", "p/2/b.txt", "q.wav")
    assert found_in([f"{tmp_path}/p/*/*.wav"]) == (["1/a.wav", "2/a.wav"], [])
    assert found_in([f"{tmp_path}/**/*.wav"]) == (["p/1/a.wav", "p/2/a.wav", "q.wav"], [])
    assert found_in([f"{tmp_path}/p/[12]"]) == (["1/a.wav", "2/a.wav"], [])
    assert found_in([f"{tmp_path}/**"]) == (["p/1/a.wav", "p/2/a.wav", "q.wav"], [])


def test_a_name_with_brackets_is_a_name(tmp_path):
    touch(tmp_path, "take [1].wav")
    assert found_in([tmp_path / "take [1].wav"]) == (["take [1].wav"], [])


def test_each_file_comes_once(tmp_path):
    touch(tmp_path, "a.wav")
    os.symlink(tmp_path / "a.wav", tmp_path / "b.wav")
    assert found_in([tmp_path, tmp_path / "a.wav", f"{tmp_path}/*.wav"])[0] == ["a.wav"]


def test_linked_folders_are_searched_and_circles_end(tmp_path):
    touch(tmp_path / "data", "a.wav", "sub/c.wav")
    touch(tmp_path / "elsewhere", "b.wav")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "elsewhere" / "back")
    os.symlink(tmp_path / "data" / "sub", tmp_path / "data" / "again")
    for names in ([tmp_path / "data"], [f"{tmp_path}/data/**/*.wav"], [f"{tmp_path}/data/**"]):
        assert found_in(names) == (["a.wav", "link/b.wav", "sub/c.wav"], [])


def test_a_link_to_a_folder_above_brings_in_nothing(tmp_path):
    touch(tmp_path, "not named.wav", "data/a.wav", "data/x/y/b.wav", "elsewhere/c.wav")
    os.symlink("..", tmp_path / "data" / "loop")
    os.symlink("../..", tmp_path / "data" / "x" / "loop")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "link")
    os.symlink(tmp_path, tmp_path / "elsewhere" / "up")
    expected = ["a.wav", "link/c.wav", "x/y/b.wav"]
    assert found_in([tmp_path / "data"]) == (expected, [])
    assert found_in([f"{tmp_path}/data/**/*.wav"]) == (expected, [])
    assert found_in([f"{tmp_path}/data/*/*.wav", f"{tmp_path}/data/[x-l]*"])[0] == ["link/c.wav"]


def test_a_file_counts_under_its_own_name_before_that_of_a_link(tmp_path):
    touch(tmp_path, "z.wav", "z/b.wav")
    os.symlink("z.wav", tmp_path / "a.wav")
    os.symlink("z", tmp_path / "a")
    os.symlink("gone.wav", tmp_path / "c.wav")
    names, (failure,) = found_in([tmp_path])
    assert names == ["z/b.wav", "z.wav"]
    assert "c.wav is a link to a file that does not exist" in failure


def test_hidden_files_are_skipped_unless_they_are_named(tmp_path):
    touch(tmp_path, ".h/a.wav", ".b.wav", "c.wav")
    assert found_in([tmp_path])[0] == found_in([f"{tmp_path}/**"])[0] == found_in([f"{tmp_path}/*"])[0] == ["c.wav"]
    assert found_in([tmp_path / ".h", tmp_path / ".b.wav"])[0] == ["a.wav", ".b.wav"]


def test_a_manifest_is_an_input_like_any_other(tmp_path):
    touch(tmp_path, "x/a.wav", "b.wav")
    lines = ['{"path": "list/../x/a.wav"}', '{"path": "../b.wav"}', '{"path": "x/a.wav"}']
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "m.jsonl").write_text("\n".join(lines[::2]) + "\n", encoding=encoding)
        assert found_in([tmp_path / "m.jsonl"]) == (["x/a.wav"], [])
    (tmp_path / "x" / "m.jsonl").write_text(lines[1])
    assert found_in([tmp_path / "x" / "m.jsonl"]) == (["b.wav"], [])
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot read the manifest: No such file"):
        found_in([tmp_path / "gone.jsonl"])


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    touch(tmp_path, "a.wav")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="a name of an input is empty"):
        found_in([""])


def test_the_domain_is_the_first_folder_below(tmp_path):
    touch(tmp_path, "d/speech/spk1/a.wav", "d/b.wav")
    for names in ([tmp_path / "d"], [f"{tmp_path}/d/**"]):
        found = find_inputs(names, AUDIO).sources
        assert [source.domain for source in found] == ["", "speech"]
        items, _ = find_items(names, AUDIO)
        assert [(item.domain, item.text) for item in items] == [("", ""), ("speech", "spk1")]


def test_what_leads_nowhere_is_said(tmp_path):
    touch(tmp_path, "empty/notes.txt")
    names, failures = found_in([f"{tmp_path}/*.wav", tmp_path / "empty"])
    assert names == []
    assert "matches no file" in failures[0]
    assert "holds no audio files (.wav, .flac)" in failures[1]


def placed(paths, folder="out"):
    sources = [Source(Path(path), Path(relative)) for path, relative in paths]
    return [path.as_posix() for path in place_outputs(sources, folder, ".losatok", AUDIO)]


def test_outputs_replace_the_suffix_and_keep_the_tree():
    assert placed([("r/a.wav", "a.wav"), ("r/x/b.flac", "x/b.flac")]) == ["out/a.losatok", "out/x/b.losatok"]
    assert placed([("r/v1.2", "v1.2"), ("r/a.WAV", "a.WAV")]) == ["out/v1.2.losatok", "out/a.losatok"]


def test_two_formats_of_one_name_are_told_apart_by_their_suffixes():
    paths = [("r/a.wav", "a.wav"), ("r/a.flac", "a.flac"), ("r/b.wav", "b.wav")]
    assert placed(paths) == ["out/a.wav.losatok", "out/a.flac.losatok", "out/b.losatok"]


def test_two_files_of_one_name_are_told_apart_by_their_folders():
    paths = [("r/x/a.wav", "a.wav"), ("r/y/a.wav", "a.wav"), ("r/y/b.wav", "b.wav")]
    assert placed(paths) == ["out/x/a.losatok", "out/y/a.losatok", "out/b.losatok"]


def test_both_at_once():
    paths = [("r/x/a.wav", "a.wav"), ("r/x/a.flac", "a.flac"), ("r/y/a.wav", "a.wav")]
    assert placed(paths) == ["out/x/a.losatok", "out/a.flac.losatok", "out/y/a.losatok"]


NAMES = st.sampled_from(["a", "b", "a.wav", "a.flac", "b.wav", "a.wav.wav"])


@given(st.lists(st.tuples(st.sampled_from(["x", "y", "x/z"]), NAMES), unique=True, max_size=12))
def test_no_two_inputs_ever_share_an_output(files):
    paths = [(f"r/{folder}/{name}", name) for folder, name in files]
    outputs = placed(paths)
    assert len(set(outputs)) == len(files)
    assert all(output.startswith("out/") and ".." not in output for output in outputs)


def test_a_source_that_is_listed_twice_is_refused():
    with pytest.raises(UserError, match=r"r/a and r/a would both be written to out/a\.x; name each once"):
        place_outputs([Source(Path("r/a"), Path("a")), Source(Path("r/a"), Path("a"))], "out", ".x", AUDIO)


def test_an_input_is_never_overwritten(tmp_path):
    touch(tmp_path, "a.losatok")
    with pytest.raises(UserError, match="is one of the inputs and would be overwritten"):
        place_outputs([Source(tmp_path / "a.losatok", Path("a.losatok"))], tmp_path, ".losatok", (".losatok",))
