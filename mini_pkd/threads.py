"""One pool of threads: numpy's matrix products run on the threads that run the kernels.

OpenBLAS and numba each bring a pool.  A training step changes between them some hundred times, and each change
wakes sleeping threads, 40 to 60 us, as long as the work itself takes in a small model.  Threads that spin instead
of sleeping are there at once, but two pools that spin take the cores from each other.  With one pool there is nobody
to take them from: its threads may spin for a while, and 50 us become 3.

OpenBLAS has a door for this, openblas_set_threads_callback_function (from 0.3.28 on): it hands over the jobs of
a product instead of waking threads of its own.  Its rules, read from its blas_server.c and level3_thread.c:

- all jobs of a call must run at the same time, for they wait for each other;
- only one call may be under way, for job i always uses the i-th scratch buffer: hence the cell below;
- what a job does does not depend on who runs it: results are the same to the last bit.

A team is the whole pool or one thread: libgomp ends the threads that a smaller team leaves over, and starts them
again for the next large one (8, then 2 of 8 threads: 140 us a change, against 67 and 43).

All this is for cores that are ours.  Where another process takes one, the thread that shares it comes late and all
wait for it, hundreds of times a step: 2 to 4 times slower than on one thread, measured with one such process on two
cores.  So once a second we look whether our threads had to wait for a core, and step back while they do:
kernels run on one thread, products on OpenBLAS's own.

Done where it was tried: Linux, OpenBLAS with its own threads, numba on OpenMP.  Elsewhere each keeps its pool.
"""

import contextlib
import ctypes
import os
import sys
import time
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import address_of_symbol
from numba import cfunc, njit, prange, types
from numba.extending import intrinsic

# Numbers for each thread of a team: a pass over fewer is done sooner by one than by all, who have to meet first, or
# even to wake up.
GRAIN, GRAIN_ASLEEP = 2**12, 2**17
SPINS = "10000"  # of libgomp, about 0.2 ms here: longer than Python needs between two kernels
LOOK = 1.0  # seconds between looks at how crowded the cores are
CROWDED = 0.2  # seconds waited for each second of work; measured: 0.01 alone, 0.3 to 0.8 beside a busy process
OLDEST = (0, 3, 28)  # earlier ones hang: their jobs do not know their number


# --- how many cores are ours ----------------------------------------------------------------------------

OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_groups(controller):
    """Folders where the limits of this process stand, on Linux: those of its control group and of all around it."""
    folders = []
    with contextlib.suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or controller in controllers.split(","):
                root = GROUPS if number == "0" else GROUPS / controller  # version 2 or version 1
                group = root / path.lstrip("/")
                folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return folders


def usable_cores():
    """Cores that this process may use: os.cpu_count() less what taskset, a batch system or a container withholds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in control_groups("cpu"):
        for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            with contextlib.suppress(OSError, ValueError):  # not there; "max"
                quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
                if quota > 0:  # version 1 says -1 for no limit
                    cores = min(cores, -(-quota // period))  # rounded up: half a core more is better used than idle
    return cores


# --- what OpenBLAS calls ------------------------------------------------------------------------------


@intrinsic
def _do_job(typing, function, number, data, scratch):
    """Call the C function at this address: void (int number, void *data, int scratch)."""

    def codegen(context, builder, signature, arguments):
        function, number, data, scratch = arguments
        integer, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [integer, pointer, integer])
        target = builder.inttoptr(function, kind.as_pointer())
        builder.call(target, [number, builder.inttoptr(data, pointer), scratch])
        return context.get_dummy_value()

    return types.void(types.intp, types.int32, types.intp, types.int32), codegen


@intrinsic
def _exchange(typing, value):
    """Write `value` into this process's one cell for it, atomically; returns what was there, 0 at first."""

    def codegen(context, builder, signature, arguments):
        cell = builder.module.globals.get("mini_pkd_team")
        if cell is None:
            cell = ir.GlobalVariable(builder.module, ir.IntType(32), "mini_pkd_team")
            cell.initializer, cell.linkage = ir.Constant(ir.IntType(32), 0), "internal"
        return builder.atomic_rmw("xchg", cell, arguments[0], "seq_cst")

    return types.int32(types.int32), codegen


# numba.set_num_threads and get_num_threads would do, but what calls them is not kept in numba's cache: 0.5 s a start
_set_num_threads = types.ExternalFunction("set_num_threads", types.void(types.int32))
_get_num_threads = types.ExternalFunction("get_num_threads", types.int32())
_sched_yield = types.ExternalFunction("sched_yield", types.int32())
SYMBOLS = ("set_num_threads", "get_num_threads", "sched_yield")


@njit(cache=True, parallel=True, nogil=True)
def _run_jobs(function, jobs, size, data, scratch, team):
    for i in prange(team):  # as many iterations as threads: one each
        if i < jobs:
            _do_job(function, np.int32(i), data + i * size, scratch)


def _run_blas(sync, function, jobs, size, data, scratch):
    """OpenBLAS's openblas_threads_callback: run jobs 0 .. jobs - 1, and return when all are done.

    The cell holds the number of threads, and 0 while a call is under way.  Without a function it is set to `jobs`.
    """
    if function == 0:
        _exchange(jobs)
        return
    team = _exchange(np.int32(0))
    while team == 0:
        _sched_yield()
        team = _exchange(np.int32(0))
    before = _get_num_threads()
    _set_num_threads(team)
    _run_jobs(function, jobs, size, data, scratch, team)
    _set_num_threads(before)
    _exchange(team)


