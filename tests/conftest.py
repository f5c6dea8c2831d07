"""One thread for every test: the arrays are tiny, and waiting threads on a busy machine cost more than they bring."""

import os

for name in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
