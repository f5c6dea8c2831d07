"""Self-attention over a causal window with relative positions, on a ragged batch.

Row n attends to itself and to the `window - 1` rows before it in the same utterance, never to a later
one.  With head width C = D / H, distance i = n - m (0 <= i < window):

    score(n, m) = q_n . (k_m + r_i) / sqrt(C)          p = softmax over m          out_n = sum_m p v_m

This is the relative attention of Transformer-XL (Dai et al. 2019, eq. for A^rel), the one the conformer
uses, with two simplifications that the limited window allows: the position vectors r_i are a learned
table of `window` rows instead of projected sinusoids, and the two global query biases u and v are one,
namely the bias of the query projection.

The band is the point: cost and memory grow with N x window, not with T^2.  Probabilities are kept for
backward as `(N, H, window)`, where column j of row n belongs to row m = n - (window - 1) + j.

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
    probabilities = np.zeros((N, heads, positions.shape[0]), dtype=qkv.data.dtype)
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


# One task per (utterance, head).  Every inner loop is an "axpy" over contiguous numbers, which vectorises
# without reordering a sum: over window columns j where keys are stored transposed, over c where they
# are not.  Four terms at a time, so that the accumulator travels to memory a quarter as often.


@njit(cache=True, parallel=True, error_model="numpy", fastmath=REORDER, nogil=True)
def _attend(qkv, positions, out_starts, row_starts, lengths, context, heads, probabilities, out):
    W, D = positions.shape
    C = D // heads
    shrink, zero, one = qkv.dtype.type(1.0 / np.sqrt(C)), qkv.dtype.type(0), qkv.dtype.type(1)
    for task in prange(len(lengths) * heads):
        b, h = task // heads, task % heads
        T, shift, m0 = lengths[b], context[b], row_starts[b]  # query t of this utterance sits on row t + shift
        S = T + shift
        c0 = h * C
        k0, v0 = D + c0, 2 * D + c0  # where this head's keys and values begin in a row
        kt = np.empty((C, S), dtype=qkv.dtype)  # keys of this head, transposed
        for s in range(S):
            for c in range(C):
                kt[c, s] = qkv[m0 + s, k0 + c]
        rt = np.empty((C, W), dtype=qkv.dtype)  # positions, transposed and reversed: column j is distance W-1-j
        for j in range(W):
            for c in range(C):
                rt[c, j] = positions[W - 1 - j, c0 + c]
        for t in range(T):
            n, last = out_starts[b] + t, t + shift
            j0 = max(0, W - 1 - last)  # columns before j0 lie before the utterance
            base = last - (W - 1)
            q = qkv[m0 + last, c0 : c0 + C]
            p = probabilities[n, h]
            for c in range(0, C - C % 4, 4):
                q0, q1, q2, q3 = q[c] * shrink, q[c + 1] * shrink, q[c + 2] * shrink, q[c + 3] * shrink
                for j in range(j0, W):
                    p[j] += (
                        q0 * (kt[c, base + j] + rt[c, j])
                        + q1 * (kt[c + 1, base + j] + rt[c + 1, j])
                        + q2 * (kt[c + 2, base + j] + rt[c + 2, j])
                        + q3 * (kt[c + 3, base + j] + rt[c + 3, j])
                    )
            for c in range(C - C % 4, C):
                for j in range(j0, W):
                    p[j] += q[c] * shrink * (kt[c, base + j] + rt[c, j])
            top = p[j0]
            for j in range(j0, W):
                top = max(top, p[j])
            norm = zero
            for j in range(j0, W):
                p[j] = exp(p[j] - top)
                norm += p[j]
            norm = one / norm
            for j in range(j0, W):
                p[j] *= norm
            o = out[n, c0 : c0 + C]
            for c in range(C):
                o[c] = zero
            m, j = m0 + base + j0, j0
            while j + 4 <= W:
                va, vb = qkv[m, v0 : v0 + C], qkv[m + 1, v0 : v0 + C]
                vc, vd = qkv[m + 2, v0 : v0 + C], qkv[m + 3, v0 : v0 + C]
                pa, pb, pc, pd = p[j], p[j + 1], p[j + 2], p[j + 3]
                for c in range(C):
                    o[c] += pa * va[c] + pb * vb[c] + pc * vc[c] + pd * vd[c]
                m += 4
                j += 4
            while j < W:
                for c in range(C):
                    o[c] += p[j] * qkv[m, v0 + c]
                m += 1
                j += 1


@njit(cache=True, parallel=True, error_model="numpy", fastmath=REORDER, nogil=True)
def _attend_backward(
    g, qkv, positions, out_starts, row_starts, lengths, context, heads, probabilities, dqkv, dpositions
):
    # dp_j = g . v_j;  ds_j = p_j (dp_j - sum_i p_i dp_i);  dq = sum ds_j (k_j + r_j), dk_j and dr_j += ds_j q.
    W, D = positions.shape
    C = D // heads
    shrink, zero = qkv.dtype.type(1.0 / np.sqrt(C)), qkv.dtype.type(0)
    for task in prange(len(lengths) * heads):
        b, h = task // heads, task % heads
        T, shift, m0 = lengths[b], context[b], row_starts[b]
        S = T + shift
        c0 = h * C
        k0, v0 = D + c0, 2 * D + c0
        vt = np.empty((C, S), dtype=qkv.dtype)
        for s in range(S):
            for c in range(C):
                vt[c, s] = qkv[m0 + s, v0 + c]
        ds = np.empty(W, dtype=qkv.dtype)
        dr = np.zeros((W, C), dtype=qkv.dtype)  # row j is distance W-1-j
        for t in range(T):
            n, last = out_starts[b] + t, t + shift
            j0 = max(0, W - 1 - last)
            base = last - (W - 1)
            p, gn = probabilities[n, h], g[n, c0 : c0 + C]
            q, dq = qkv[m0 + last, c0 : c0 + C], dqkv[m0 + last, c0 : c0 + C]
            for j in range(j0, W):
                ds[j] = zero
            for c in range(0, C - C % 4, 4):
                ga, gb, gc, gd = gn[c], gn[c + 1], gn[c + 2], gn[c + 3]
                for j in range(j0, W):
                    ds[j] += (
                        ga * vt[c, base + j]
                        + gb * vt[c + 1, base + j]
                        + gc * vt[c + 2, base + j]
                        + gd * vt[c + 3, base + j]
                    )
            for c in range(C - C % 4, C):
                for j in range(j0, W):
                    ds[j] += gn[c] * vt[c, base + j]
            dot = zero
            for j in range(j0, W):
                dot += p[j] * ds[j]
            for j in range(j0, W):
                ds[j] = p[j] * (ds[j] - dot) * shrink
            for j in range(j0, W):
                m = m0 + base + j
                d, pj = ds[j], p[j]
                k, r, dr_j = qkv[m, k0 : k0 + C], positions[W - 1 - j, c0 : c0 + C], dr[j]
                dk, dv = dqkv[m, k0 : k0 + C], dqkv[m, v0 : v0 + C]
                for c in range(C):
                    dq[c] += d * (k[c] + r[c])
                for c in range(C):
                    dk[c] += d * q[c]
                for c in range(C):
                    dr_j[c] += d * q[c]
                for c in range(C):
                    dv[c] += pj * gn[c]
        for j in range(W):
            for c in range(C):
                dpositions[b, W - 1 - j, c0 + c] = dr[j, c]
