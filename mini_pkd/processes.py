"""Models side by side, each trained by a process of its own; and how all of them end together.

Small models do not keep many cores busy: a step has hundreds of short kernels, and handing each of them to all
threads costs more than it gains.  But most models of a table do not depend on each other, so several are trained at a
time (`--jobs`), each with its share of the cores.

A process that trains one model is the same command again, with `--only MODEL --slot N`.  Ctrl-C reaches the parent
alone, which then sends its processes a SIGTERM.  When the parent ends, for whatever reason, they end as well.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from . import UserError, ctrl_c_is_for_us
from .stop_signal import Interrupted
from .threads import usable_cores

ROLES = ("teacher", "progressive", "direct", "baseline")  # in this order: first the models that others wait for


def default_jobs(scale):
    return 1 if scale.name == "full" else min(usable_cores(), 4)


@contextlib.contextmanager
def sigterm_is_ctrl_c():
    """SIGTERM while features are made ends the command as Ctrl-C does, with a sentence."""
    before = None
    with contextlib.suppress(ValueError):  # outside of the main thread Python sets no signal handlers
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def end_with_parent():
    """A process that trains one model must not outlive its parent: the next command would train the same model.

    The parent holds the other end of our stdin, so an end of file means that the parent has ended.
    """

    def follow():
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Job(NamedTuple):
    """A model to train in a process of its own."""

    name: str  # as it is called in messages, of several seeds with its seed; no two have the same
    teacher: str | None
    words: list  # arguments of `python -m mini_pkd.cascade` for it
    finished: Callable  # () -> is its result there?
    when_finished: Callable  # () is called then


def train_side_by_side(queue, jobs, stop, say):
    """Start a process for each Job as soon as its teacher is finished, `jobs` at a time, the first in the queue first.

    stop: StopSignal; say: prints a sentence
    """
    waiting = {job.name: job for job in queue}
    running = {}  # name: (slot, process, Job)
    failed, killed, told = [], {}, False
    while running or (waiting and not (failed or killed or stop.raised)):
        for name, job in list(waiting.items()):
            ready = job.teacher not in waiting.keys() | running.keys()
            if ready and len(running) < jobs and not (failed or killed or stop.raised):
                slot = min(set(range(jobs)) - {slot for slot, *_ in running.values()})
                running[name] = slot, _start([*job.words, "--slot", slot], jobs), job
                del waiting[name]
        time.sleep(0.1)
        if stop.raised and not told:
            told = True
            for _, process, _ in running.values():
                process.terminate()
        for name, (_, process, job) in list(running.items()):
            if process.poll() is not None:
                process.stdin.close()
                del running[name]
                if job.finished():
                    job.when_finished()
                elif not stop.raised:
                    say(f"{name}: ended early; the models in training are finished first")
                    if process.returncode in (0, 1, 2):
                        failed.append(name)
                    else:  # a signal ended it, or somebody else sent it the SIGTERM that asks it to stop
                        killed[name] = -process.returncode if process.returncode < 0 else signal.SIGTERM
    if stop.raised:
        raise Interrupted
    if failed or killed:
        raise UserError(_reasons(failed, killed))


def _start(words, jobs):
    threads = str(max(1, usable_cores() // jobs))
    environment = os.environ | {name: threads for name in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
    with ctrl_c_is_for_us():  # the process hears of it by our SIGTERM
        return subprocess.Popen(
            [sys.executable, "-m", "mini_pkd.cascade", *map(str, words)],
            env=environment,
            stdin=subprocess.PIPE,  # see end_with_parent
        )


def _reasons(failed, killed):
    reasons = [f"training of {', '.join(failed)} ended early: do what its message above says"] if failed else []
    for name, number in killed.items():
        less = ", with a smaller --jobs if memory has run out" if number == signal.SIGKILL else ""
        reasons.append(
            f"training of {name} was ended from outside (signal {number}, {signal.strsignal(number)}): "
            f"give the same command again{less}"
        )
    return "; ".join(reasons) + "; training continues where it was last saved, and finished models are kept."
