"""Self-attention over a causal window with relative positions, on a ragged batch.

Three linear maps (conformer.py) make a query, a key and a value of each row.  Row n looks at itself and at the W - 1
rows before it in the same utterance, never at a later one, and takes a weighted mean of their values v_m.  The weights
depend on its query q_n, on their keys k_m, and on the distance i = n - m, from 0 to W - 1:

    score(n, m) = q_n . (k_m + r_i) / sqrt(C)          p = softmax over m          out_n = sum_m p_m v_m

The D columns are split into H heads of width C = D / H, and each head does this for itself.

This is the relative attention of Transformer-XL (Dai et al. 2019, section 3.3), which the conformer uses, with two
simplifications that the limited window allows: the position vectors r_i are a learned table of W rows instead of
projected sinusoids, and one bias is added to all queries instead of one for the keys and one for the positions.

There are three steps: the definition, row by row; the same for all rows of an utterance at once, distance by distance,
with its gradient; and the operation that training records, whose kernels (attention_kernel.py) do what step two does.
"""

import numpy as np

from .attention_kernel import attend, attend_backward
from .ragged import row_starts
from .tensor import Tensor, record
from .threads import matmul

# --- the definition, row by row -------------------------------------------------------------------


def causal_attention_readable(qkv, positions, lengths, heads):
    """qkv (N, 3D): query, key and value of each row; positions (W, D): r_i; lengths (B,) -> (N, D).  Arrays."""
    q, k, v = np.split(qkv, 3, axis=1)
    out = np.zeros_like(q)
    C = q.shape[1] // heads
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        for n in range(start, start + T):
            first = max(start, n - len(positions) + 1)
            for h in range(heads):
                c = slice(h * C, (h + 1) * C)
                relative = positions[n - np.arange(first, n + 1), c]  # r_{n-m} for m = first..n
                scores = (k[first : n + 1, c] + relative) @ q[n, c] / np.sqrt(C)
                p = np.exp(scores - scores.max())
                out[n, c] = (p / p.sum()) @ v[first : n + 1, c]
    return out


# --- all rows at once, distance by distance -------------------------------------------------------
#
# A matrix of all pairs (n, m) would be T x T, and most of it zero.  Stored by distance, the same weights are W x T.
# For W = 3 and T = 4, where n<-m is what row n takes from row m:
#
#     distance 0    0<-0   1<-1   2<-2   3<-3
#     distance 1      0    1<-0   2<-1   3<-2       in a line, the queries are rows i to T - 1
#     distance 2      0      0    2<-0   3<-1       and the keys rows 0 to T - 1 - i
#
# So from here on rows lie along the *last* axis: each step of the loops below is one long operation on contiguous
# numbers, however narrow a head is.
#
# Streaming puts `past` rows of context in front of an utterance: rows that were heard before.  They have keys and
# values to attend to, but no query and no output.  Query t then stands at row past + t.


def pairs_at(i, past, T):
    """The queries that have a row at distance i, and those rows: two slices of the same length.

    >>> pairs_at(2, 0, 4)  # queries 2 and 3 see rows 0 and 1
    (slice(2, 4, None), slice(0, 2, None))
    """
    first = min(T, max(0, i - past))  # earlier queries have no such row
    return slice(first, T), slice(past + first - i, past + T - i)


def attend_readable(q, k, v, r):
    """One head of one utterance: q (C, T), k and v (C, past + T), r (W, C) -> weights p (W, T), out (C, T)."""
    (C, T), W = q.shape, len(r)
    past = k.shape[1] - T
    s = np.full((W, T), -np.inf, q.dtype)
    for i in range(W):
        t, m = pairs_at(i, past, T)
        s[i, t] = (q[:, t] * (k[:, m] + r[i][:, None])).sum(axis=0) / np.sqrt(C)
    p = np.exp(s - s.max(axis=0))
    p /= p.sum(axis=0)
    out = np.zeros_like(q)
    for i in range(W):
        t, m = pairs_at(i, past, T)
        out[:, t] += p[i, t] * v[:, m]
    return p, out


