"""tools/torture.py: that its trials notice what does not hold, and that the page says what was counted."""

import json
import random
import sys
from pathlib import Path

import pytest

from scripts import ROOT, load_script

sys.path.insert(0, str(ROOT / "tools"))
from trials import jobs, mutations
from trials.commands import Outcome
from trials.trial import FoundError, Trial


@pytest.fixture(scope="module")
def torture():
    return load_script("tools/torture.py")


class Flaky(Trial):
    """Holds in even attempts; breaks by itself in every fifth."""

    name = "flaky"
    summary = "numbers"

    def attempt(self, chance, counts):
        counts["numbers"] += 1
        number = self.tally.attempts - 1
        self.drawn = chance.random()
        if number % 5 == 4:
            raise ZeroDivisionError
        if number % 2:
            raise FoundError(f"{number} is odd")


def test_what_did_not_hold_is_counted_and_attempts_can_be_made_again(torture, tmp_path, capsys):
    trial, drawn = Flaky(tmp_path, seed=3), []
    for number in range(5):
        torture.attempt(trial, number)
        drawn.append(trial.drawn)
    assert trial.tally.attempts == trial.tally.counts["numbers"] == 5
    assert [finding["attempt"] for finding in trial.tally.findings] == [1, 3, 4]
    assert "ZeroDivisionError" in trial.tally.findings[-1]["what"]
    assert "flaky:1 (seed 3): 1 is odd" in capsys.readouterr().out
    again = Flaky(tmp_path, seed=3)
    again.run(2)
    assert again.drawn == drawn[2]
    assert len(set(drawn)) == 5
    kept = torture.record([trial], 3, 0.5)
    assert "| numbers | 5 | numbers: 5 | 3 |" in torture.table(kept)


@pytest.mark.parametrize(
    ("code", "output", "says"),
    [
        (1, "losatok: a file is missing", "exit code 1, not 0 or 2"),
        (-11, "", "exit code -11"),
        (2, "Traceback (most recent call last):", "a defect"),
        (2, "losatok: a defect: KeyError", "a defect"),
        (2, "losatok: \x1b[31mred", "a control character"),
    ],
)
def test_commands_are_held_to_what_is_promised(code, output, says):
    with pytest.raises(FoundError, match=says):
        Outcome(code, output, 1.0).check([0, 2])
    Outcome(2, "losatok: a file is missing\n", 1.0).check([0, 2])


def test_outputs_that_are_not_whole_missing_or_left_over_are_noticed(tmp_path):
    job = next(job for job in jobs.JOBS if job.name == "encode")
    (tmp_path / "a.losatok").write_bytes(b"whole")
    (tmp_path / ".losatok-outputs.jsonl").write_text("{}")
    whole = jobs.outputs(job, tmp_path)
    assert list(whole) == ["a.losatok"]
    assert jobs.check_partial(job, tmp_path, [whole], "then") == 1
    jobs.check_complete(job, tmp_path, whole, "then")
    (tmp_path / ".losatok-part-a").write_bytes(b"ha")
    with pytest.raises(FoundError, match="1 temporary files were left"):
        jobs.check_complete(job, tmp_path, whole, "then")
    (tmp_path / "a.losatok").write_bytes(b"who")
    with pytest.raises(FoundError, match=r"a\.losatok is not whole"):
        jobs.check_partial(job, tmp_path, [whole], "then")
    (tmp_path / "a.losatok").unlink()
    with pytest.raises(FoundError, match=r"1 outputs differ: a\.losatok"):
        jobs.check_complete(job, tmp_path, whole, "then")


def test_half_a_model_is_noticed(tmp_path):
    job = next(job for job in jobs.JOBS if job.name == "convert")
    (tmp_path / "model").mkdir()
    states = []
    for name in ("old", "new"):
        for file in ("config.json", "model.safetensors"):
            (tmp_path / "model" / file).write_text(name)
        states.append(jobs.outputs(job, tmp_path))
        assert jobs.check_partial(job, tmp_path, [states[0], states[-1]], "then") == 2
    (tmp_path / "model" / "config.json").write_text("old")
    with pytest.raises(FoundError, match="neither the old nor the new one"):
        jobs.check_partial(job, tmp_path, states, "then")


@pytest.mark.parametrize("text", [False, True])
def test_mutations_change_files_and_can_be_made_again(text):
    raw = json.dumps({"seconds": 3.0, "path": "a.wav", "list": [1, 2, 3]}).encode() * 9
    changed = [mutations.mutate(raw, random.Random(seed), text) for seed in range(300)]
    assert changed == [mutations.mutate(raw, random.Random(seed), text) for seed in range(300)]
    assert sum(new != raw for new in changed) > 280
    assert {len(new) < len(raw) for new in changed} == {True, False}


def test_the_page_says_what_was_counted(torture):
    kept = json.loads((ROOT / "docs" / "torture.json").read_text())
    assert torture.table(kept) in (ROOT / "docs" / "reliability.md").read_text()
    assert list(kept["trials"]) == list(torture.TRIALS)
    assert kept["minutes"] >= 60
    assert not any(trial["findings"] for trial in kept["trials"].values())
    assert all(trial["attempts"] for trial in kept["trials"].values())
    assert Path(ROOT / "tools" / "trials").is_dir()
