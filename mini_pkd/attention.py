"""Self-attention over a causal window with relative positions, on a ragged batch.

Row n attends to itself and to the `window - 1` rows before it in the same utterance, never to a later
one.  With head width C = D / H, distance i = n - m (0 <= i < window):

    score(n, m) = q_n . (k_m + r_i) / sqrt(C)          p = softmax over m          out_n = sum_m p v_m

This is the relative attention of Transformer-XL (Dai et al. 2019, eq. for A^rel), the one the conformer
uses, with two simplifications that the limited window allows: the position vectors r_i are a learned
table of `window` rows instead of projected sinusoids, and the two global query biases u and v are one,
namely the bias of the query projection.

The band is the point: cost and memory grow with N x window, not with T^2.  Probabilities are kept for
backward as `(H, window, N)`: entry (h, i, n) is the weight of row n - i.

For streaming, an utterance's rows may be preceded by context: rows already heard, whose keys and values
are attended to but which get no output of their own.
"""

import numpy as np
from numba import njit, prange

from .simd import REORDER, exp
from .tensor import record


def starts(lengths):
    """First row of each utterance: (B,) lengths -> (B,) int64."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return np.cumsum(lengths) - lengths


def causal_attention(qkv, positions, lengths, heads, context_lengths=None):
    """qkv (M, 3D): queries | keys | values of each row, positions (window, D), lengths (B,) -> (N, D).

    positions[i] is r_i, the vector of distance i.  N = sum(lengths) outputs; M = N unless context_lengths
    (B,) says how many rows in front of each utterance's own are context: attended to, without an output.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    context = np.zeros_like(lengths) if context_lengths is None else np.asarray(context_lengths, np.int64)
    N, D = int(lengths.sum()), positions.shape[1]
    probabilities = np.empty((heads, positions.shape[0], N), dtype=qkv.data.dtype)
    out = np.empty((N, D), dtype=qkv.data.dtype)
    layout = (starts(lengths), starts(lengths + context), lengths, context, heads)
    _attend(qkv.data, positions.data, *layout, probabilities, out)

    def backward(g):
        dqkv = np.zeros_like(qkv.data)
        dpositions = np.empty((len(lengths), *positions.shape), dtype=out.dtype)
        _attend_backward(np.ascontiguousarray(g), qkv.data, positions.data, *layout, probabilities, dqkv, dpositions)
        return dqkv, dpositions.sum(axis=0)

    return record(out, [qkv, positions], backward)


def causal_attention_readable(qkv, positions, lengths, heads):
    """The definition, one row at a time, in numpy: the oracle of the kernel.  Arrays in, array out."""
    q, k, v = np.split(qkv, 3, axis=1)
    out = np.zeros_like(q)
    C = q.shape[1] // heads
    for start, T in zip(starts(lengths), lengths, strict=True):
        for n in range(start, start + T):
            first = max(start, n - len(positions) + 1)
            for h in range(heads):
                c = slice(h * C, (h + 1) * C)
                relative = positions[n - np.arange(first, n + 1), c]  # r_{n-m} for m = first..n
                scores = (k[first : n + 1, c] + relative) @ q[n, c] / np.sqrt(C)
                p = np.exp(scores - scores.max())
                out[n, c] = (p / p.sum()) @ v[first : n + 1, c]
    return out


# One task per (utterance, head), and inside it everything transposed: rows run along the last axis, so that
# every inner loop is long, contiguous and free of reductions whatever the head width.  For a fixed distance
# i, query t meets row t - i: two contiguous stretches, one shifted by i.  Queries go in tiles, so that the
# (window, tile) scores stay in the cache.

TILE = 128


@njit(cache=True, error_model="numpy", nogil=True)
def _columns(rows, first, count, c0, C):
    """rows[first : first + count, c0 : c0 + C], transposed to (C, count)."""
    out = np.empty((C, count), dtype=rows.dtype)
    for s in range(count):
        for c in range(C):
            out[c, s] = rows[first + s, c0 + c]
    return out


