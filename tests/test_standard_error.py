"""C libraries that write to standard error are silenced in ``losatok``, and nothing else is."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

CODE = """
import ctypes, os, sys, threading
from losatok_ext import standard_error
libc = ctypes.CDLL(None)
def chatter(text):
    os.write(2, text.encode() + b"\\n")
if sys.argv[1] == "apart":
    standard_error.keep_apart()
chatter("before")
with standard_error.silent_libraries():
    with standard_error.silent_libraries():
        chatter("inside")
        print("of Python", file=sys.stderr)
    chatter("still inside")
chatter("after")
print("the end", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("apart", ["before", "of Python", "after", "the end"]),
        ("as it was", ["before", "inside", "of Python", "still inside", "after", "the end"]),
    ],
)
def test_only_what_libraries_write_inside_is_left_out(how, expected):
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == expected


def test_without_a_standard_error_nothing_happens():
    code = "import os, sys; os.close(2); from losatok_ext import standard_error as s; s.keep_apart(); print('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"


def test_the_mp3_decoder_says_nothing_and_the_damage_is_told(tmp_path):
    sound = 0.3 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    soundfile.write(tmp_path / "a.mp3", sound, 16_000, format="MP3")
    raw = bytearray((tmp_path / "a.mp3").read_bytes())
    raw[3000:5000] = bytes(2000)
    (tmp_path / "a.mp3").write_bytes(raw)
    chatty = [sys.executable, "-c", f"import soundfile; soundfile.read({str(tmp_path / 'a.mp3')!r})"]
    assert subprocess.run(chatty, capture_output=True, text=True).stderr  # libsndfile by itself
    command = [sys.executable, "-m", "losatok_ext.cli", "encode", str(tmp_path / "a.mp3"), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert [line for line in lines if "mpg123" in line or "Note:" in line or "Warning:" in line] == []
    assert any("a.mp3 is truncated or damaged" in line for line in (*lines, *done.stdout.splitlines()))
