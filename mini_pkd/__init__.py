"""mini_pkd: multi-stage progressive compression of a conformer transducer, from scratch.

Read the files in the order of the README's map; this one only holds what all of them share.
"""

import os

__version__ = "0.1.0"

# A thread that waits for work should sleep.  By default it spins, and on a machine whose cores are busy
# with something else every kernel then waits for a time slice: 30 times slower, measured.  This must be
# said before numpy and numba start their threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")


class UserError(Exception):
    """Something the user can mend. Its message is one sentence: what is wrong, where, what to do.

    Commands print it on stderr and exit with status 1 (command.py); nobody sees a traceback.
    """