@njit(cache=True, parallel=True, error_model="numpy", fastmath=REORDER, nogil=True)
def _attend(qkv, positions, out_starts, row_starts, lengths, context, heads, probabilities, out):
    W, D = positions.shape
    C = D // heads
    shrink, zero, one = qkv.dtype.type(1.0 / np.sqrt(C)), qkv.dtype.type(0), qkv.dtype.type(1)
    for task in prange(len(lengths) * heads):
        b, h = task // heads, task % heads
        T, past, first, n0, c0 = lengths[b], context[b], row_starts[b], out_starts[b], h * C
        q = _columns(qkv, first + past, T, c0, C)  # (C, T)
        k = _columns(qkv, first, past + T, D + c0, C)  # (C, past + T); query t sits on column past + t
        v = _columns(qkv, first, past + T, 2 * D + c0, C)
        o = np.zeros((C, T), dtype=qkv.dtype)
        top, norm = np.empty(TILE, dtype=qkv.dtype), np.empty(TILE, dtype=qkv.dtype)
        for lo in range(0, T, TILE):
            hi = min(lo + TILE, T)
            reach = min(W, past + hi)  # distances that some query of this tile can look back
            for i in range(reach):
                t0 = max(lo, i - past)  # earlier queries have no row at this distance
                n = hi - t0
                p = probabilities[h, i, n0 + t0 :]
                for t in range(n):
                    p[t] = zero
                c = 0
                while c + 4 <= C:
                    ka, kb = k[c, past - i + t0 :], k[c + 1, past - i + t0 :]
                    kc, kd = k[c + 2, past - i + t0 :], k[c + 3, past - i + t0 :]
                    qa, qb, qc, qd = q[c, t0:], q[c + 1, t0:], q[c + 2, t0:], q[c + 3, t0:]
                    ra, rb = positions[i, c0 + c], positions[i, c0 + c + 1]
                    rc, rd = positions[i, c0 + c + 2], positions[i, c0 + c + 3]
                    for t in range(n):
                        p[t] += (
                            qa[t] * (ka[t] + ra) + qb[t] * (kb[t] + rb) + qc[t] * (kc[t] + rc) + qd[t] * (kd[t] + rd)
                        )
                    c += 4
                while c < C:
                    kc, qc, rc = k[c, past - i + t0 :], q[c, t0:], positions[i, c0 + c]
                    for t in range(n):
                        p[t] += qc[t] * (kc[t] + rc)
                    c += 1
                m = top[t0 - lo :]
                if i == 0:
                    m[:n] = p[:n]
                for t in range(n):
                    m[t] = p[t] if p[t] > m[t] else m[t]
            norm[:] = zero
            for i in range(reach):
                t0 = max(lo, i - past)
                p, m, z = probabilities[h, i, n0 + t0 :], top[t0 - lo :], norm[t0 - lo :]
                for t in range(hi - t0):
                    e = exp(shrink * (p[t] - m[t]))
                    p[t] = e
                    z[t] += e
            for t in range(hi - lo):
                norm[t] = one / norm[t]
            for i in range(reach):
                t0 = max(lo, i - past)
                n = hi - t0
                p, z = probabilities[h, i, n0 + t0 :], norm[t0 - lo :]
                for t in range(n):
                    p[t] *= z[t]
                for c in range(C):
                    oc, vc = o[c, t0:], v[c, past - i + t0 :]
                    for t in range(n):
                        oc[t] += p[t] * vc[t]
        for t in range(T):
            for c in range(C):
                out[n0 + t, c0 + c] = o[c, t]