def attend_backward_readable(g, q, k, v, r, p):
    """g (C, T), the gradient of out -> gradients of q, k, v and of s (W, T), the scores before the division.

    The lines of attend_readable, last one first, and the gradients that each sends back:

        out_t = sum_i p_i[t] v_{t-i}           dp_i[t] = g_t . v_{t-i}              dv_{t-i} += p_i[t] g_t
        p = softmax(s / sqrt(C))               ds_i = p_i (dp_i - sum_j p_j dp_j) / sqrt(C)
        s_i[t] = q_t . (k_{t-i} + r_i)         dq_t += ds_i[t] (k_{t-i} + r_i)      dk_{t-i} += ds_i[t] q_t

    dr_i = sum_t ds_i[t] q_t is left to the operation below.
    """
    (C, T), W = q.shape, len(r)
    past = k.shape[1] - T
    dq, dk, dv, dp = (np.zeros_like(a) for a in (q, k, v, p))
    for i in range(W):
        t, m = pairs_at(i, past, T)
        dp[i, t] = (g[:, t] * v[:, m]).sum(axis=0)
        dv[:, m] += p[i, t] * g[:, t]
    ds = p * (dp - (p * dp).sum(axis=0)) / np.sqrt(C)
    for i in range(W):
        t, m = pairs_at(i, past, T)
        dq[:, t] += ds[i, t] * (k[:, m] + r[i][:, None])
        dk[:, m] += ds[i, t] * q[:, t]
    return dq, dk, dv, ds


# --- the operation --------------------------------------------------------------------------------


def causal_attention(qkv, positions, lengths, heads, context_lengths=None):
    """qkv (3D, M): queries, keys and values of the rows, one below the other; positions (W, D), lengths (B,) -> (D, N).

    There are N = sum(lengths) outputs; M = N unless context_lengths (B,) says how many rows of context stand in front
    of each utterance's own.  The probabilities are kept for backward: memory grows with N x W.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    context = np.zeros_like(lengths) if context_lengths is None else np.asarray(context_lengths, np.int64)
    N, (W, D) = int(lengths.sum()), positions.shape
    probabilities = np.empty((heads, W, N), dtype=qkv.data.dtype)
    out = np.empty((D, N), dtype=qkv.data.dtype)
    layout = (row_starts(lengths), row_starts(lengths + context), lengths, context, heads)
    attend(qkv.data, positions.data, *layout, probabilities, out)

    def backward(g):
        dqkv = np.empty_like(qkv.data)
        attend_backward(np.ascontiguousarray(g), qkv.data, positions.data, *layout, probabilities, dqkv)
        # The kernel has put ds in the place of the probabilities.  Left: dr_i = sum over n of ds_i[n] q_n.
        q = qkv.data[:D]
        if context.any():  # rows of context have no query: leave their columns out
            q = q[:, np.repeat(row_starts(lengths + context) + context - row_starts(lengths), lengths) + np.arange(N)]
        q = q.reshape(heads, D // heads, N).transpose(0, 2, 1)  # (H, N, C)
        return dqkv, np.hstack([matmul(ds, rows) for ds, rows in zip(probabilities, q, strict=True)])  # (W, D)

    return record(out, [qkv, positions], backward)


def attention_weights(qkv, positions, heads):
    """To look at: one utterance's arrays (3D, T), (W, D) -> (H, T, T); [h, n, m] is what row n takes from row m."""
    T, (W, D) = qkv.shape[1], positions.shape
    probabilities, out = np.empty((heads, W, T), qkv.dtype), np.empty((D, T), qkv.dtype)
    zero = np.zeros(1, dtype=np.int64)
    attend(qkv, positions, zero, zero, np.array([T]), zero, heads, probabilities, out)
    weights = np.zeros((heads, T, T), qkv.dtype)
    for i in range(min(W, T)):
        n = np.arange(i, T)
        weights[:, n, n - i] = probabilities[:, i, i:]
    return weights


def demo():
    # Queries of zero make all scores equal, so every output is the mean of the values in its window.
    values = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]])
    qkv, positions, lengths = np.concatenate([np.zeros((5, 2)), values], axis=1), np.zeros((3, 1)), [3, 2]
    out = causal_attention(Tensor(qkv.T.copy()), Tensor(positions), lengths, heads=1).data[0]
    print("two utterances, values 1 2 3 | 10 20, window 3, equal scores:")
    print("  kernel  ", np.round(out, 3), " (running means; the second utterance does not see the first)")
    print("  readable", np.round(causal_attention_readable(qkv, positions, lengths, 1)[:, 0], 3))
    print("what the rows of the first take from rows 0, 1 and 2:")
    print(np.round(attention_weights(qkv[:3].T.copy(), positions, 1)[0], 3))


if __name__ == "__main__":
    demo()