class OpenBLAS:
    """The functions of the OpenBLAS that numpy is linked to; LookupError where it has another BLAS."""

    def __init__(self):
        # a handle of numpy's own extension finds the symbols of the libraries that it needs, too
        extension = next(module for name, module in sys.modules.items() if name.endswith("._multiarray_umath"))
        self.library = ctypes.CDLL(extension.__file__)
        for form in ("scipy_openblas_%s64_", "scipy_openblas_%s", "openblas_%s64_", "openblas_%s"):
            if hasattr(self.library, form % "get_config"):
                self.form = form
                return
        raise LookupError("numpy's BLAS is not OpenBLAS")

    def call(self, name, *arguments, returns=None):
        # numpy's wheels up to 2.2 forgot to rename the callback's function
        function = getattr(self.library, self.form % name, None) or getattr(self.library, f"openblas_{name}", None)
        if function is None:
            raise LookupError(f"this OpenBLAS has no {name}")
        function.restype = returns
        return function(*arguments)

    def version(self):
        digits = self.call("get_config", returns=ctypes.c_char_p).decode().split()[1].split(".")
        return tuple(int(d) for d in digits[:3])

    def num_threads(self):
        return self.call("get_num_threads", returns=ctypes.c_int)

    def work_with(self, callback):
        """Hand jobs to this C function from now on; None: back to its own threads."""
        self.call("set_threads_callback_function", ctypes.c_void_p(callback))


# --- are the cores ours? --------------------------------------------------------------------------------


class Crowding:
    """How long this process's threads wait for a core that something else runs on."""

    def __init__(self):
        open("/proc/self/schedstat").close()  # OSError where the kernel does not count
        self.before = self.read()

    def read(self):
        """(ran, waited): nanoseconds of all threads so far, by the kernel's count (/proc/self/task/*/schedstat)."""
        total = np.zeros(2)
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # it has just ended
                with open(f"/proc/self/task/{thread}/schedstat") as line:
                    total += np.array(line.read().split()[:2], dtype=float)
        return total

    def look(self):
        """Seconds waited for each second of work since the last look."""
        before = self.before
        with contextlib.suppress(OSError):  # too many open files, say: no reason to stop
            self.before = self.read()
        ran, waited = self.before - before
        return waited / ran if ran > 0 else 0.0


# --- the pool -------------------------------------------------------------------------------------------


class Pool:
    """The threads that kernels run on.

    blas      the OpenBLAS that may run on them, or None
    shared    whether it does now
    """

    def __init__(self):
        self.size = numba.config.NUMBA_NUM_THREADS
        if not os.environ.get("NUMBA_NUM_THREADS"):  # numba looks at the affinity, but not at a container's quota
            self.size = min(self.size, usable_cores())
        self.blas, self.shared, self.callback, self.next_look = None, False, None, float("inf")
        # both let OpenMP give fewer threads than asked for, and the jobs would wait for ever
        limited = any(os.environ.get(name) for name in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT"))
        if sys.platform == "linux" and self.size > 1 and not limited:
            with contextlib.suppress(Exception):  # whatever is different on this machine: two pools work, too
                self._share()

    def _share(self):
        blas = OpenBLAS()
        its_own = blas.call("get_parallel", returns=ctypes.c_int) == 1  # 2: OpenMP's
        if not its_own or blas.version() < OLDEST or blas.num_threads() == 1:
            return
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when numba loads libgomp: below, at its first launch
        _run_jobs(0, np.int32(0), 0, 0, np.int32(0), np.int32(self.size))
        if numba.threading_layer() != "omp" or any(address_of_symbol(name) is None for name in SYMBOLS):
            return
        self.callback = cfunc("void(int32, intp, int32, intp, intp, int32)", cache=True)(_run_blas)
        self.callback.ctypes(1, 0, self.size, 0, 0, 0)
        self.crowding = Crowding()
        blas.call("set_num_threads", ctypes.c_int(min(self.size, blas.num_threads())))
        blas.work_with(self.callback.address)
        self.blas, self.shared, self.next_look = blas, True, time.monotonic() + LOOK
        os.register_at_fork(after_in_child=self._leave)  # libgomp does not survive a fork

    def _leave(self):
        self.share(False)
        self.blas, self.next_look = None, float("inf")

    def share(self, shared):
        """Let OpenBLAS work on these threads, or on its own again.  Not while it works."""
        self.blas.work_with(self.callback.address if shared else None)
        self.shared = shared

    def team(self, numbers):
        """How many threads to use for a pass over so many numbers: all, or one."""
        now = time.monotonic()
        if now >= self.next_look:
            self.next_look = now + LOOK
            alone = self.crowding.look() < CROWDED
            if alone != self.shared:
                self.share(alone)
        each = numbers // self.size
        if self.blas is None:
            return self.size if each >= GRAIN_ASLEEP else 1
        return self.size if self.shared and each >= GRAIN else 1


POOL = Pool()


if __name__ == "__main__":

    def microseconds(function):
        seconds = []
        for _ in range(1000):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        return sorted(seconds)[500] * 1e6

    @njit(parallel=True)
    def halve(x):
        for n in prange(len(x)):
            for d in range(x.shape[1]):
                x[n, d] *= np.float32(0.5)

    def layer():
        np.matmul(x, w, out=y)
        halve(y)

    x, w, y = (np.ones(shape, np.float32) for shape in ((600, 96), (96, 96), (600, 96)))
    print(f"a product of 600 x 96 x 96 and a kernel behind it, {POOL.size} threads")
    if POOL.blas:
        layer()
        POOL.crowding.look()
        print(f"one pool:  {microseconds(layer):.0f} us, and for a core the threads waited {POOL.crowding.look():.1%}")
        POOL.share(False)
    print(f"two pools: {microseconds(layer):.0f} us")
