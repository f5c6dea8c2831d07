"""One pool of threads for matrix products and kernels; while the cores are crowded, it works with one thread.

OpenBLAS and numba each bring a pool of threads.  A training step changes between the two some hundred times, and each
change wakes sleeping threads, which takes as long as the work itself in a small model.  Threads that spin instead of
sleeping are there at once, but two pools that spin take the cores from each other.  One pool may spin for a while.

So OpenBLAS is told to use one thread, and `matmul` below cuts a product into as many parts as the pool has threads:
a kernel whose iterations call OpenBLAS for one part each.  The parts follow from the shapes and the size of the pool
alone, so the result is the same to the last bit whether all threads compute them or one computes them in turn.

All this assumes that the cores are ours.  When another process takes one, the thread that shares it comes late and all
others wait for it, hundreds of times a step, which is slower than one thread alone.  So once a second the pool measures
how long its threads had to wait for a core, and while they do, kernels and parts run on one thread.

OpenBLAS would also hand its own parts over by a callback.  But there a part spins until another has packed what it
needs, so one thread could not compute them all; and OpenBLAS on one thread rounds differently from two.

One pool is made on Linux with OpenBLAS and numba on OpenMP, where this was tried.  Elsewhere each keeps its own.
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
from numba import njit, prange, types
from numba.extending import intrinsic

# Numbers for each thread.  With fewer, one thread alone is done sooner than all of them, because threads have to meet
# first (GRAIN), or even to wake up (GRAIN_ASLEEP, without a pool of ours).
GRAIN, GRAIN_ASLEEP = 2**12, 2**17
WHOLE = 2**20  # multiply-adds; a smaller product is not cut
UNROLL = 16  # rows or columns of a part: a multiple of what OpenBLAS's kernels take at once
SPINS = "10000"  # turns that a thread of libgomp spins: longer than Python needs between two kernels
LOOK = 1.0  # seconds between looks at how crowded the cores are
CROWDED = 0.2  # seconds that a thread waits for each second of work: far more than alone, less than beside another
SPIKE = 2  # crowded looks in a row before the pool goes down to one thread: one look may be chance
LONGEST = 32  # at most so many looks in a row that are not crowded before it goes back to all threads


# --- how many cores are ours ----------------------------------------------------------------------

OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_groups(controller):
    """Folders that hold the limits of this process on Linux: its control group's, and those of all groups around it."""
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
    """How many cores this process may use: all, or what taskset, a batch system or a container leaves."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in control_groups("cpu"):
        for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            with contextlib.suppress(OSError, ValueError):  # not there; "max"
                quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
                if quota > 0:  # version 1 says -1 for no limit
                    cores = min(cores, -(-quota // period))  # rounded up: half a core more is better used than idle
    return cores


# --- products in parts ----------------------------------------------------------------------------


@intrinsic
def _gemm(typing, gemm, flip_a, flip_b, m, n, k, one, a, lda, b, ldb, c, ldc):
    """Call cblas_sgemm or cblas_dgemm at this address: c (m, n) = a (m, k) times b (k, n), rows after each other."""

    def codegen(context, builder, signature, arguments):
        gemm, flip_a, flip_b, m, n, k, one, a, lda, b, ldb, c, ldc = arguments
        flag, size, pointer, number = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer(), one.type
        kind = ir.FunctionType(
            ir.VoidType(),
            [flag, flag, flag, size, size, size, number, pointer, size, pointer, size, number, pointer, size],
        )
        a, b, c = (builder.inttoptr(address, pointer) for address in (a, b, c))
        order, zero = ir.Constant(flag, ROWS), ir.Constant(number, 0.0)
        target = builder.inttoptr(gemm, kind.as_pointer())
        builder.call(target, [order, flip_a, flip_b, m, n, k, one, a, lda, b, ldb, zero, c, ldc])
        return context.get_dummy_value()

    integers = [types.intp, types.int32, types.int32, *3 * [types.intp], one, *6 * [types.intp]]
    return types.void(*integers), codegen


ROWS, PLAIN, FLIPPED = 101, 111, 112  # CblasRowMajor, CblasNoTrans, CblasTrans


@njit(inline="always")
def _layout(matrix):
    """(flag, leading dimension) as BLAS wants them; flag 0: numbers side by side neither in rows nor in columns."""
    (rows, columns), (down, across), item = matrix.shape, matrix.strides, matrix.itemsize
    if across == item and down >= columns * item:
        return np.int32(PLAIN), down // item
    if down == item and across >= rows * item:
        return np.int32(FLIPPED), across // item
    return np.int32(0), 0


def _multiply(gemm, one, a, b, c, down, across):
    """c = a b in down x across parts; False if BLAS cannot take the matrices as they lie.  Compiled by Pool."""
    (flag_a, lda), (flag_b, ldb), (flag_c, ldc) = _layout(a), _layout(b), _layout(c)
    if flag_a == 0 or flag_b == 0 or flag_c != PLAIN:
        return False
    (m, k), n = a.shape, b.shape[1]
    start_a, start_b, start_c = a.ctypes.data, b.ctypes.data, c.ctypes.data
    step_a, step_b, step_c, item = a.strides[0], b.strides[1], c.strides[0], c.itemsize
    tall = -(-m // (down * UNROLL)) * UNROLL
    wide = -(-n // (across * UNROLL)) * UNROLL
    for i in prange(down * across):  # as many iterations as threads: one each
        row, column = i // across * tall, i % across * wide
        rows, columns = min(tall, m - row), min(wide, n - column)
        if rows > 0 and columns > 0:
            _gemm(
                gemm, flag_a, flag_b, rows, columns, k, one, start_a + row * step_a, lda,
                start_b + column * step_b, ldb, start_c + row * step_c + column * item, ldc,
            )  # fmt: skip
    return True


def _signature(number):
    """Matrices of any layout, so that there is one version for each type of number and not one for each layout."""
    seen, written = types.Array(number, 2, "A", readonly=True), types.Array(number, 2, "A")
    return types.boolean(types.intp, number, seen, seen, written, types.intp, types.intp)


def matmul(a, b, out=None):
    """np.matmul(a, b, out=out) on the pool's threads: the same to the last bit on all of them and on one.

    For matrices of float32 or float64.  Code on the path of training calls this, because numpy's own `a @ b` runs on
    one thread once OpenBLAS has been told to.
    """
    m, k, n = a.shape[0], a.shape[1], b.shape[1]
    gemm = POOL.gemm.get(a.dtype.char)
    if gemm is None or m * n * k < WHOLE or b.dtype != a.dtype or b.shape[0] != k:
        return np.matmul(a, b, out=out)
    out = np.empty((m, n), a.dtype) if out is None else out
    # every part packs its rows of a and its columns of b: as square as can be
    _, down, across = min((m / down + n / across, down, across) for down, across in POOL.grids)
    numba.set_num_threads(POOL.team(m * n * k))
    if out.dtype == a.dtype and POOL.multiply(gemm, a.dtype.type(1), a, b, out, down, across):
        return out
    return np.matmul(a, b, out=out)


class OpenBLAS:
    """The functions of the OpenBLAS that numpy is linked to; LookupError where it has another BLAS."""

    def __init__(self):
        # a handle of numpy's own extension also finds the symbols of the libraries that it is linked to
        extension = next(module for name, module in sys.modules.items() if name.endswith("._multiarray_umath"))
        self.library = ctypes.CDLL(extension.__file__)
        for form in ("scipy_openblas_%s64_", "scipy_openblas_%s", "openblas_%s64_", "openblas_%s"):
            if hasattr(self.library, form % "get_config"):
                self.form = form
                return
        raise LookupError("numpy's BLAS is not OpenBLAS")

    def call(self, name, *arguments, returns=None):
        function = getattr(self.library, self.form % name)
        function.restype = returns
        return function(*arguments)

    def num_threads(self):
        return self.call("get_num_threads", returns=ctypes.c_int)

    def address(self, name):
        """The address of the function cblas_<name>."""
        function = getattr(self.library, self.form.replace("openblas_", "cblas_") % name)
        return ctypes.cast(function, ctypes.c_void_p).value


# --- are the cores ours? --------------------------------------------------------------------------


class Crowding:
    """How long threads of this process wait for a core that something else runs on."""

    def __init__(self):
        open("/proc/self/schedstat").close()  # OSError where the kernel does not count
        self.before = self.read()

    def read(self):
        """{thread: (ran, waited)}: nanoseconds so far, by the kernel's count (/proc/self/task/*/schedstat)."""
        found = {}
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # it has just ended
                with open(f"/proc/self/task/{thread}/schedstat") as line:
                    found[thread] = np.array(line.read().split()[:2], dtype=float)
        return found

    def look(self):
        """Since the last look: the longest that a thread waited, for each second that the busiest thread ran.

        Not the mean, because all wait for one that is late; nor each thread's own ratio, because one that hardly ran
        proves nothing.
        """
        before = self.before
        with contextlib.suppress(OSError):  # too many open files, for example: no reason to stop
            self.before = self.read()
        ran, waited = np.max([now - before.get(thread, 0) for thread, now in self.before.items()], axis=0)
        return waited / ran if ran > 0 else 0.0


