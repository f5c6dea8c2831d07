"""One thread for every test: the arrays are tiny, and waiting threads on a busy machine cost more than they bring."""

import os

for name in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from chirps import copy, data, finished  # noqa: E402, F401
from handful import handful  # noqa: E402, F401


def pytest_configure():
    """Compile the kernels of training in another process, so that this one loads them like everybody else.

    Freshly compiled and loaded code may differ in the last bit (see warm_up.py), and tests compare bits.
    """
    from mini_pkd import warm_up

    warm_up.ensure()
