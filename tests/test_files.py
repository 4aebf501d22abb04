"""A folder that one process at a time may write: who is refused, and when the lock is free again."""

import signal
import subprocess
import sys

import pytest

from losatok_ext.errors import TrainingError, UserError
from losatok_ext.files import LOCK, locked_folder

HOLD = """
import sys, time
from pathlib import Path
from losatok_ext.errors import UserError
from losatok_ext.files import locked_folder
with locked_folder(Path(sys.argv[1]), UserError("in use")):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(TrainingError, match="somebody is here"),
            locked_folder(tmp_path, TrainingError("somebody is here")),
        ):
            pass
        assert holder.poll() is None
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with locked_folder(tmp_path, TrainingError("somebody is here")):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_one_process_does_not_lock_a_folder_twice_and_frees_it_after_an_error(tmp_path):
    folder, in_use = tmp_path / "new" / "folder", UserError("in use")
    with pytest.raises(KeyError), locked_folder(folder, in_use):
        with pytest.raises(UserError, match="in use"), locked_folder(folder, in_use):
            pass
        raise KeyError
    with locked_folder(folder, in_use):
        pass


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError), locked_folder(tmp_path / "file", UserError("in use")):
        pass
    monkeypatch.setitem(sys.modules, "filelock", None)
    with (
        pytest.raises(UserError, match=r"needs filelock .* pip install 'losatok-ext\[train\]'"),
        locked_folder(tmp_path, UserError("in use")),
    ):
        pass
