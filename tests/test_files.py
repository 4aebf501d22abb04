"""Files that are written whole, what killed processes leave, and folders that one process at a time may write."""

import errno
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from losatok_ext import files
from losatok_ext.errors import TrainingError, UserError
from losatok_ext.files import LOCK, TEMPORARY, atomic_path, locked_folder, remove_leftovers

HOLD = """
import sys, time
from pathlib import Path
from losatok_ext.errors import UserError
from losatok_ext.files import locked_folder
with locked_folder(Path(sys.argv[1]), UserError("in use")):
    print("locked", flush=True)
    time.sleep(600)
"""


WRITE = """
import sys, time
import torch
from pathlib import Path
from safetensors.torch import save_file
from losatok_ext.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    if path.suffix == ".safetensors":
        save_file({"x": torch.zeros(4)}, path)  # replaces what is there by another file
        (path.parent / ".tmpAbCdEf").write_text("what it leaves where it is killed")
    else:
        path.write_text("half of it")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["a.txt", "a.safetensors"])
def writer(request, tmp_path):
    """A process in the middle of writing a file."""
    command = [sys.executable, "-c", WRITE, str(tmp_path / request.param)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_searched", set())
    with atomic_path(tmp_path / "b.txt") as path:
        path.write_text("b")
    (alive,) = hidden(tmp_path)
    assert alive.startswith(TEMPORARY)
    assert any(path.name.startswith(".a.") for path in (tmp_path / alive).iterdir())
    writer.kill()
    writer.wait()
    (tmp_path / ".a-hidden.txt").write_text("of the user")
    (tmp_path / f"{TEMPORARY}file").write_text("of the user")
    (tmp_path / "folder").mkdir()
    (tmp_path / f"{TEMPORARY}link").symlink_to(tmp_path / "folder")
    (tmp_path / f"{TEMPORARY}empty").mkdir()  # killed before it was locked
    monkeypatch.setattr(files, "_searched", set())  # as in another process
    with atomic_path(tmp_path / "a.txt") as path:
        path.write_text("a")
    assert hidden(tmp_path) == [".a-hidden.txt", f"{TEMPORARY}file", f"{TEMPORARY}link"]
    assert ((tmp_path / "a.txt").read_text(), (tmp_path / "b.txt").read_text()) == ("a", "b")


def test_a_folder_is_searched_once(tmp_path, monkeypatch):
    searched = []
    monkeypatch.setattr(files, "_searched", set())
    monkeypatch.setattr(files, "remove_leftovers", searched.append)
    for name in ("a", "b"):
        with atomic_path(tmp_path / name) as path:
            path.write_text(name)
    assert searched == [tmp_path]


def test_no_file_and_no_folder_is_left_after_an_error(tmp_path):
    with pytest.raises(KeyError), atomic_path(tmp_path / "a.txt") as path:
        path.write_text("half of it")
        raise KeyError
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass  # nothing was written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(files.fcntl is None, reason="no locks on this system")
@pytest.mark.parametrize("moment", ["before the lock file", "before the lock"])
def test_a_new_folder_that_was_taken_for_a_leftover_is_made_again(tmp_path, monkeypatch, moment):
    """Between the calls that make and lock it, another process may look for leftovers."""
    make, lock, made = tempfile.mkdtemp, files.fcntl.flock, []

    def make_and_lose(*arguments, **options):
        made.append(make(*arguments, **options))
        if len(made) == 1 and moment == "before the lock file":
            assert remove_leftovers(tmp_path) == [Path(made[0])]
        return made[-1]

    def lose_and_lock(handle, operation):
        if len(made) == 1 and moment == "before the lock" and not operation & files.fcntl.LOCK_NB:
            assert remove_leftovers(tmp_path) == [Path(made[0])]
        return lock(handle, operation)

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    monkeypatch.setattr(files.fcntl, "flock", lose_and_lock)
    with atomic_path(tmp_path / "a.txt") as path:
        path.write_text("a")
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    (tmp_path / f"{TEMPORARY}1").mkdir()
    (tmp_path / f"{TEMPORARY}1" / ".a.txt").write_text("perhaps another process writes it")
    if files.fcntl is not None:

        def fail(*arguments):
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(files.fcntl, "flock", fail)
        assert remove_leftovers(tmp_path) == []
        with atomic_path(tmp_path / "a.txt") as path:
            path.write_text("a")
    monkeypatch.setattr(files, "fcntl", None)
    assert remove_leftovers(tmp_path) == []
    with atomic_path(tmp_path / "a.txt") as path:
        path.write_text("b")
    assert hidden(tmp_path) == [f"{TEMPORARY}1"]
    assert (tmp_path / f"{TEMPORARY}1" / ".a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "b"


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
