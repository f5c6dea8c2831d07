"""stop_signal.py: Ctrl-C and SIGTERM raise a flag, the second Ctrl-C means now, and signals are given back."""

import os
import signal
import threading
import time

import pytest

from mini_pkd.stop_signal import Interrupted, StopSignal, raise_if, sigterm_after


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_flag_instead_of_an_exception(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.raised
        raise_if(stop)
        raise_if(None)
        os.kill(os.getpid(), number)
        assert stop.raised
        with pytest.raises(Interrupted):
            raise_if(stop)
        os.kill(os.getpid(), signal.SIGTERM)  # asking twice is no reason to lose work
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) == before


def test_a_sigterm_after_some_hours():
    with StopSignal() as stop:
        with sigterm_after(0.1 / 3600):
            end = time.monotonic() + 10
            while not stop.raised:
                assert time.monotonic() < end
                time.sleep(0.01)
        stop.raised = False
        with sigterm_after(0.1 / 3600):
            pass
        with sigterm_after(None):
            time.sleep(0.3)
        assert not stop.raised  # what has ended in time is left alone


def test_outside_the_main_thread_signals_are_left_alone():
    raised = []

    def work():
        with StopSignal() as stop:
            raised.append(stop.raised)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == [False]
