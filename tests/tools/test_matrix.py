"""tools/matrix.py: which combinations are run, what is run again, and what the table says."""

import sys
from pathlib import Path

import pytest

from scripts import load_script


@pytest.fixture(scope="module")
def matrix():
    return load_script("tools/matrix.py")


def names(combinations):
    return [combination.name for combination in combinations]


def test_each_torch_on_one_python_and_each_python_with_one_torch(matrix):
    combinations = matrix.plan(["3.10", "3.11", "3.12"], ["2.10", "2.13", "2.14.1"], "3.11")
    assert names(combinations) == [
        "py3.11-torch2.10",
        "py3.11-torch2.13",
        "py3.11-torch2.14.1",
        "py3.10-torch2.13",
        "py3.12-torch2.13",
    ]


def test_every_combination_on_request(matrix):
    assert len(matrix.plan(["3.10", "3.11"], ["2.10", "2.13"], "3.11", every=True)) == 4


def test_without_the_reference_torch_other_pythons_get_the_first(matrix):
    assert names(matrix.plan(["3.12", "3.13"], ["2.14.1"], "3.11")) == ["py3.12-torch2.14.1", "py3.13-torch2.14.1"]
    assert names(matrix.plan(["3.11", "3.13"], ["2.10", "2.13.0"], "3.11"))[-1] == "py3.13-torch2.13.0"


@pytest.mark.parametrize(
    ("newest", "expected"),
    [("2.14.1", ["2.10", "2.13", "2.14.1"]), ("2.13.0", ["2.10", "2.13"]), ("2.10.2", ["2.10", "2.13"])],
)
def test_the_newest_torch_is_run_once(matrix, newest, expected):
    assert matrix.resolve(["2.10", "2.13", "newest"], newest) == expected


def test_a_torch_that_is_no_version_is_refused(matrix):
    with pytest.raises(SystemExit, match="or newest; not 'latest'"):
        matrix.resolve(["latest"], None)


def test_interpreters_are_found_from_3_10_on_by_their_names(matrix, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, files in (
        (first, ("python3.9", "python3.12", "python3.12-config")),
        (second, ("python3.12", "python3.10")),
    ):
        folder.mkdir()
        for name in files:
            (folder / name).touch(mode=0o755)
    (second / "python3.13").touch(mode=0o644)  # cannot be run
    found = matrix.find_pythons([first, second, tmp_path / "missing"])
    assert found == {"3.10": second / "python3.10", "3.12": first / "python3.12"}


def test_another_commit_builds_and_tests_again_and_another_selection_only_tests(matrix, tmp_path):
    combination = matrix.Combination("3.11", "2.13")

    def todo(commit, tests):
        return matrix.parts(combination, Path(sys.executable), tmp_path, commit, tests, 0)

    record = matrix.Record(tmp_path)
    for part in todo("a", ["tests/ops"]):
        record.keep(part, "passed", 1.0)
    assert all(record.done(part) for part in todo("a", ["tests/ops"]))
    assert [part.name for part in todo("a", ["tests/nn"]) if not record.done(part)] == ["tests"]
    assert [part.name for part in todo("b", ["tests/ops"]) if not record.done(part)] == ["build", "install", "tests"]


def test_torch_is_not_replaced_by_what_is_installed_after_it(matrix, tmp_path):
    combination = matrix.Combination("3.11", "2.10")
    for part in matrix.parts(combination, Path(sys.executable), tmp_path, "a", [], 0):
        if part.name in ("install", "extras"):
            assert f"-c {tmp_path / 'torch.txt'}" in " ".join(part.command)
        if part.name == "torch":
            assert part.command[-1] == "torch==2.10.*"


def test_exact_versions_are_read_from_the_environment(matrix, tmp_path):
    combination = matrix.Combination("3.11", "2.10")
    folder = tmp_path / combination.name
    metadata = folder / "venv" / "lib" / "python3.11" / "site-packages" / "torch-2.10.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0+cpu\n")
    (folder / "venv" / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n")
    found = matrix.outcome(combination, folder, [], "abc")
    assert (found.python, found.torch, found.selection) == ("3.11.7", "2.10.0+cpu", "all")


REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two"><failure message="m"/></testcase>
<testcase classname="tests.a" name="three"><skipped/></testcase>
<testcase classname="tests.b" name="four"><error message="m"/></testcase>
</testsuite></testsuites>"""


def test_the_table_says_what_was_built_what_failed_and_what_was_not_run(matrix, tmp_path):
    tests = ["tests/ops"]
    tested, broken, fresh = (matrix.Combination("3.11", torch) for torch in ("2.10", "2.13", "2.14.1"))
    for combination, bad in ((tested, "tests"), (broken, "torch")):
        folder = tmp_path / combination.name
        record = matrix.Record(folder)
        for part in matrix.parts(combination, Path(sys.executable), folder, "abc", tests, 0):
            record.keep(part, "failed" if part.name == bad else "passed", 60.0)
            if part.name == bad:
                break
        (folder / "tests.xml").write_text(REPORT)
    outcomes = [matrix.outcome(each, tmp_path / each.name, tests, "abc") for each in (tested, broken, fresh)]
    assert [(each.build, each.tests) for each in outcomes] == [
        ("passed", "failed"),
        ("torch failed", "not run"),
        ("not run", "not run"),
    ]
    assert outcomes[0].counts == {"passed": 1, "failed": 1, "errors": 1, "skipped": 1}
    text = matrix.markdown(outcomes)
    assert "| 3.11 | 2.10 | passed | failed | 1 | 2 | 1 | 1.0 |" in text
    assert "- Python 3.11, torch 2.10: tests.a::two failed" in text
    assert "Commit abc, pytest tests/ops." in text
    other = matrix.outcome(tested, tmp_path / tested.name, ["tests/nn"], "abc")
    assert (other.build, other.tests, other.counts) == ("passed", "not run", {})