@njit(cache=True, parallel=True, error_model="numpy", fastmath=REORDER, nogil=True)
def _attend_backward(
    g, qkv, positions, out_starts, row_starts, lengths, context, heads, probabilities, dqkv, dpositions
):
    # dp_i = g . v_{t-i};  ds_i = p_i (dp_i - sum_j p_j dp_j) / sqrt(C);
    # dq = sum_i ds_i (k_{t-i} + r_i), dk_{t-i} += ds_i q, dr_i += ds_i q, dv_{t-i} += p_i g.
    W, D = positions.shape
    C = D // heads
    shrink, zero = qkv.dtype.type(1.0 / np.sqrt(C)), qkv.dtype.type(0)
    for task in prange(len(lengths) * heads):
        b, h = task // heads, task % heads
        T, past, first, n0, c0 = lengths[b], context[b], row_starts[b], out_starts[b], h * C
        q, go = _columns(qkv, first + past, T, c0, C), _columns(g, n0, T, c0, C)
        k = _columns(qkv, first, past + T, D + c0, C)
        v = _columns(qkv, first, past + T, 2 * D + c0, C)
        dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        dr = np.zeros((W, C), dtype=qkv.dtype)
        ds, dot = np.empty((W, TILE), dtype=qkv.dtype), np.empty(TILE, dtype=qkv.dtype)
        for lo in range(0, T, TILE):
            hi = min(lo + TILE, T)
            reach = min(W, past + hi)
            dot[:] = zero
            for i in range(reach):
                t0 = max(lo, i - past)
                n = hi - t0
                s, p, d = ds[i, t0 - lo :], probabilities[h, i, n0 + t0 :], dot[t0 - lo :]
                for t in range(n):
                    s[t] = zero
                c = 0
                while c + 4 <= C:
                    ga, gb, gc, gd = go[c, t0:], go[c + 1, t0:], go[c + 2, t0:], go[c + 3, t0:]
                    va, vb = v[c, past - i + t0 :], v[c + 1, past - i + t0 :]
                    vc, vd = v[c + 2, past - i + t0 :], v[c + 3, past - i + t0 :]
                    for t in range(n):
                        s[t] += ga[t] * va[t] + gb[t] * vb[t] + gc[t] * vc[t] + gd[t] * vd[t]
                    c += 4
                while c < C:
                    for t in range(n):
                        s[t] += go[c, t0 + t] * v[c, past - i + t0 + t]
                    c += 1
                for t in range(n):
                    d[t] += p[t] * s[t]
            for i in range(reach):
                t0 = max(lo, i - past)
                n = hi - t0
                s, p, d = ds[i, t0 - lo :], probabilities[h, i, n0 + t0 :], dot[t0 - lo :]
                for t in range(n):
                    s[t] = p[t] * (s[t] - d[t]) * shrink
                for c in range(C):
                    kc, qc, gc = k[c, past - i + t0 :], q[c, t0:], go[c, t0:]
                    dkc, dvc, dqc = dk[c, past - i + t0 :], dv[c, past - i + t0 :], dq[c, t0:]
                    r, total = positions[i, c0 + c], zero
                    for t in range(n):
                        dqc[t] += s[t] * (kc[t] + r)
                        dkc[t] += s[t] * qc[t]
                        dvc[t] += p[t] * gc[t]
                        total += s[t] * qc[t]
                    dr[i, c] += total
        for t in range(T):
            for c in range(C):
                dqkv[first + past + t, c0 + c] = dq[c, t]
        for s_ in range(past + T):
            for c in range(C):
                dqkv[first + s_, D + c0 + c] = dk[c, s_]
                dqkv[first + s_, 2 * D + c0 + c] = dv[c, s_]
        for i in range(W):
            for c in range(C):
                dpositions[b, i, c0 + c] = dr[i, c]


if __name__ == "__main__":
    from .tensor import Tensor

    # Queries of zero make all scores equal, so every output is the mean of the values in its window of 3.
    values = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]])
    qkv = np.concatenate([np.zeros((5, 2)), values], axis=1)
    lengths = [3, 2]
    out = causal_attention(Tensor(qkv), Tensor(np.zeros((3, 1))), lengths, heads=1).data[:, 0]
    print("two utterances, values 1 2 3 | 10 20, window 3, equal scores:")
    print("  kernel  ", np.round(out, 3), " (running means; the second utterance does not see the first)")
    print("  readable", np.round(causal_attention_readable(qkv, np.zeros((3, 1)), lengths, 1)[:, 0], 3))
