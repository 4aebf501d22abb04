"""tools/make_corpus.py renders the bundled recordings, and says what it lacks."""

import json
import subprocess
import sys

import numpy as np
import soundfile

from losatok_ext.audio.samples import sample_folder
from scripts import ROOT, load_script

TOOL = ROOT / "tools" / "make_corpus.py"


def test_it_renders_the_bundled_recordings(tmp_path):
    manifest = load_script("tools/make_corpus.py").make_corpus(tmp_path, 16, 1234, ["environment"])
    bundled = (sample_folder() / "manifest.jsonl").read_text().splitlines()
    expected = [line for line in map(json.loads, bundled) if line["domain"] == "environment"]
    assert list(map(json.loads, manifest.read_text().splitlines())) == expected
    for line in expected:
        ours, theirs = (soundfile.read(root / line["path"], dtype="int16")[0] for root in (tmp_path, sample_folder()))
        assert np.array_equal(ours, theirs), line["path"]


def test_what_a_domain_needs_is_said(tmp_path):
    command = [sys.executable, TOOL, tmp_path / "out", "--domains", "music", "--sound-font", tmp_path / "none.sf2"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "music needs fluidsynth and the sound font" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
