"""mini_pkd: multi-stage progressive compression of a conformer transducer, from scratch.

Read the files in the order of the README's map; this one only holds what all of them share.
"""

import contextlib
import os
import signal
import sys

__version__ = "0.1.0"

# A thread that waits for work should sleep.  By default it spins, and on a machine whose cores are busy
# with something else every kernel then waits for a time slice: 30 times slower, measured.  This must be
# said before numpy and numba start their threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")


def _ctrl_c(number, frame):
    if not hasattr(sys.modules["__main__"], "main"):
        os._exit(130)  # still importing
    signal.default_int_handler(number, frame)


# `python -m mini_pkd.cascade` imports for seconds before it comes to its main(), which knows what to do on Ctrl-C.
# Until then there is nothing to save and nobody to catch a KeyboardInterrupt.  sys.argv is ["-m", ...] only while
# Python looks for the module to run; a program that imports the package keeps its own ways.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _ctrl_c)


@contextlib.contextmanager
def ctrl_c_is_for_us():
    """A process that is started here never sees Ctrl-C, not even while it still imports: its parent ends it.

    A terminal sends Ctrl-C to everybody at once.  Blocked signals stay blocked in a child, and one that comes
    for us just now is delivered when the block ends: ignoring it would lose it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class UserError(Exception):
    """Something the user can mend. Its message is one sentence: what is wrong, where, what to do.

    Commands print it on stderr and exit with status 1 (command.py); nobody sees a traceback.
    """
