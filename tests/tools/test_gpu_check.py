"""make gpu-check: goes on where it was cut, and says what it lacks."""

import json
import os
import subprocess
import sys

import pytest
import torch

from scripts import load_script


@pytest.fixture(scope="module")
def check():
    return load_script("tools/gpu_check.py")


def command(code):
    return (sys.executable, "-c", code)


def test_a_part_that_was_cut_runs_again_and_one_that_is_done_does_not(check, tmp_path, monkeypatch):
    count = tmp_path / "count"
    once = command(f"open({str(count)!r}, 'a').write('x'); print('said')")
    waits = command("import sys; sys.stdin.read()")
    todo = [check.Part("one", once), check.Part("two", waits, ("one",)), check.Part("three", once, ("two",))]
    run, (reads, writes) = subprocess.run, os.pipe()

    def cut_what_waits(command, timeout, **options):
        return run(command, timeout=0.5 if command == waits else timeout, stdin=reads, **options)

    monkeypatch.setattr(subprocess, "run", cut_what_waits)
    assert not check.run(todo, check.Record(tmp_path / "out"), limit=600)
    monkeypatch.undo()
    assert {name: part["outcome"] for name, part in check.Record(tmp_path / "out").state.items()} == {
        "one": "passed",
        "two": "cut",
    }
    os.close(writes)
    todo[1] = check.Part("two", command(""), ("one",))
    assert check.run(todo, check.Record(tmp_path / "out"), limit=600)
    assert count.read_text() == "xx"  # "one" and "three", once each
    assert (tmp_path / "out" / "one.log").read_text() == "said\n"
    assert check.run(todo, check.Record(tmp_path / "out"), limit=600, again=["one"])
    assert count.read_text() == "xxx"


def test_what_needs_a_failed_part_is_left_out(check, tmp_path, capsys):
    todo = [check.Part("build", command("raise SystemExit(3)")), check.Part("tests", command(""), ("build",))]
    assert not check.run(todo, check.Record(tmp_path), limit=600)
    assert "tests: left out, build has not passed" in capsys.readouterr().out
    assert json.loads((tmp_path / "state.json").read_text())["build"]["outcome"] == "failed"


def test_every_family_is_measured(check, tmp_path):
    names = [part.name for part in check.parts(tmp_path)]
    assert names[:3] == ["build", "native", "triton"]
    assert {"bench-bottleneck", "bench-time_relation", "bench-quantize", "bench-vocoder"} <= set(names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(check, monkeypatch):
    monkeypatch.setattr(check, "NEEDED", ("torch",))
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        check.check_machine()
    monkeypatch.setattr(check, "NEEDED", ("torch", "a_package_that_is_not_there"))
    with pytest.raises(SystemExit, match="a_package_that_is_not_there"):
        check.check_machine()
