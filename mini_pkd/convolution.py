"""Causal depthwise convolution and max-pooling in time, on a ragged batch.

Depthwise: each channel has its own filter of K taps over the present and past rows of its utterance,

    y_t = bias + sum_i taps_i x_{t - (K-1) + i},      rows before the utterance count as zero,

so the last tap sees the present row and nothing sees the future.  Pooling pairs row 2i with row 2i+1 and
keeps the larger number of each channel; a last row without a partner is kept as it is.  Paired from the
start of the utterance, the pools of a growing stream never change.
"""

import numpy as np
from numba import prange

from .convolution_kernel import convolve, convolve_backward, taps_gradient
from .ragged import row_starts
from .simd import kernel
from .tensor import Tensor, record

# --- depthwise convolution ------------------------------------------------------------------------


def depthwise_convolution_readable(x, taps, bias, lengths):
    """The definition, row by row: x (N, D), taps (K, D), bias (D,), lengths (B,) -> (N, D).  Arrays."""
    y, K = np.zeros_like(x), len(taps)
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        for t in range(T):
            y[start + t] = bias
            for i in range(max(0, K - 1 - t), K):  # earlier taps look at rows before the utterance
                y[start + t] += taps[i] * x[start + t - (K - 1) + i]
    return y


def depthwise_convolution_backward_readable(g, x, taps, lengths):
    """g (N, D) -> gradients of x, taps, bias: each product above hands g, times one factor, to the other."""
    dx, dtaps, K = np.zeros_like(x), np.zeros_like(taps), len(taps)
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        for t in range(T):
            for i in range(max(0, K - 1 - t), K):
                dx[start + t - (K - 1) + i] += taps[i] * g[start + t]
                dtaps[i] += x[start + t - (K - 1) + i] * g[start + t]
    return dx, dtaps, g.sum(axis=0)


def depthwise_convolution(x, taps, bias, lengths, context=0):
    """x (N, D), taps (K, D), bias (D,), lengths (B,) -> (N, D).

    Streaming: the first `context` rows of each utterance were heard before; they are read but get no output.
    Then x has sum(lengths + context) rows.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    K, D = taps.shape
    x_starts, N = row_starts(lengths + context), int(lengths.sum())
    first_of = np.repeat(x_starts, lengths)  # (N,) for each output row: the first row of x of its utterance,
    row_of = np.arange(N) + np.repeat(x_starts - row_starts(lengths) + context, lengths)  # (N,) and its own row of x
    y = np.empty((N, D), dtype=x.data.dtype)
    convolve(x.data, taps.data, bias.data, row_of, first_of, y)

    def backward(g):
        assert context == 0, "streaming is for inference"
        dx = np.empty_like(x.data)
        last_of = np.repeat(x_starts + lengths, lengths)  # one past the utterance's last row
        convolve_backward(g, taps.data, last_of, dx)
        partial = np.zeros((64, K + 1, D), dtype=dx.dtype)  # 64 sums whatever the number of threads; row K is the bias
        taps_gradient(g, x.data, first_of, partial)
        dtaps = partial.sum(axis=0)
        return dx, dtaps[:K], dtaps[K]

    return record(y, [x, taps, bias], backward)


# --- pooling --------------------------------------------------------------------------------------


def pooled_lengths(lengths):
    """Rows left after pooling by 2: half, rounded up."""
    return (np.asarray(lengths, dtype=np.int64) + 1) // 2


def pairs(lengths):
    """The rows (first, one past the last) of each pair, in order; the second of them may be missing.

    >>> list(pairs([2, 3]))
    [(0, 2), (2, 4), (4, 5)]
    """
    for start, T in zip(row_starts(lengths).tolist(), lengths, strict=True):
        for t in range(0, T, 2):
            yield start + t, start + min(t + 2, T)


def max_pool_readable(x, lengths):
    """The larger row of each pair, channel by channel: x (N, D), lengths (B,) -> (sum T', D).  Arrays."""
    return np.array([x[a:b].max(axis=0) for a, b in pairs(lengths)], x.dtype).reshape(-1, x.shape[1])


def max_pool_backward_readable(g, x, lengths):
    """g (sum T', D) -> gradient of x: the larger number takes it whole, the first of equal ones."""
    dx = np.zeros_like(x)
    for n, (a, b) in enumerate(pairs(lengths)):
        dx[a + x[a:b].argmax(axis=0), np.arange(x.shape[1])] = g[n]
    return dx


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


@kernel(fastmath=False, readable=max_pool_readable)
def _max_pool(x, left, has_right, y):
    for n in prange(len(y)):
        a, out = x[left[n]], y[n]
        b = x[left[n] + 1] if has_right[n] else a
        for d in range(len(out)):
            out[d] = np.maximum(a[d], b[d])  # a NaN comes through: training looks for it


@kernel(fastmath=False, readable=max_pool_backward_readable)
def _max_pool_backward(g, x, left, has_right, dx):
    # Rows have names, and each output a loop of its own: LLVM does not vectorise dx[i, d] and dx[i + 1, d] in one loop.
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


def demo():
    x, lengths = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]]), [3, 2]
    taps, bias = np.array([[1.0], [2.0]]), np.array([0.5])
    y = depthwise_convolution(Tensor(x), Tensor(taps), Tensor(bias), lengths).data[:, 0]
    print("two utterances 1 2 3 | 10 20")
    print("  previous + 2 x present + 0.5:", y, " (nothing stands before 1 and before 10)")
    print("  max of pairs:", max_pool(Tensor(x), lengths).data[:, 0], " lengths", pooled_lengths(lengths))


if __name__ == "__main__":
    demo()
