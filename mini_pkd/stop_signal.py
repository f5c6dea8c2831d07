"""Ctrl-C and SIGTERM as a flag, which training and live transcription read between two steps."""

import contextlib
import os
import signal
import threading


class Interrupted(Exception):
    """The user or the system asked to stop; everything is saved and the same command continues."""


def raise_if(stop):
    """Raise Interrupted if the flag of this StopSignal is up; None has none."""
    if stop is not None and stop.raised:
        raise Interrupted


class StopSignal:
    """While active, Ctrl-C and SIGTERM only raise a flag, so that no array is left half written."""

    def __enter__(self):
        self.raised = False
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._raise_flag)
            except ValueError:  # only the main thread may do this, and a notebook may run us in another: go on without
                pass
        return self

    def _raise_flag(self, number, frame):
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means now
        self.raised = True

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def sigterm_after(hours):
    """For `with`: this process gets a SIGTERM after so many hours, as from a batch system; None: never."""
    timer = None
    if hours is not None:
        timer = threading.Timer(3600 * hours, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
