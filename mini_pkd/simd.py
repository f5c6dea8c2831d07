"""What every kernel is made with: how it is compiled, exp and tanh that LLVM can vectorise, dropout's random bits.

Inside a numba loop `np.exp` is a call into the C library, one number at a time.  A polynomial in plain float32
arithmetic becomes vector instructions, eight numbers at a time.  For float64 (gradient checks) the same names give
numpy's functions, so one kernel serves both types.

Two habits keep a kernel in float32; without them it runs in float64, at half the speed, and nothing says so:
constants are made with `x.dtype.type(1)`, and kernels are compiled with `error_model="numpy"`
(Python's model tests every divisor for zero, which also stops vectorisation).

numba's on-disk cache does not notice that kernels of other files use what is edited here: after changing
anything, delete mini_pkd/__pycache__.
"""

import functools

import numba
import numpy as np
from numba import njit, types
from numba.extending import overload, register_jitable

from .threads import POOL

# --- compiling ------------------------------------------------------------------------------------

# Flags for kernels whose numbers are finite: sums may be reordered and multiply-adds contracted.  Not
# "nnan"/"ninf": LLVM may then assume that no infinity occurs, which breaks log-space code.
REORDER = {"reassoc", "contract", "nsz"}


def kernel(weight=1, fastmath=REORDER, readable=None):
    """Compile a function for `prange`, and run it on all threads if its largest array is worth it, else on one.

    weight     how much work a number is, compared with reading and writing it once
    readable   the function that computes the same in plain loops or plain numpy, or the reason why there is none

    Each row must be written by one iteration, so that the number of threads changes no bit.  threads.py says why it is
    all threads or one, never some of them.
    """

    def compile(function):
        compiled = njit(cache=True, parallel=True, nogil=True, error_model="numpy", fastmath=fastmath)(function)

        @functools.wraps(function)
        def run(*arguments):
            size = weight * max([a.size for a in arguments if isinstance(a, np.ndarray)])
            numba.set_num_threads(POOL.team(size))
            return compiled(*arguments)

        run.compiled, run.readable = compiled, readable
        return run

    return compile


# --- exp and tanh ---------------------------------------------------------------------------------

# exp(x) = 2^k exp(r) with k = round(x / ln 2) and |r| <= ln 2 / 2, where eight Taylor terms are off by less
# than 5e-9.  ln 2 is subtracted in two parts, the first with so few bits that k times it is exact.  2^k is
# made by writing k + 127 into a float's exponent field.  A NaN must come out as a NaN (training relies on
# seeing it), hence the direction of the comparisons.  1 / n! are float32, or numba would compute in float64.
f32 = np.float32
_LOG2E, _LN2_HIGH, _LN2_LOW = f32(1 / np.log(2)), f32(0.693359375), f32(np.log(2) - 0.693359375)
_C2, _C3, _C4, _C5, _C6, _C7 = f32(1 / 2), f32(1 / 6), f32(1 / 24), f32(1 / 120), f32(1 / 720), f32(1 / 5040)
_EXACT = {"fastmath": {"contract"}}  # reassociation would merge the two parts of ln 2 again


def exp(x):
    """exp in the type of x, to about 1e-7 relative in float32, saturating at 1.6e-38 and 1.7e38."""
    return np.exp(x)


@overload(exp, jit_options=_EXACT)
def _exp(x):
    if x != types.float32:
        return lambda x: np.exp(x)

    def exp32(x):
        x = f32(-87) if x < f32(-87) else x
        x = f32(88) if x > f32(88) else x
        k = np.floor(x * _LOG2E + f32(0.5))
        r = (x - k * _LN2_HIGH) - k * _LN2_LOW
        p = ((((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + f32(1)) * r + f32(1)
        power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23))
        return p * power.view(np.float32)

    return exp32


def tanh(x):
    """tanh in the type of x, to about 3e-7 relative in float32, also for tiny x."""
    return np.tanh(x)


@overload(tanh, jit_options=_EXACT)
def _tanh(x):
    if x != types.float32:
        return lambda x: np.tanh(x)

    def tanh32(x):
        # tanh(x) = m / (m + 2) with m = exp(2x) - 1 = 2^k (exp(r) - 1) + (2^k - 1): no cancellation near 0
        x = x + x
        x = f32(-20) if x < f32(-20) else x
        x = f32(20) if x > f32(20) else x
        k = np.floor(x * _LOG2E + f32(0.5))
        r = (x - k * _LN2_HIGH) - k * _LN2_LOW
        p = ((((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + f32(1)) * r
        power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)
        m = power * p + (power - f32(1))
        return m / (m + f32(2))

    return tanh32


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def row_max(row):
    """The largest entry.  Eight running maxima, because one is a chain in which each step waits for the last."""
    V = row.shape[0]
    a = b = c = d = e = f = g = h = row[0]
    whole = V - V % 8
    for k in range(0, whole, 8):
        a, b, c, d = max(a, row[k]), max(b, row[k + 1]), max(c, row[k + 2]), max(d, row[k + 3])
        e, f, g, h = max(e, row[k + 4]), max(f, row[k + 5]), max(g, row[k + 6]), max(h, row[k + 7])
    for k in range(whole, V):
        a = max(a, row[k])
    return max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h)))


# --- dropout's random bits ------------------------------------------------------------------------

# A counter goes through an integer hash.  So an element's bits follow from the dropout's key, the row and the column,
# and backward draws the mask of forward again instead of keeping it.


@njit(cache=True, inline="never")
def row_key(key, n):
    """The random 32-bit starting point of row n under the 32-bit `key`."""
    x = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(n) * np.uint64(0xD1B54A32D192ED03)
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.uint32(x >> np.uint64(32))


@register_jitable(inline="never")
def random_bits(start, d):
    """32 well-mixed bits for column d of a row whose starting point is `start`."""
    x = np.uint32(start + np.uint32(d) * np.uint32(0x9E3779B1))
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


def random_bits_readable(key, N, D):
    """The bits of N rows and D columns at once, in plain numpy: (N, D) uint32."""
    n, d = np.arange(N, dtype=np.uint64), np.arange(D, dtype=np.uint32)
    x = np.full(N, key, np.uint64) * np.uint64(0x9E3779B97F4A7C15) + n * np.uint64(0xD1B54A32D192ED03)  # modulo 2^64
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    start = (x >> np.uint64(32)).astype(np.uint32)
    x = start[:, None] + d * np.uint32(0x9E3779B1)  # (N, D), modulo 2^32
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def demo():
    import time

    @njit(error_model="numpy", fastmath=REORDER)
    def ours(x, out):
        for i in range(x.shape[0]):
            out[i] = exp(x[i])

    @njit(error_model="numpy", fastmath=REORDER)
    def library(x, out):
        for i in range(x.shape[0]):
            out[i] = np.exp(x[i])

    x = np.linspace(-10, 10, 100_000).astype(np.float32)
    for name, function in (("np.exp in a kernel", library), ("simd.exp", ours)):
        out = np.empty_like(x)
        function(x, out)
        start = time.perf_counter()
        function(x, out)
        nanoseconds = (time.perf_counter() - start) / len(x) * 1e9
        error = np.abs(out / np.exp(x.astype(np.float64)) - 1).max()
        print(f"{name:20s} {nanoseconds:5.2f} ns a number, relative error at most {error:.1e}")
    dropped = (random_bits_readable(1, 1000, 1000) < 0.1 * 2**32).mean()
    print(f"a tenth of the random bits should be below a tenth of 2^32: {dropped:.3f}")


if __name__ == "__main__":
    demo()
