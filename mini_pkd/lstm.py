"""One LSTM layer over a ragged batch (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)     u = tanh(z_u)      z = x W_x + h_{t-1} W_h + b
    c_t = f c_{t-1} + i u                                  h_t = o tanh(c_t)

The input half, x W_x, does not depend on the recurrence: one matrix product for all steps of all utterances.
For the recurrent half utterances are taken from the longest to the shortest, so that the ones still
running at step t are the first `active` of them, and h_{t-1} W_h is one product of exactly those rows.
"""

import numpy as np
from numba import prange

from .ragged import row_starts
from .simd import exp, kernel, tanh
from .tensor import record
from .threads import matmul


def lstm(x, w_input, w_hidden, bias, lengths):
    """x (N, I), w_input (I, 4H), w_hidden (H, 4H), bias (4H,), lengths (B,) -> h (N, H), from zero states.

    Gates stand in the order i, f, u, o.  An utterance of zero rows is allowed.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    N, H = len(x.data), w_hidden.shape[0]
    order = np.argsort(-lengths, kind="stable")
    first = row_starts(lengths)[order]  # first row of the longest utterance, of the next, ...
    active = [int((lengths > t).sum()) for t in range(int(lengths.max(initial=0)))]

    gates = matmul(x.data, w_input.data)  # (N, 4H): becomes the activated gates, then in backward dz
    h, c = np.empty((N, H), dtype=gates.dtype), np.empty((N, H), dtype=gates.dtype)
    packed = np.zeros((len(lengths), H), dtype=gates.dtype)  # h_{t-1} of the active utterances, side by side
    recurrent = np.empty((len(lengths), 4 * H), dtype=gates.dtype)
    for t, n in enumerate(active):
        if t:
            matmul(packed[:n], w_hidden.data, out=recurrent[:n])
        else:
            recurrent[:n] = 0
        _lstm_step(gates, recurrent[:n], bias.data, first, t, c, h, packed)

    def backward(g):
        dz = gates
        dh, dc = np.zeros((len(lengths), H), dtype=g.dtype), np.zeros((len(lengths), H), dtype=g.dtype)
        for t in reversed(range(len(active))):
            n = active[t]
            _lstm_step_backward(g, dz, c, first, t, dh, dc, n, recurrent)
            matmul(recurrent[:n], w_hidden.data.T, out=dh[:n])
        # h_{t-1} for every row: the row above, or zero where an utterance starts.
        before = np.empty_like(h)
        before[1:] = h[:-1]
        before[row_starts(lengths)[lengths > 0]] = 0
        dx = matmul(dz, w_input.data.T) if x.requires_grad else None
        return dx, matmul(x.data.T, dz), matmul(before.T, dz), dz.sum(axis=0)

    return record(h, [x, w_input, w_hidden, bias], backward)


def lstm_step(x, h, c, w_input, w_hidden, bias):
    """One step of K sequences, plain arrays: x (K, I), h and c (K, H) -> new (h, c).  For decoding."""
    z = matmul(x, w_input) + matmul(h, w_hidden) + bias  # (K, 4H)
    i, f, u, o = np.split(z, 4, axis=1)
    sigmoid = _sigmoid
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
    return sigmoid(o) * np.tanh(c), c


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))  # this form cannot overflow


def lstm_readable(x, w_input, w_hidden, bias, lengths):
    """Utterance by utterance and step by step: the oracle.  Arrays in, array out."""
    H = len(w_hidden)
    rows = []
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        h, c = np.zeros((1, H), dtype=x.dtype), np.zeros((1, H), dtype=x.dtype)
        for t in range(T):
            h, c = lstm_step(x[start + t : start + t + 1], h, c, w_input, w_hidden, bias)
            rows.append(h)
    return np.concatenate(rows) if rows else np.zeros((0, H), dtype=x.dtype)


@kernel()
def _lstm_step(gates, recurrent, bias, first, t, c, h, packed):
    H = c.shape[1]
    one = c.dtype.type(1)
    for a in prange(len(recurrent)):
        n = first[a] + t
        z, r = gates[n], recurrent[a]
        for d in range(H):
            i = one / (one + exp(-(z[d] + r[d] + bias[d])))
            f = one / (one + exp(-(z[H + d] + r[H + d] + bias[H + d])))
            u = tanh(z[2 * H + d] + r[2 * H + d] + bias[2 * H + d])
            o = one / (one + exp(-(z[3 * H + d] + r[3 * H + d] + bias[3 * H + d])))
            before = c[n - 1, d] if t > 0 else c.dtype.type(0)
            new = f * before + i * u
            z[d], z[H + d], z[2 * H + d], z[3 * H + d] = i, f, u, o
            c[n, d] = new
            h[n, d] = packed[a, d] = o * tanh(new)


@kernel(fastmath=False)  # with fastmath a thread of a single row rounded differently from one of two
def _lstm_step_backward(g, gates, c, first, t, dh, dc, active, dz_packed):
    # gates[n] holds i, f, u, o on entry and dz on return; dz_packed is the same side by side for the product.
    H = c.shape[1]
    one = c.dtype.type(1)
    for a in prange(active):
        n = first[a] + t
        z, dz = gates[n], dz_packed[a]
        for d in range(H):
            i, f, u, o = z[d], z[H + d], z[2 * H + d], z[3 * H + d]
            tc = tanh(c[n, d])
            before = c[n - 1, d] if t > 0 else c.dtype.type(0)
            dh_n = g[n, d] + dh[a, d]
            dc_n = dc[a, d] + dh_n * o * (one - tc * tc)
            dz[d] = dc_n * u * i * (one - i)
            dz[H + d] = dc_n * before * f * (one - f)
            dz[2 * H + d] = dc_n * i * (one - u * u)
            dz[3 * H + d] = dh_n * tc * o * (one - o)
            dc[a, d] = dc_n * f
            z[d], z[H + d], z[2 * H + d], z[3 * H + d] = dz[d], dz[H + d], dz[2 * H + d], dz[3 * H + d]


if __name__ == "__main__":
    from .tensor import Tensor

    # Gates at sigmoid(0) = 1/2 and a candidate of tanh(20) = 1: the cell goes 1/2, 3/4, 7/8 and h is half its tanh.
    x, bias = np.zeros((5, 1)), np.array([0.0, 0.0, 20.0, 0.0])
    h = lstm(Tensor(x), Tensor(np.zeros((1, 4))), Tensor(np.zeros((1, 4))), Tensor(bias), [3, 2]).data[:, 0]
    print("h of utterances with 3 and 2 rows:", np.round(h, 4))
    print("0.5 tanh(1/2, 3/4, 7/8)          :", np.round(0.5 * np.tanh([0.5, 0.75, 0.875]), 4))
