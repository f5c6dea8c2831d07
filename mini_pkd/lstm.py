"""One LSTM layer over a ragged batch (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    z_i, z_f, z_u, z_o = x_t W_x + h_{t-1} W_h + b         four parts of L numbers, in this order
    i = sigmoid(z_i)                                       how much enters the cell
    f = sigmoid(z_f)                                       how much of the cell stays
    u = tanh(z_u)                                          what enters
    o = sigmoid(z_o)                                       how much of the cell is shown
    c_t = f c_{t-1} + i u                                  the cell
    h_t = o tanh(c_t)                                      the output

x W_x does not wait for the recurrence: it is one matrix product for all steps of all utterances.  For h_{t-1} W_h the
utterances are sorted from the longest to the shortest.  Those still running at step t are then the first active[t] of
them, and their rows, side by side, make one product.
"""

import numpy as np
from numba import prange

from .ragged import row_starts
from .simd import exp, kernel, tanh
from .tensor import Tensor, record
from .threads import matmul

# --- one step and its gradient, in numpy ----------------------------------------------------------


def lstm_step(x, h, c, w_input, w_hidden, bias):
    """One step of N sequences side by side: x (N, I), h and c (N, L) -> new (h, c).  Decoding uses it too."""
    z = matmul(x, w_input) + matmul(h, w_hidden) + bias  # (N, 4L)
    i, f, u, o = np.split(z, 4, axis=1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(u)
    return _sigmoid(o) * np.tanh(c), c


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))  # this form cannot overflow


def lstm_readable(x, w_input, w_hidden, bias, lengths):
    """Utterance by utterance and step by step: x (N, I) -> h (N, L).  Arrays."""
    rows, L = np.zeros((len(x), len(w_hidden)), dtype=x.dtype), len(w_hidden)
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        h = c = np.zeros((1, L), dtype=x.dtype)
        for n in range(start, start + T):
            h, c = lstm_step(x[n : n + 1], h, c, w_input, w_hidden, bias)
            rows[n] = h[0]
    return rows


def lstm_step_backward_readable(dh, dc, gates, c, c_before):
    """The step's equations from the last to the first: dh, dc (N, L) -> dz (N, 4L), gradient of c_{t-1} (N, L).

    gates (N, 4L) holds i, f, u, o; c and c_before are c_t and c_{t-1}; dh and dc are the gradients of h_t and c_t, from
    the outputs and from step t + 1 together.  The derivative of s = sigmoid is s (1 - s), that of tanh 1 - tanh^2.
    """
    i, f, u, o = np.split(gates, 4, axis=1)
    dc = dc + dh * o * (1 - np.tanh(c) ** 2)
    di, df, du, do = dc * u, dc * c_before, dc * i, dh * np.tanh(c)
    dz = np.hstack([di * i * (1 - i), df * f * (1 - f), du * (1 - u * u), do * o * (1 - o)])
    return dz, dc * f


# --- the operation --------------------------------------------------------------------------------


def lstm(x, w_input, w_hidden, bias, lengths):
    """x (N, I), w_input (I, 4L), w_hidden (L, 4L), bias (4L,), lengths (B,) -> h (N, L), from zero states."""
    lengths = np.asarray(lengths, dtype=np.int64)
    B, N, L = len(lengths), len(x.data), w_hidden.shape[0]
    first = row_starts(lengths)[np.argsort(-lengths, kind="stable")]  # of the longest utterance, of the next, ...
    active = [int((lengths > t).sum()) for t in range(int(lengths.max(initial=0)))]

    gates = matmul(x.data, w_input.data)  # (N, 4L): x W_x; a step turns its rows into i, f, u, o, backward into dz
    h, c = np.empty((N, L), dtype=gates.dtype), np.empty((N, L), dtype=gates.dtype)
    packed = np.zeros((B, L), dtype=gates.dtype)  # h_{t-1} of the active utterances, side by side
    recurrent = np.empty((B, 4 * L), dtype=gates.dtype)
    for t, n in enumerate(active):
        if t:
            matmul(packed[:n], w_hidden.data, out=recurrent[:n])
        else:
            recurrent[:n] = 0
        _lstm_step(gates, recurrent[:n], bias.data, first, t, c, h, packed)

    def backward(g):
        dz = gates
        dh, dc = np.zeros((B, L), dtype=g.dtype), np.zeros((B, L), dtype=g.dtype)
        for t in reversed(range(len(active))):
            n = active[t]
            _lstm_step_backward(g, dz, c, first, t, dh, dc, n, recurrent)
            matmul(recurrent[:n], w_hidden.data.T, out=dh[:n])
        # h_{t-1} of each row: the row above, or zero where an utterance starts.
        before = np.empty_like(h)
        before[1:] = h[:-1]
        before[row_starts(lengths)[lengths > 0]] = 0
        dx = matmul(dz, w_input.data.T) if x.requires_grad else None
        return dx, matmul(x.data.T, dz), matmul(before.T, dz), dz.sum(axis=0)

    return record(h, [x, w_input, w_hidden, bias], backward)


