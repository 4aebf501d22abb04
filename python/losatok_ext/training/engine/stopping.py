"""Stopping between two steps when the process is asked to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Hold back SIGINT, SIGTERM and SIGHUP (a closed terminal or a lost connection) while the context is open.

    The function that is yielded tells whether one of them came; the caller then finishes its step and stops. After the
    first signal the handlers from before are back, so that a second one acts at once. A signal that the process ignores
    stays ignored: ``nohup`` trains on when the terminal is closed.

    Python delivers signals to the main thread only. In another thread none is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for which, handler in before.items():
            signal.signal(which, handler)

    def note(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        restore()

    for which in _SIGNALS:
        if signal.getsignal(which) is not signal.SIG_IGN:
            before[which] = signal.signal(which, note)
    try:
        yield lambda: asked
    finally:
        restore()
