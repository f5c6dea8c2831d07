"""The kernels of attention.py: the loops over distances of `attend_readable`, unrolled, for all utterances and heads.

The batch comes as attention.py has it: queries, keys and values below each other, qkv (3D, M), with the rows of the
batch along the last axis.  Utterance b has context[b] + lengths[b] columns of qkv, from first_rows[b] on, and
lengths[b] columns of everything that has an entry per query, from out_starts[b] on.
"""

import numpy as np
from numba import njit, prange

from .simd import REORDER, exp, kernel

# There is one task for each (utterance, head).  It is made of three operations, which take a few distances at a time so
# that what is loaded is used several times:
#
#     scores      s_i[t] = sum_c q_c[t] (k_c[t-i] + r_ic)                  and dp_i = scores of dout and v
#     mix         out_c[t] = sum_i p_i[t] v_c[t-i]                         and dq = mix of ds and k + r
#     mix_back    dv_c[m] = sum_i p_i[m+i] dout_c[m+i]                     and dk = mix_back of ds and q
#
# Operands are copied to scratch arrays, with MARGIN zeros on both sides and zeros up to a multiple of 4 channels and
# of 8 distances: a group of distances that reaches beyond an utterance's first row finds a probability of zero there.

TILE = 256  # about how many queries have their scores in memory together
MARGIN = 8


