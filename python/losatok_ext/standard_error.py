"""Silence for C libraries that write to standard error of their own accord, such as libsndfile's MP3 decoder.

Only ``losatok`` silences them (:func:`keep_apart`): in other programs standard error belongs to the program.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_apart = False
_silenced = 0
_kept = -1


def keep_apart() -> None:
    """Let Python write its messages through a descriptor of their own from now on, if it writes to descriptor 2 now.

    Nothing changes for the reader: both lead to the same place. It allows :func:`silent_libraries`.
    """
    global _apart
    try:
        if sys.stderr is None or sys.stderr.fileno() != 2:
            return
        own = os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1)
    except (OSError, ValueError):  # it is closed
        return
    sys.stderr.flush()
    sys.stderr = own
    _apart = True


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Inside this ``with`` block nothing that is written to descriptor 2 is shown, after :func:`keep_apart`.

    Several threads may be in such a block at once. Python's own messages are shown.
    """
    if not _apart:
        yield
        return
    _change(1)
    try:
        yield
    finally:
        _change(-1)


def _change(by: int) -> None:
    global _silenced, _kept
    with _lock:
        before, _silenced = _silenced, _silenced + by
        if before == 0:
            _kept = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        elif _silenced == 0:
            os.dup2(_kept, 2)
            os.close(_kept)
