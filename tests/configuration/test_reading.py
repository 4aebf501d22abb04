"""Reading configurations: YAML 1.2's numbers, and files that are too large, too deep or without end."""

import json

import pytest

from losatok_ext.configuration import parse_assignments, read_json, read_yaml
from losatok_ext.errors import ConfigError

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64))
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-2.5E3", -2500.0), (".5e1", 5.0), ("1e", "1e"), ("e5", "e5"), ("12", 12), ("1.0", 1.0)],
)
def test_numbers_are_read_as_yaml_1_2_has_them(tmp_path, text, value):
    (tmp_path / "a.yaml").write_text(f"x: {text}")
    assert read_yaml(tmp_path / "a.yaml") == {"x": value} == parse_assignments([f"x={text}"])


def test_aliases_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("\ufeffa: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "holds more than 100000 values"),
        (MERGE_BOMB, "holds more than 100000 values"),
        ("a: &a {b: *a}", "holds itself"),
        ("a: &a [*a]", "holds itself"),
        ("a: " + "[" * 40 + "]" * 40, "should have at most 32 levels"),
        ("a: " + "[" * 50_000, "should have at most 32 levels"),
        ("a: " + "{b: " * 5000 + "1" + "}" * 5000, "should have at most 32 levels"),
        ("a: " + "x" * 2**18, "too large for a configuration"),
        ("a: 2026-13-45", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 2026-01-01", "should hold text, numbers"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_hostile_yaml_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{path}.*{message}"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable JSON"),
        ("[" * 40 + "]" * 40, "should have at most 32 levels"),
        ("[" * 100_000, "should have at most 32 levels"),
        (json.dumps([0] * 100_001), "should hold at most 100000 values"),
        ("9" * 5000, "is not readable JSON"),
        ('"' + "x" * 2**24 + '"', "too large for a configuration"),
    ],
)
def test_hostile_json_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{path}.*{message}"):
        read_json(path)
    with pytest.raises(ConfigError, match=r"gone\.json: cannot read the configuration"):
        read_json(tmp_path / "gone.json")


def test_files_that_are_not_text_are_refused_by_name(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"a: not valid YAML: 'utf-8' codec"):
        read_yaml(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"a is not readable JSON \('utf-8' codec"):
        read_json(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"^--set"):
        parse_assignments(["x=\udcff"])


@pytest.mark.parametrize("text", ["x=" + "[" * 5000, ".".join("x" * 5000) + "=1", "x=&a [*a]"])
def test_hostile_assignments_are_refused(text):
    with pytest.raises(ConfigError, match=r"^--set"):
        parse_assignments([text])