# --- the pool -------------------------------------------------------------------------------------


class Pool:
    """The threads that kernels run on.

    blas      the OpenBLAS whose products run on them, or None
    gemm      addresses of its products, by the character of their type; empty without blas
    grids     every (rows, columns) of parts that a product can be cut into, one part for each thread
    shared    whether all threads work now, because the cores are ours
    """

    def __init__(self):
        self.size = numba.config.NUMBA_NUM_THREADS
        if not os.environ.get("NUMBA_NUM_THREADS"):  # numba looks at the affinity, but not at a container's quota
            self.size = min(self.size, usable_cores())
        self.blas, self.gemm, self.shared, self.next_look = None, {}, False, float("inf")
        self.against, self.patience = 0, SPIKE  # looks in a row against the present state; how many it takes to return
        if sys.platform == "linux" and self.size > 1:
            with contextlib.suppress(Exception):  # something is different on this machine; two pools work too
                self._share()

    def _share(self):
        blas = OpenBLAS()
        can_be_called_by_many = blas.call("get_parallel", returns=ctypes.c_int) > 0
        self.blas_threads = blas.num_threads()
        if not can_be_called_by_many or self.blas_threads == 1:
            return
        gemm = {"f": blas.address("sgemm"), "d": blas.address("dgemm")}
        self.crowding = Crowding()
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when numba loads libgomp: below, at its first launch
        forms = [_signature(types.float32), _signature(types.float64)]
        self.multiply = njit(forms, cache=True, parallel=True, nogil=True)(_multiply)
        nothing = np.empty((0, 0), np.float32)
        self.multiply(0, np.float32(1), nothing, nothing, nothing, 1, 1)
        if numba.threading_layer() != "omp":
            return
        self.grids = [(down, self.size // down) for down in range(1, self.size + 1) if self.size % down == 0]
        blas.call("set_num_threads", ctypes.c_int(1))
        self.blas, self.gemm, self.shared, self.next_look = blas, gemm, True, time.monotonic() + LOOK
        os.register_at_fork(after_in_child=self._leave)  # libgomp does not survive a fork

    def _leave(self):
        self.blas.call("set_num_threads", ctypes.c_int(self.blas_threads))
        self.blas, self.gemm, self.shared, self.next_look = None, {}, False, float("inf")

    def look(self):
        """Go down to one thread after two crowded looks in a row, and back to all after some that are not.

        It takes longer to go back each time: the process that took a core may leave one thread alone and take one from
        all again, so a quiet minute on one thread proves little.
        """
        crowded = self.crowding.look() >= CROWDED
        self.against = self.against + 1 if crowded == self.shared else 0
        if self.against >= (SPIKE if self.shared else self.patience):
            if self.shared:
                self.patience = min(2 * self.patience, LONGEST)
            self.against, self.shared = 0, not self.shared

    def team(self, numbers):
        """How many threads to use for a pass over so many numbers: all, or one.

        Never some of them, because libgomp ends the threads that a smaller team does not need and has to start them
        again for the next larger one.
        """
        now = time.monotonic()
        if now >= self.next_look:
            self.next_look = now + LOOK
            self.look()
        each = numbers // self.size
        if self.blas is None:
            return self.size if each >= GRAIN_ASLEEP else 1
        return self.size if self.shared and each >= GRAIN else 1


POOL = Pool()


def demo():
    """Times with and without the pool; afterwards this process has none."""

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
        matmul(x, w, out=y)
        numba.set_num_threads(POOL.team(y.size))
        halve(y)

    x, w, y = (np.ones(shape, np.float32) for shape in ((600, 96), (96, 96), (600, 96)))
    print(f"a product of 600 x 96 x 96 and a kernel behind it, {POOL.size} threads")
    if POOL.blas:
        POOL.next_look = float("inf")
        layer()
        POOL.crowding.look()
        print(f"one pool:    {microseconds(layer):.0f} us, and for a core a thread waited {POOL.crowding.look():.1%}")
        POOL.shared = False
        print(f"one thread:  {microseconds(layer):.0f} us")
        POOL._leave()
    print(f"two pools:   {microseconds(layer):.0f} us")


if __name__ == "__main__":
    demo()
