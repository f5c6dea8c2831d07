"""Causal depthwise convolution and max-pooling in time, on a ragged batch.

Depthwise: each channel has its own filter of `width` taps over the present and past rows of its utterance,

    y_t = bias + sum_i kernel_i x_{t - (width-1) + i},      rows before the utterance count as zero,

so the last tap sees the present row and nothing sees the future.  Pooling pairs row 2i with row 2i+1 and
keeps the larger number of each channel; a last row without a partner is kept as it is.  Paired from the
start of the utterance, the pools of a growing stream never change.
"""

import numpy as np
from numba import prange

from .ragged import row_starts
from .simd import kernel
from .tensor import record


def depthwise_convolution(x, kernel, bias, lengths, context=0):
    """x (N, D), kernel (width, D), bias (D,), lengths (B,) -> (N, D).

    Streaming: the first `context` rows of each utterance were heard before; they are read but get no output.
    Then x has sum(lengths + context) rows.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    width, D = kernel.shape
    x_starts = row_starts(lengths + context)
    y_starts = row_starts(lengths)
    row_of, first_of = _row_map(x_starts, y_starts, lengths, context)
    y = np.empty((int(lengths.sum()), D), dtype=x.data.dtype)
    _convolve(x.data, kernel.data, bias.data, row_of, first_of, y)

    def backward(g):
        assert context == 0, "streaming is for inference"
        dx = np.empty_like(x.data)
        last_of = np.repeat(x_starts + lengths, lengths)  # one past the utterance's last row
        _convolve_backward(g, kernel.data, last_of, dx)
        partial = np.zeros((64, width + 1, D), dtype=dx.dtype)  # the last row collects the bias
        _kernel_gradient(g, x.data, first_of, partial)
        dkernel = partial.sum(axis=0)
        return dx, dkernel[:width], dkernel[width]

    return record(y, [x, kernel, bias], backward)


def _row_map(x_starts, y_starts, lengths, context):
    """For each output row: its row in x, and the first row of x that belongs to its utterance."""
    first_of = np.repeat(x_starts, lengths)
    row_of = np.arange(int(lengths.sum())) + np.repeat(x_starts - y_starts + context, lengths)
    return row_of, first_of


def depthwise_convolution_readable(x, kernel, bias, lengths):
    """The definition, row by row: the oracle of the kernels.  Arrays in, array out."""
    y = np.zeros_like(x)
    width = len(kernel)
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        for t in range(T):
            y[start + t] = bias
            for i in range(width):
                if t - (width - 1) + i >= 0:
                    y[start + t] += kernel[i] * x[start + t - (width - 1) + i]
    return y


@kernel()
def _convolve(x, kernel, bias, row_of, first_of, out):
    width, D = kernel.shape
    for n in prange(len(out)):
        newest = row_of[n]
        i = max(0, first_of[n] - newest + width - 1)  # first tap inside the utterance
        oldest = newest - (width - 1)
        y = out[n]
        for d in range(D):
            y[d] = bias[d]
        while i + 4 <= width:  # four taps a pass: y goes to memory a quarter as often
            k0, k1, k2, k3 = kernel[i], kernel[i + 1], kernel[i + 2], kernel[i + 3]
            x0, x1, x2, x3 = x[oldest + i], x[oldest + i + 1], x[oldest + i + 2], x[oldest + i + 3]
            for d in range(D):
                y[d] += k0[d] * x0[d] + k1[d] * x1[d] + k2[d] * x2[d] + k3[d] * x3[d]
            i += 4
        while i < width:
            for d in range(D):
                y[d] += kernel[i, d] * x[oldest + i, d]
            i += 1


@kernel()
def _convolve_backward(g, kernel, last_of, dx):
    # Row n was read by outputs n, n+1, ... with taps width-1, width-2, ...
    width, D = kernel.shape
    for n in prange(len(dx)):
        readers = min(width, last_of[n] - n)
        d_row = dx[n]
        for d in range(D):
            d_row[d] = g.dtype.type(0)
        j = 0
        while j + 4 <= readers:
            k0, k1 = kernel[width - 1 - j], kernel[width - 2 - j]
            k2, k3 = kernel[width - 3 - j], kernel[width - 4 - j]
            g0, g1, g2, g3 = g[n + j], g[n + j + 1], g[n + j + 2], g[n + j + 3]
            for d in range(D):
                d_row[d] += k0[d] * g0[d] + k1[d] * g1[d] + k2[d] * g2[d] + k3[d] * g3[d]
            j += 4
        while j < readers:
            for d in range(D):
                d_row[d] += kernel[width - 1 - j, d] * g[n + j, d]
            j += 1


@kernel()
def _kernel_gradient(g, x, first_of, partial):
    # Rows are cut into len(partial) blocks whatever the number of threads, so the sums never change.
    N, D = g.shape
    blocks, width = partial.shape[0], partial.shape[1] - 1
    for block in prange(blocks):
        lo, hi = N * block // blocks, N * (block + 1) // blocks
        for i in range(width):
            back = width - 1 - i
            dk = partial[block, i]
            for n in range(lo, hi):
                if n - back >= first_of[n]:
                    for d in range(D):
                        dk[d] += g[n, d] * x[n - back, d]
        dbias = partial[block, width]
        for n in range(lo, hi):
            for d in range(D):
                dbias[d] += g[n, d]


def pooled_lengths(lengths):
    """Rows left after pooling by 2: half, rounded up."""
    return (np.asarray(lengths, dtype=np.int64) + 1) // 2


def max_pool(x, lengths):
    """Max over rows (2i, 2i+1) of each utterance: x (N, D), lengths (B,) -> (sum of ceil(T/2), D)."""
    lengths = np.asarray(lengths, dtype=np.int64)
    halves = pooled_lengths(lengths)
    left = np.repeat(row_starts(lengths) - 2 * row_starts(halves), halves) + 2 * np.arange(int(halves.sum()))
    has_right = left + 1 < np.repeat(row_starts(lengths) + lengths, halves)
    y = np.empty((len(left), x.shape[1]), dtype=x.data.dtype)
    _max_pool(x.data, left, has_right, y)

    def backward(g):
        dx = np.empty_like(x.data)
        _max_pool_backward(g, x.data, left, has_right, dx)
        return (dx,)

    return record(y, [x], backward)


@kernel(fastmath=False)
def _max_pool(x, left, has_right, y):
    for n in prange(len(y)):
        a, out = x[left[n]], y[n]
        b = x[left[n] + 1] if has_right[n] else a
        for d in range(len(out)):
            out[d] = np.maximum(a[d], b[d])  # a NaN comes through: training looks for it


@kernel(fastmath=False)
def _max_pool_backward(g, x, left, has_right, dx):
    # The larger number of a pair takes the whole gradient; ties and lonely rows count as left.  Rows by name and
    # one loop for each output: with dx[i, d] and dx[i + 1, d] in one loop LLVM gives up, at 16 times the price.
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


if __name__ == "__main__":
    from .tensor import Tensor

    x, lengths = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]]), [3, 2]
    kernel, bias = np.array([[1.0], [2.0]]), np.array([0.5])
    y = depthwise_convolution(Tensor(x), Tensor(kernel), Tensor(bias), lengths).data[:, 0]
    print("two utterances 1 2 3 | 10 20")
    print("  previous + 2 x present + 0.5:", y, " (nothing stands before 1 and before 10)")
    print("  max of pairs:", max_pool(Tensor(x), lengths).data[:, 0], " lengths", pooled_lengths(lengths))
