"""The kernels of convolution.py's depthwise convolution: its readable loops, four taps a pass and on all threads."""

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
    # Row n was read by outputs n, n+1, ... with taps K-1, K-2, ...
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