@njit(cache=True, error_model="numpy", nogil=True)
def _with_margins(rows, r0, C, first, count):
    """rows[r0 : r0 + C, first : first + count] with zeros around: (C rounded up to 4, MARGIN + count + MARGIN)."""
    out = np.zeros(((C + 3) // 4 * 4, count + 2 * MARGIN), dtype=rows.dtype)
    for c in range(C):
        a, b = out[c, MARGIN:], rows[r0 + c, first:]
        for s in range(count):
            a[s] = b[s]
    return out


@njit(cache=True, error_model="numpy", fastmath=REORDER, nogil=True)
def _scores(q, k, r, past, reach, lo, s):
    """s[i, t] for distances i < reach of queries lo <= t < lo + n; column MARGIN + t - lo of s, which is zero."""
    n_all = s.shape[1] - 2 * MARGIN
    for i in range(0, reach, 4):
        t0 = max(lo, i - past)  # earlier queries have no row at this distance
        n = lo + n_all - t0
        at, at_q, at_k = MARGIN + t0 - lo, MARGIN + t0, MARGIN + past + t0 - i - 3
        s0, s1, s2, s3 = s[i, at:], s[i + 1, at:], s[i + 2, at:], s[i + 3, at:]
        r0, r1, r2, r3 = r[i], r[i + 1], r[i + 2], r[i + 3]
        for c in range(0, q.shape[0], 4):
            qa, qb, qc, qd = q[c, at_q:], q[c + 1, at_q:], q[c + 2, at_q:], q[c + 3, at_q:]
            ka, kb, kc, kd = k[c, at_k:], k[c + 1, at_k:], k[c + 2, at_k:], k[c + 3, at_k:]
            a0, b0, c0, d0 = r0[c], r0[c + 1], r0[c + 2], r0[c + 3]
            a1, b1, c1, d1 = r1[c], r1[c + 1], r1[c + 2], r1[c + 3]
            a2, b2, c2, d2 = r2[c], r2[c + 1], r2[c + 2], r2[c + 3]
            a3, b3, c3, d3 = r3[c], r3[c + 1], r3[c + 2], r3[c + 3]
            for t in range(n):
                s0[t] += qa[t] * (ka[t + 3] + a0) + qb[t] * (kb[t + 3] + b0)
                s0[t] += qc[t] * (kc[t + 3] + c0) + qd[t] * (kd[t + 3] + d0)
                s1[t] += qa[t] * (ka[t + 2] + a1) + qb[t] * (kb[t + 2] + b1)
                s1[t] += qc[t] * (kc[t + 2] + c1) + qd[t] * (kd[t + 2] + d1)
                s2[t] += qa[t] * (ka[t + 1] + a2) + qb[t] * (kb[t + 1] + b2)
                s2[t] += qc[t] * (kc[t + 1] + c2) + qd[t] * (kd[t + 1] + d2)
                s3[t] += qa[t] * (ka[t] + a3) + qb[t] * (kb[t] + b3)
                s3[t] += qc[t] * (kc[t] + c3) + qd[t] * (kd[t] + d3)


@njit(cache=True, error_model="numpy", fastmath=REORDER, nogil=True)
def _mix(p, x, r, C, past, reach, lo, out, first):
    """out[c, first + t] += sum_i p[i, t] (x[c, t - i] + r[i, c]) for the queries of a tile."""
    n_all = p.shape[1] - 2 * MARGIN
    for i in range(0, reach, 8):
        t0 = max(lo, i - past)
        n = lo + n_all - t0
        at, at_x = MARGIN + t0 - lo, MARGIN + past + t0 - i - 7
        p0, p1, p2, p3 = p[i, at:], p[i + 1, at:], p[i + 2, at:], p[i + 3, at:]
        p4, p5, p6, p7 = p[i + 4, at:], p[i + 5, at:], p[i + 6, at:], p[i + 7, at:]
        for c in range(C):
            y, v = out[first[0] + c, first[1] + t0 :], x[c, at_x:]
            r0, r1, r2, r3 = r[i, c], r[i + 1, c], r[i + 2, c], r[i + 3, c]
            r4, r5, r6, r7 = r[i + 4, c], r[i + 5, c], r[i + 6, c], r[i + 7, c]
            for t in range(n):
                near = p0[t] * (v[t + 7] + r0) + p1[t] * (v[t + 6] + r1) + p2[t] * (v[t + 5] + r2)
                near += p3[t] * (v[t + 4] + r3)
                far = p4[t] * (v[t + 3] + r4) + p5[t] * (v[t + 2] + r5) + p6[t] * (v[t + 1] + r6) + p7[t] * (v[t] + r7)
                y[t] += near + far


@njit(cache=True, error_model="numpy", fastmath=REORDER, nogil=True)
def _mix_back(p, x, C, past, reach, lo, out, first):
    """out[c, first + m] += sum_i p[i, m + i] x[c, m + i] for the rows m that the queries of a tile look at."""
    hi = lo + p.shape[1] - 2 * MARGIN
    for i in range(0, reach, 8):
        m0 = max(lo - i - 7, -past)
        n = hi - i - m0
        at, at_x = MARGIN + m0 + i - lo, MARGIN + m0 + i
        p0, p1, p2, p3 = p[i, at:], p[i + 1, at:], p[i + 2, at:], p[i + 3, at:]
        p4, p5, p6, p7 = p[i + 4, at:], p[i + 5, at:], p[i + 6, at:], p[i + 7, at:]
        for c in range(C):
            y, g = out[first[0] + c, first[1] + past + m0 :], x[c, at_x:]
            for t in range(n):
                near = p0[t] * g[t] + p1[t + 1] * g[t + 1] + p2[t + 2] * g[t + 2] + p3[t + 3] * g[t + 3]
                far = p4[t + 4] * g[t + 4] + p5[t + 5] * g[t + 5] + p6[t + 6] * g[t + 6] + p7[t + 7] * g[t + 7]
                y[t] += near + far


@njit(cache=True, error_model="numpy", nogil=True)
def _position_vectors(positions, c0, C):
    """positions[:, c0 : c0 + C], with zeros up to a multiple of 8 distances and 4 channels."""
    W = positions.shape[0]
    out = np.zeros(((W + 7) // 8 * 8, (C + 3) // 4 * 4), dtype=positions.dtype)
    for i in range(W):
        for c in range(C):
            out[i, c] = positions[i, c0 + c]
    return out


@kernel(weight=16, readable="attention.attend_readable")
def attend(qkv, positions, out_starts, first_rows, lengths, context, heads, probabilities, out):
    """Fills out (D, N) and probabilities (H, W, N): [h, i, n] is what output n takes from the row i before it, or 0."""
    W, D = positions.shape
    C = D // heads
    shrink, zero, one = qkv.dtype.type(1.0 / np.sqrt(C)), qkv.dtype.type(0), qkv.dtype.type(1)
    for task in prange(len(lengths) * heads):
        b, h = task // heads, task % heads
        T, past, first, n0, c0 = lengths[b], context[b], first_rows[b], out_starts[b], h * C
        q = _with_margins(qkv, c0, C, first + past, T)
        k, v = _with_margins(qkv, D + c0, C, first, past + T), _with_margins(qkv, 2 * D + c0, C, first, past + T)
        r = _position_vectors(positions, c0, C)
        no_r = np.zeros_like(r)
        for c in range(C):
            out[c0 + c, n0 : n0 + T] = zero
        tiles = (T + TILE - 1) // TILE
        for tile in range(tiles):
            lo, hi = T * tile // tiles, T * (tile + 1) // tiles
            n = hi - lo
            reach = min(W, past + hi)  # distances that some query of this tile can look back
            s = np.zeros((r.shape[0], n + 2 * MARGIN), dtype=qkv.dtype)
            _scores(q, k, r, past, reach, lo, s)
            top, norm = s[0, MARGIN : MARGIN + n].copy(), np.zeros(n, dtype=qkv.dtype)
            for i in range(1, reach):
                t0 = max(0, i - past - lo)
                x = s[i, MARGIN:]
                for t in range(t0, n):
                    top[t] = x[t] if x[t] > top[t] else top[t]
            for i in range(r.shape[0]):
                t0 = min(n, max(0, i - past - lo)) if i < W else n
                x = s[i, MARGIN:]
                for t in range(t0):
                    x[t] = zero
                for t in range(t0, n):
                    e = exp(shrink * (x[t] - top[t]))
                    x[t] = e
                    norm[t] += e
            for t in range(n):
                norm[t] = one / norm[t]
            for i in range(W):
                x, p = s[i, MARGIN:], probabilities[h, i, n0 + lo :]
                for t in range(n):
                    x[t] *= norm[t]
                    p[t] = x[t]
            _mix(s, v, no_r, C, past, reach, lo, out, (c0, n0))


@kernel(weight=16, readable="attention.attend_backward_readable")
def attend_backward(g, qkv, positions, out_starts, first_rows, lengths, context, heads, probabilities, dqkv):
    """Fills dqkv (3D, M) from g (D, N); the gradient of the scores replaces the probabilities."""
    W, D = positions.shape
    C = D // heads
    shrink, zero = qkv.dtype.type(1.0 / np.sqrt(C)), qkv.dtype.type(0)
    for task in prange(len(lengths) * heads):
        b, h = task // heads, task % heads
        T, past, first, n0, c0 = lengths[b], context[b], first_rows[b], out_starts[b], h * C
        q, go = _with_margins(qkv, c0, C, first + past, T), _with_margins(g, c0, C, n0, T)
        k, v = _with_margins(qkv, D + c0, C, first, past + T), _with_margins(qkv, 2 * D + c0, C, first, past + T)
        r = _position_vectors(positions, c0, C)
        no_r = np.zeros_like(r)
        for row in (c0, D + c0, 2 * D + c0):
            for c in range(C):
                dqkv[row + c, first : first + past + T] = zero
        tiles = (T + TILE - 1) // TILE
        for tile in range(tiles):
            lo, hi = T * tile // tiles, T * (tile + 1) // tiles
            n = hi - lo
            reach = min(W, past + hi)
            p = np.zeros((r.shape[0], n + 2 * MARGIN), dtype=qkv.dtype)
            ds, dot = np.zeros_like(p), np.zeros(n, dtype=qkv.dtype)
            _scores(go, v, no_r, past, reach, lo, ds)
            for i in range(reach):
                saved, x, y = probabilities[h, i, n0 + lo :], p[i, MARGIN:], ds[i, MARGIN:]
                for t in range(n):
                    x[t] = saved[t]
                    dot[t] += x[t] * y[t]
            for i in range(reach):
                saved, x, y = probabilities[h, i, n0 + lo :], p[i, MARGIN:], ds[i, MARGIN:]
                for t in range(n):
                    y[t] = x[t] * (y[t] - dot[t]) * shrink
                    saved[t] = y[t]
            ds[reach:] = zero  # the last group of scores went further
            _mix(ds, k, r, C, past, reach, lo, dqkv, (c0, first + past))
            _mix_back(ds, q, C, past, reach, lo, dqkv, (D + c0, first))
            _mix_back(p, go, C, past, reach, lo, dqkv, (2 * D + c0, first))
