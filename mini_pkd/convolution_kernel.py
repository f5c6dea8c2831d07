"""The kernels of convolution.py: its readable loops on all threads, and four taps a pass."""

import numpy as np
from numba import prange

from .simd import kernel


@kernel(readable="convolution.depthwise_convolution_readable")
def convolve(x, taps, bias, row_of, first_of, out):
    K, D = taps.shape
    for n in prange(len(out)):
        newest = row_of[n]
        i = max(0, first_of[n] - newest + K - 1)  # first tap inside the utterance
        oldest = newest - (K - 1)
        y = out[n]
        for d in range(D):
            y[d] = bias[d]
        while i + 4 <= K:  # four taps a pass: y goes to memory a quarter as often
            k0, k1, k2, k3 = taps[i], taps[i + 1], taps[i + 2], taps[i + 3]
            x0, x1, x2, x3 = x[oldest + i], x[oldest + i + 1], x[oldest + i + 2], x[oldest + i + 3]
            for d in range(D):
                y[d] += k0[d] * x0[d] + k1[d] * x1[d] + k2[d] * x2[d] + k3[d] * x3[d]
            i += 4
        while i < K:
            for d in range(D):
                y[d] += taps[i, d] * x[oldest + i, d]
            i += 1


@kernel(readable="convolution.depthwise_convolution_backward_readable")
def convolve_backward(g, taps, last_of, dx):
    # Row n was read by outputs n, n+1, ..., through taps K-1, K-2, ...
    K, D = taps.shape
    for n in prange(len(dx)):
        readers = min(K, last_of[n] - n)
        d_row = dx[n]
        for d in range(D):
            d_row[d] = g.dtype.type(0)
        j = 0
        while j + 4 <= readers:
            k0, k1, k2, k3 = taps[K - 1 - j], taps[K - 2 - j], taps[K - 3 - j], taps[K - 4 - j]
            g0, g1, g2, g3 = g[n + j], g[n + j + 1], g[n + j + 2], g[n + j + 3]
            for d in range(D):
                d_row[d] += k0[d] * g0[d] + k1[d] * g1[d] + k2[d] * g2[d] + k3[d] * g3[d]
            j += 4
        while j < readers:
            for d in range(D):
                d_row[d] += taps[K - 1 - j, d] * g[n + j, d]
            j += 1


@kernel(readable="convolution.depthwise_convolution_backward_readable")
def taps_gradient(g, x, first_of, partial):
    N, D = g.shape
    blocks, K = partial.shape[0], partial.shape[1] - 1
    for block in prange(blocks):
        lo, hi = N * block // blocks, N * (block + 1) // blocks
        for i in range(K):
            back = K - 1 - i
            dk = partial[block, i]
            for n in range(lo, hi):
                if n - back >= first_of[n]:
                    for d in range(D):
                        dk[d] += g[n, d] * x[n - back, d]
        dbias = partial[block, K]
        for n in range(lo, hi):
            for d in range(D):
                dbias[d] += g[n, d]


@kernel(fastmath=False, readable="convolution.max_pool_readable")
def pool(x, left, has_right, y):
    for n in prange(len(y)):
        a, out = x[left[n]], y[n]
        b = x[left[n] + 1] if has_right[n] else a
        for d in range(len(out)):
            out[d] = np.maximum(a[d], b[d])  # a NaN comes through: training looks for it


@kernel(fastmath=False, readable="convolution.max_pool_backward_readable")
def pool_backward(g, x, left, has_right, dx):
    # Each output row has a loop of its own, because LLVM does not vectorise one that writes dx[i, d] and dx[i + 1, d].
    zero = g.dtype.type(0)
    for n in prange(len(g)):
        i = left[n]
        whole, to_left = g[n], dx[i]
        if has_right[n]:
            a, b, to_right = x[i], x[i + 1], dx[i + 1]
            for d in range(len(whole)):
                to_left[d] = zero if b[d] > a[d] else whole[d]
            for d in range(len(whole)):
                to_right[d] = whole[d] if b[d] > a[d] else zero
        else:
            for d in range(len(whole)):
                to_left[d] = whole[d]
