"""Causal depthwise convolution and max-pooling in time, on a ragged batch.

Depthwise: each channel has its own filter of K taps over the present and past rows of its utterance,

    y_t = bias + sum_i taps_i x_{t - (K-1) + i},      rows before the utterance count as zero,

so the last tap sees the present row and nothing sees the future.

Max-pooling halves the rows: of rows 2j and 2j + 1 it keeps the larger number of each channel; a last row without a
partner is kept as it is.  Pairs are counted from the start of the utterance, so they stay the same when more rows come.
"""

import numpy as np

from .convolution_kernel import convolve, convolve_backward, pool, pool_backward, taps_gradient
from .ragged import row_starts
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
    """g (N, D) -> gradients of x, taps, bias: of each product above, one factor gets g times the other."""
    dx, dtaps, K = np.zeros_like(x), np.zeros_like(taps), len(taps)
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        for t in range(T):
            for i in range(max(0, K - 1 - t), K):
                dx[start + t - (K - 1) + i] += taps[i] * g[start + t]
                dtaps[i] += x[start + t - (K - 1) + i] * g[start + t]
    return dx, dtaps, g.sum(axis=0)


def depthwise_convolution(x, taps, bias, lengths, context=0):
    """x (N, D), taps (K, D), bias (D,), lengths (B,) -> (N, D).

    In streaming, x has sum(lengths + context) rows: the first `context` of each utterance were heard before, and are
    read but get no output.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    K, D = taps.shape
    x_starts, N = row_starts(lengths + context), int(lengths.sum())
    # For each output (N,): the row of x where its utterance starts, and the row of x where it stands itself.
    first_of = np.repeat(x_starts, lengths)
    row_of = np.arange(N) + np.repeat(x_starts - row_starts(lengths) + context, lengths)
    y = np.empty((N, D), dtype=x.data.dtype)
    convolve(x.data, taps.data, bias.data, row_of, first_of, y)

    def backward(g):
        assert context == 0, "streaming is for inference"
        dx = np.empty_like(x.data)
        last_of = np.repeat(x_starts + lengths, lengths)  # one past the utterance's last row
        convolve_backward(g, taps.data, last_of, dx)
        # 64 partial sums with any number of threads, so that the bits are the same; row K is the bias.
        partial = np.zeros((64, K + 1, D), dtype=dx.dtype)
        taps_gradient(g, x.data, first_of, partial)
        dtaps = partial.sum(axis=0)
        return dx, dtaps[:K], dtaps[K]

    return record(y, [x, taps, bias], backward)


# --- pooling --------------------------------------------------------------------------------------


def pooled_lengths(lengths):
    """Rows left after pooling by 2: half, rounded up."""
    return (np.asarray(lengths, dtype=np.int64) + 1) // 2


def pairs(lengths):
    """(first row, one past the last) of each pair, in order; the last pair of an utterance may be one row.

    >>> list(pairs([2, 3]))
    [(0, 2), (2, 4), (4, 5)]
    """
    for start, T in zip(row_starts(lengths).tolist(), lengths, strict=True):
        for t in range(0, T, 2):
            yield start + t, start + min(t + 2, T)


def max_pool_readable(x, lengths):
    """The definition, pair by pair: x (N, D), lengths (B,) -> (sum T', D).  Arrays."""
    return np.array([x[a:b].max(axis=0) for a, b in pairs(lengths)], x.dtype).reshape(-1, x.shape[1])


def max_pool_backward_readable(g, x, lengths):
    """g (sum T', D) -> gradient of x: the larger number takes it whole, the first of equal ones."""
    dx = np.zeros_like(x)
    for n, (a, b) in enumerate(pairs(lengths)):
        dx[a + x[a:b].argmax(axis=0), np.arange(x.shape[1])] = g[n]
    return dx


def max_pool(x, lengths):
    """The larger row of each pair, channel by channel: x (N, D), lengths (B,) -> (sum T', D)."""
    lengths = np.asarray(lengths, dtype=np.int64)
    halves = pooled_lengths(lengths)
    # For each pair (sum T',): its first row, and whether there is a second.
    left = np.repeat(row_starts(lengths) - 2 * row_starts(halves), halves) + 2 * np.arange(int(halves.sum()))
    has_right = left + 1 < np.repeat(row_starts(lengths) + lengths, halves)
    y = np.empty((len(left), x.shape[1]), dtype=x.data.dtype)
    pool(x.data, left, has_right, y)

    def backward(g):
        dx = np.empty_like(x.data)
        pool_backward(g, x.data, left, has_right, dx)
        return (dx,)

    return record(y, [x], backward)


def demo():
    x, lengths = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]]), [3, 2]
    taps, bias = np.array([[1.0], [2.0]]), np.array([0.5])
    y = depthwise_convolution(Tensor(x), Tensor(taps), Tensor(bias), lengths).data[:, 0]
    print("two utterances 1 2 3 | 10 20")
    print("  previous + 2 x present + 0.5:", y, " (nothing stands before 1 and before 10)")
    print("  max of pairs:", max_pool(Tensor(x), lengths).data[:, 0], " lengths", pooled_lengths(lengths))


if __name__ == "__main__":
    demo()
