"""The features of many audio files, computed by several processes if there are enough files.

A worker process imports this file, so this file imports little (numba alone would take seconds).
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from . import UserError, ctrl_c_is_for_us
from .audio_file import read_audio
from .features import mfcc

CHUNK = 16  # utterances per task of a worker process
SMALL_PART = 400  # up to here, starting worker processes costs more than it saves


def _extract(paths):
    """A worker's task: paths -> [(rows, None) or (None, reason)]."""
    results = []
    for path in paths:
        try:
            results.append((mfcc(read_audio(path)), None))
        except UserError as error:
            results.append((None, str(error)))
    return results


def extract_all(paths, workers):
    """Yield (rows, None) or (None, reason) for each path, in order; few paths are done in this process."""
    finished = 0
    if workers > 1 and len(paths) > SMALL_PART:
        try:
            for result in _extract_in_processes(paths, workers):
                yield result
                finished += 1
        except BrokenProcessPool:
            # A worker was killed (memory?), or could not start: `spawn` imports the main script again, which fails
            # if that lacks its `if __name__ == "__main__"`.  This process does the rest.
            pass
    for path in paths[finished:]:
        yield from _extract([path])


def _start_worker():
    """Leave Ctrl-C to the parent, and end when the parent ends, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _extract_in_processes(paths, workers):
    # spawn, never fork: a fork after any parallel numba kernel hangs (OpenMP). The workers' own BLAS
    # threads would only fight over the cores, so the environment they inherit switches those off.
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker)

    def submit(chunk):
        with ctrl_c_is_for_us():  # this is where workers are started
            return pool.submit(_extract, chunk)

    try:
        chunks = (paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK))
        # A bounded queue, so that only a few results wait in memory for their predecessors to be written.
        waiting = deque(map(submit, itertools.islice(chunks, 2 * workers + 2)))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(map(submit, itertools.islice(chunks, 1)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
