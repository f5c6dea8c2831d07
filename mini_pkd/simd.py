"""exp and tanh that LLVM can vectorise, and the random bits of dropout.

Inside a numba loop `np.exp` is a call into libm, one number at a time: 2.4 ns.  A polynomial in plain
float32 arithmetic is turned into AVX code, eight numbers at a time: 0.27 ns, 2 units in the last place.
For float64 (gradient checks) the same names give numpy's functions, so one kernel serves both types.

Two habits keep a kernel in float32, and without them it silently runs in float64 at half the speed:
constants are made with `x.dtype.type(1)`, and kernels are compiled with `error_model="numpy"`
(Python's model tests every divisor for zero, which also stops vectorisation).

numba's on-disk cache does not notice an edit of this file in kernels of other files: after changing
anything here, delete mini_pkd/__pycache__.
"""

import numpy as np
from numba import njit, types
from numba.extending import overload, register_jitable

# Flags for kernels whose numbers are finite: sums may be reordered and multiply-adds contracted.  Not
# "nnan"/"ninf": LLVM may then assume that no infinity occurs, which breaks log-space code.
REORDER = {"reassoc", "contract", "nsz"}


def exp(x):
    """exp(x) with the type of x; float32 results saturate at about 1e-38 and 2e38 instead of 0 and inf."""
    return np.exp(x)


@overload(exp)
def _exp(x):
    if x != types.float32:
        return lambda x: np.exp(x)
    f = np.float32

    def exp32(x):
        # exp(x) = 2^k exp(r) with r in [-ln2/2, ln2/2]; ln 2 in two parts so that r is exact (Cody & Waite).
        x = min(max(x, f(-87.3)), f(88.0))
        k = np.floor(x * f(1.4426950408889634) + f(0.5))
        r = x - k * f(0.693359375)
        r = r + k * f(2.12194440e-4)
        # Minimax polynomial for exp on that interval, of degree 7; coefficients near 1/n!.
        p = f(1.9875691500e-4)
        p = p * r + f(1.3981999507e-3)
        p = p * r + f(8.3334519073e-3)
        p = p * r + f(4.1665795894e-2)
        p = p * r + f(1.6666665459e-1)
        p = p * r + f(5.0000001201e-1)
        p = p * r * r + r + f(1.0)
        bits = np.int32((np.int32(k) + np.int32(127)) << np.int32(23))  # the float 2^k, by its exponent
        return p * bits.view(np.float32)

    return exp32


def tanh(x):
    """tanh(x) with the type of x; absolute error of float32 below 2e-7."""
    return np.tanh(x)


@overload(tanh)
def _tanh(x):
    if x != types.float32:
        return lambda x: np.tanh(x)
    f = np.float32

    def tanh32(x):
        return f(1.0) - f(2.0) / (exp(x + x) + f(1.0))

    return tanh32


@njit(cache=True, inline="never")
def row_key(key, n):
    """The random 32-bit starting point of row n under the 32-bit `key`."""
    x = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(n) * np.uint64(0xD1B54A32D192ED03)
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.uint32(x >> np.uint64(32))


@register_jitable(inline="never")
def random_bits(start, d):
    """32 well-mixed bits for column d of a row: a counter through an integer hash, so nothing is stored.

    Dropout draws the same bits again in its backward pass instead of keeping a mask.
    """
    x = np.uint32(start + np.uint32(d) * np.uint32(0x9E3779B1))
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))
