"""The progress of training on a terminal that is closed while the run goes on."""

import errno
import os
import pty
import sys

import pytest
import torch

from losatok_ext.cli.progress import TrainingProgress
from losatok_ext.training import RunStart, StepReport, Validation
from losatok_ext.training.data.corpus import Corpus


def test_a_closed_terminal_does_not_end_the_run(monkeypatch):
    """SIGHUP comes as the terminal goes; until the step's checkpoint is written nothing else may stop the run."""
    master, slave = pty.openpty()
    terminal = os.fdopen(slave, "w")
    monkeypatch.setattr(sys, "stderr", terminal)
    corpus = Corpus((), 16000, 640, ("a.wav: too short",))
    start = RunStart("sembo", corpus, torch.device("cpu"), 1, 9, 0, 1.0, 10, 20, notes=("weights stored as float16",))
    with TrainingProgress() as progress:
        assert progress.console.is_terminal
        progress.on_start(start)
        said = ""
        while "weights stored as float16" not in said:  # what was written may come in pieces
            said += os.read(master, 10000).decode()
        os.close(master)
        with pytest.raises(OSError) as error:
            print("x", file=terminal, flush=True)
        assert error.value.errno == errno.EIO
        found = Validation(1, {"loss": 1.0}, 1.0, {}, True)
        progress.on_step(StepReport("sembo", 1, 9, {"loss": 1.0}, 1.0, 1.0, None, 1e-3, 1.0, 1.0, 0, True, found))
    with pytest.raises(OSError):
        terminal.close()