@kernel(readable=lstm_step)
def _lstm_step(gates, recurrent, bias, first, t, c, h, packed):
    L = c.shape[1]
    one = c.dtype.type(1)
    for a in prange(len(recurrent)):
        n = first[a] + t
        z, r = gates[n], recurrent[a]
        for d in range(L):
            i = one / (one + exp(-(z[d] + r[d] + bias[d])))
            f = one / (one + exp(-(z[L + d] + r[L + d] + bias[L + d])))
            u = tanh(z[2 * L + d] + r[2 * L + d] + bias[2 * L + d])
            o = one / (one + exp(-(z[3 * L + d] + r[3 * L + d] + bias[3 * L + d])))
            before = c[n - 1, d] if t > 0 else c.dtype.type(0)
            new = f * before + i * u
            z[d], z[L + d], z[2 * L + d], z[3 * L + d] = i, f, u, o
            c[n, d] = new
            h[n, d] = packed[a, d] = o * tanh(new)


@kernel(fastmath=False, readable=lstm_step_backward_readable)  # with fastmath, one row rounds differently from two
def _lstm_step_backward(g, gates, c, first, t, dh, dc, active, dz_packed):
    # gates[n] holds i, f, u, o on entry and dz on return; dz_packed holds the same dz, side by side for the product.
    L = c.shape[1]
    one = c.dtype.type(1)
    for a in prange(active):
        n = first[a] + t
        z, dz = gates[n], dz_packed[a]
        for d in range(L):
            i, f, u, o = z[d], z[L + d], z[2 * L + d], z[3 * L + d]
            tc = tanh(c[n, d])
            before = c[n - 1, d] if t > 0 else c.dtype.type(0)
            dh_n = g[n, d] + dh[a, d]
            dc_n = dc[a, d] + dh_n * o * (one - tc * tc)
            dz[d] = dc_n * u * i * (one - i)
            dz[L + d] = dc_n * before * f * (one - f)
            dz[2 * L + d] = dc_n * i * (one - u * u)
            dz[3 * L + d] = dh_n * tc * o * (one - o)
            dc[a, d] = dc_n * f
            z[d], z[L + d], z[2 * L + d], z[3 * L + d] = dz[d], dz[L + d], dz[2 * L + d], dz[3 * L + d]


def demo():
    # All weights are 0, so i = f = o = sigmoid(0) = 1/2, and u = tanh(20) = 1: the cell goes 1/2, 3/4, 7/8.
    x, bias = np.zeros((5, 1)), np.array([0.0, 0.0, 20.0, 0.0])
    h = lstm(Tensor(x), Tensor(np.zeros((1, 4))), Tensor(np.zeros((1, 4))), Tensor(bias), [3, 2]).data[:, 0]
    print("h of utterances with 3 and 2 rows:", np.round(h, 4))
    print("0.5 tanh(1/2, 3/4, 7/8)          :", np.round(0.5 * np.tanh([0.5, 0.75, 0.875]), 4))


if __name__ == "__main__":
    demo()
