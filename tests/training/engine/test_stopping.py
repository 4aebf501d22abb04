"""Which signals are held back until a step is done, and for how long."""

import os
import signal
import threading

import pytest

from losatok_ext.training.engine.stopping import stop_requests


@pytest.fixture(autouse=True)
def keep_handlers():
    handlers = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for which, handler in handlers.items():
        signal.signal(which, handler)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_acts(which):
    got = []
    signal.signal(which, lambda number, frame: got.append(number))
    with stop_requests() as asked:
        assert not asked()
        os.kill(os.getpid(), which)
        assert asked()
        assert got == []
        os.kill(os.getpid(), which)
        assert got == [which]
    os.kill(os.getpid(), which)
    assert got == [which, which]


def test_an_ignored_signal_stays_ignored():
    """As ``nohup`` starts a process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_requests() as asked:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not asked()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_another_thread_holds_nothing_back():
    handlers = [signal.getsignal(signal.SIGTERM)]

    def run():
        with stop_requests() as asked:
            handlers.append(signal.getsignal(signal.SIGTERM))
            assert not asked()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers[0] is handlers[1]
