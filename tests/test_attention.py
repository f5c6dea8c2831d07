"""attention.py: the banded kernel against its definition, gradients, causality, ragged batches, context."""

import numpy as np
import pytest

from mini_pkd import attention
from mini_pkd.attention import (
    attend_backward_readable,
    attend_readable,
    attention_weights,
    causal_attention_readable,
    pairs_at,
)
from mini_pkd.attention_kernel import TILE, attend, attend_backward
from mini_pkd.gradcheck import gradcheck
from mini_pkd.ragged import row_starts
from mini_pkd.tensor import Tensor, record


def random_inputs(seed, rows, heads, head_width, window, dtype=np.float64):
    rng = np.random.default_rng(seed)
    D = heads * head_width
    return rng.standard_normal((rows, 3 * D)).astype(dtype), rng.standard_normal((window, D)).astype(dtype)


def transpose(x):
    return record(np.ascontiguousarray(x.data.T), [x], lambda g: (g.T,))


def causal_attention(qkv, positions, lengths, heads, context=None):
    """The kernel wants the batch's rows along the last axis; here they come first, as the definition has them."""
    return transpose(attention.causal_attention(transpose(qkv), positions, lengths, heads, context))


def value(qkv, positions, lengths, heads, context=None):
    return causal_attention(Tensor(qkv), Tensor(positions), lengths, heads, context).data


def test_by_hand():
    """Width 1, one head, window 2: row 1 attends to row 0 with score 2 (3 + 0.5) and to itself with 2 (1 - 1)."""
    #               q    k    v
    qkv = np.array([[1.0, 3.0, 10.0], [2.0, 1.0, 20.0]])
    positions = np.array([[-1.0], [0.5]])  # distance 0, distance 1
    p = np.exp(7.0) / (np.exp(7.0) + np.exp(0.0))
    np.testing.assert_allclose(value(qkv, positions, [2], 1), [[10.0], [p * 10 + (1 - p) * 20]], rtol=1e-14)


@pytest.mark.parametrize("seed", range(30))
def test_kernel_equals_the_definition(seed):
    """Random ragged shapes: head widths that are no multiples of 4, windows shorter and longer than utterances."""
    rng = np.random.default_rng(seed)
    heads, head_width, window = int(rng.integers(1, 4)), int(rng.integers(1, 10)), int(rng.integers(1, 20))
    lengths = rng.integers(1, 25, rng.integers(1, 5))
    qkv, positions = random_inputs(seed, int(lengths.sum()), heads, head_width, window)
    expected = causal_attention_readable(qkv, positions, lengths, heads)
    assert np.abs(value(qkv, positions, lengths, heads) - expected).max() < 1e-13
    single = value(qkv.astype(np.float32), positions.astype(np.float32), lengths, heads)
    assert single.dtype == np.float32 and np.abs(single - expected).max() < 1e-5  # scores of size 10, rounded


def layouts(seed):
    """Random sizes, and who of the batch lies where: utterances of no rows, of one, contexts longer than the window."""
    rng = np.random.default_rng(seed)
    heads, C, W = int(rng.integers(1, 4)), int(rng.integers(1, 10)), int(rng.integers(1, 20))
    lengths, context = rng.integers(0, 25, 4), rng.integers(0, 25, 4) * (seed % 2)
    lengths[seed % 4] = seed % 3
    layout = (row_starts(lengths), row_starts(lengths + context), lengths, context, heads)
    qkv, positions = random_inputs(seed, int((lengths + context).sum()), heads, C, W)
    return np.ascontiguousarray(qkv.T), positions, layout, int(lengths.sum())


def one_by_one(qkv, positions, out_starts, first_rows, lengths, context, heads):
    """(own columns of the results, own columns of qkv, own channels, (q, k, v, r)) of each utterance and head."""
    D = positions.shape[1]
    for b, h in np.ndindex(len(lengths), heads):
        rows = slice(first_rows[b], first_rows[b] + context[b] + lengths[b])
        c = slice(h * D // heads, (h + 1) * D // heads)
        q, k, v = qkv[:D][c, rows][:, context[b] :], qkv[D : 2 * D][c, rows], qkv[2 * D :][c, rows]
        yield h, slice(out_starts[b], out_starts[b] + lengths[b]), rows, c, (q, k, v, positions[:, c])


@pytest.mark.parametrize("seed", range(20))
def test_kernels_equal_the_loops_over_distances(seed):
    """Forward and backward, every number that they write."""
    qkv, positions, layout, N = layouts(seed)
    (W, D), heads = positions.shape, layout[-1]
    g = np.random.default_rng(seed).standard_normal((D, N))
    # NaN first, because all of it must be written.
    p, out, dqkv = (np.full(shape, np.nan) for shape in ((heads, W, N), (D, N), qkv.shape))
    attend(qkv, positions, *layout, p, out)
    ds = p.copy()
    attend_backward(g, qkv, positions, *layout, ds, dqkv)
    worst = 0.0
    for h, mine, rows, c, inputs in one_by_one(qkv, positions, *layout):
        own_p, own_out = attend_readable(*inputs)
        dq, dk, dv, own_ds = attend_backward_readable(g[c, mine], *inputs, own_p)
        past = np.zeros((len(dq), dk.shape[1] - dq.shape[1]))  # context has no query
        pairs = [(p[h, :, mine], own_p), (out[c, mine], own_out), (ds[h, :, mine], own_ds)]
        pairs += zip(
            (dqkv[i * D : (i + 1) * D][c, rows] for i in range(3)), (np.hstack([past, dq]), dk, dv), strict=True
        )
        worst = max(worst, *(np.abs(fast - readable).max(initial=0) for fast, readable in pairs))
    assert worst < 1e-12  # gradients of size 100 in float64
    assert np.isfinite(dqkv).all() and np.isfinite(out).all()


@pytest.mark.parametrize("seed", range(10))
def test_loops_over_distances_equal_the_definition(seed):
    qkv, positions, layout, N = layouts(2 * seed)  # without context, of which the definition knows nothing
    out = np.full((positions.shape[1], N), np.nan)
    for _, mine, _, c, inputs in one_by_one(qkv, positions, *layout):
        p, out[c, mine] = attend_readable(*inputs)
        assert np.abs(p.sum(axis=0) - 1).max(initial=0) < 1e-14
    expected = causal_attention_readable(qkv.T, positions, layout[2], layout[-1])
    assert np.abs(out.T - expected).max(initial=0) < 1e-13


def test_pairs_at_a_distance():
    for i, past, T in [(0, 0, 3), (2, 0, 3), (5, 0, 3), (5, 1, 3), (3, 4, 0), (9, 7, 4)]:
        queries, rows = pairs_at(i, past, T)
        expected = [(t, past + t - i) for t in range(T) if past + t - i >= 0]
        assert list(zip(range(T)[queries], range(past + T)[rows], strict=True)) == expected


@pytest.mark.parametrize("T, window", [(7, 3), (3, 7), (1, 1)])
def test_weights_for_a_picture(T, window):
    """Lower triangular, as wide as the window, rows that sum to one, and they make the output out of the values."""
    qkv, positions = random_inputs(0, T, 2, 3, window)
    weights = attention_weights(np.ascontiguousarray(qkv.T), positions, 2)
    n, m = np.indices((T, T))
    seen = (m <= n) & (n - m < window)
    assert weights.shape == (2, T, T) and ((weights > 0) == seen).all()
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-14)
    out = np.hstack([w @ v for w, v in zip(weights, np.split(qkv[:, 12:], 2, axis=1), strict=True)])
    np.testing.assert_allclose(out, value(qkv, positions, [T], 2), atol=1e-13)


# TILE queries are taken at a time by the kernel: its edges must not show.
@pytest.mark.parametrize("window", [1, 2, 31, TILE, TILE + 1, 2 * TILE + 50])
@pytest.mark.parametrize("T", [TILE - 1, TILE, TILE + 1, 2 * TILE + 44])
def test_utterances_longer_than_a_tile(window, T):
    qkv, positions = random_inputs(window, T + 3, 2, 5, window)
    lengths = [3, T]
    expected = causal_attention_readable(qkv, positions, lengths, 2)
    assert np.abs(value(qkv, positions, lengths, 2) - expected).max() < 1e-13
    if window in (31, TILE + 1):
        assert gradcheck(lambda x, r: causal_attention(x, r, lengths, 2), [qkv, positions], trials=1) < 1e-6


@pytest.mark.parametrize("seed", range(8))
def test_gradient(seed):
    rng = np.random.default_rng(seed)
    heads, head_width, window = int(rng.integers(1, 4)), int(rng.integers(1, 8)), int(rng.integers(1, 9))
    lengths = rng.integers(1, 12, 3)
    inputs = random_inputs(seed, int(lengths.sum()), heads, head_width, window)
    assert gradcheck(lambda x, r: causal_attention(x, r, lengths, heads), inputs, seed=seed) < 1e-7


def test_gradient_with_context():
    lengths, context = np.array([4, 1, 6]), np.array([3, 0, 5])
    inputs = random_inputs(0, int((lengths + context).sum()), 2, 3, 5)
    assert gradcheck(lambda x, r: causal_attention(x, r, lengths, 2, context), inputs) < 1e-7


def test_float32_gradients_are_those_of_float64():
    lengths = [40, 1, 17]
    inputs = random_inputs(0, 58, 2, 6, 9)
    cotangent = np.random.default_rng(1).standard_normal((58, 12))
    gradients = []
    for dtype in (np.float32, np.float64):
        tensors = [Tensor(x.astype(dtype), requires_grad=True) for x in inputs]
        causal_attention(*tensors, lengths, 2).backward(cotangent)
        gradients += [[t.grad for t in tensors]]
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == np.float32 and np.abs(a - b).max() < 2e-5 * np.abs(b).max()


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_equals_its_utterances_one_by_one(seed):
    """In value and gradient.  (Vector code may round a row differently where it is not at the same place.)"""
    rng = np.random.default_rng(seed)
    lengths = np.array([*rng.integers(1, 20, 3), 1, 150])
    qkv, positions = random_inputs(seed, int(lengths.sum()), 2, 4, 7)
    x, r = Tensor(qkv, requires_grad=True), Tensor(positions, requires_grad=True)
    out = causal_attention(x, r, lengths, 2)
    cotangent = rng.standard_normal(out.shape)
    out.backward(cotangent)
    r_gradient = np.zeros_like(positions)
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        rows = slice(start, start + T)
        x1, r1 = Tensor(qkv[rows], requires_grad=True), Tensor(positions, requires_grad=True)
        out1 = causal_attention(x1, r1, [T], 2)
        out1.backward(cotangent[rows])
        np.testing.assert_allclose(out1.data, out.data[rows], atol=1e-13)
        np.testing.assert_allclose(x1.grad, x.grad[rows], atol=1e-12)
        r_gradient += r1.grad
    np.testing.assert_allclose(r.grad, r_gradient, atol=1e-12)


def test_changing_a_row_changes_only_the_window_after_it():
    lengths, window = [12, 30, 5], 6
    qkv, positions = random_inputs(3, 47, 2, 4, window)
    before = value(qkv, positions, lengths, 2)
    for n in (0, 11, 12, 20, 41, 42, 46):
        changed = qkv.copy()
        changed[n] += 1
        rows = np.flatnonzero((value(changed, positions, lengths, 2) != before).any(axis=1))
        end = min(n + window, next(e for e in np.cumsum(lengths) if n < e))
        assert rows.tolist() == list(range(n, end))


def test_gradients_reach_back_one_window_and_no_further():
    qkv, positions = random_inputs(4, 40, 2, 4, 6)
    x = Tensor(qkv, requires_grad=True)
    cotangent = np.zeros((40, 8))
    cotangent[25] = 1 + np.arange(8)
    causal_attention(x, Tensor(positions), [10, 30], 2).backward(cotangent)
    assert np.flatnonzero(x.grad.any(axis=1)).tolist() == [20, 21, 22, 23, 24, 25]
    assert not x.grad[20:25, :8].any()  # keys and values of the past, but not their queries


@pytest.mark.parametrize("seed", range(10))
def test_streaming_with_context_equals_the_whole(seed):
    """Pieces of any size, each behind the window - 1 rows before it; heads and rows as in the whole."""
    rng = np.random.default_rng(seed)
    T, window, heads = int(rng.integers(1, 300)), int(rng.integers(1, 12)), 2
    qkv, positions = random_inputs(seed, T, heads, 5, window)
    whole = value(qkv, positions, [T], heads)
    edges = np.unique([0, T, *rng.integers(0, T + 1, rng.integers(0, 8))])
    pieces = []
    for a, b in zip(edges, edges[1:], strict=False):
        context = min(a, window - 1)
        pieces.append(value(qkv[a - context : b], positions, [b - a], heads, [context]))
    assert np.abs(np.concatenate(pieces) - whole).max() < 1e-13


def test_context_of_several_utterances_and_more_than_a_window_of_it():
    lengths, context = np.array([5, 2]), np.array([9, 1])  # window 4: of the 9 rows only 3 matter
    qkv, positions = random_inputs(0, 17, 2, 4, 4)
    whole = causal_attention_readable(qkv, positions, [14, 3], 2)
    got = value(qkv, positions, lengths, 2, context)
    assert np.abs(got - whole[[9, 10, 11, 12, 13, 15, 16]]).max() < 1e-13


def test_a_window_of_one_row_returns_the_values():
    qkv, positions = random_inputs(0, 9, 2, 3, 1)
    np.testing.assert_array_equal(value(qkv, positions, [4, 5], 2), qkv[:, 12:])


def test_scores_of_a_thousand_do_not_overflow():
    for dtype in (np.float32, np.float64):
        qkv, positions = random_inputs(0, 30, 2, 4, 8, dtype)
        qkv[:, :16] *= 40
        out = value(qkv, positions, [30], 2)
        expected = causal_attention_readable(qkv.astype(np.float64), positions.astype(np.float64), [30], 2)
        assert np.abs(out - expected).max() < (1e-2 if dtype == np.float32 else 1e-11)
        x = Tensor(qkv, requires_grad=True)
        causal_attention(x, Tensor(positions), [30], 2).backward(np.ones_like(out))
        assert np.isfinite(x.grad).all()


def test_weights_sum_to_one():
    """Equal values come out as they went in, whatever the scores."""
    qkv, positions = random_inputs(0, 200, 2, 4, 40)
    qkv[:, 16:] = np.arange(8)
    np.testing.assert_allclose(value(qkv, positions, [150, 50], 2), np.tile(np.arange(8.0), (200, 1)), atol=1e-13)


def test_utterances_without_rows():
    qkv, positions = random_inputs(0, 5, 2, 3, 4)
    np.testing.assert_array_equal(value(qkv, positions, [0, 5, 0], 2), value(qkv, positions, [5], 2))
    assert value(qkv[:0], positions, [0], 2).shape == (0, 6)


def test_starts():
    assert row_starts([3, 0, 2]).tolist() == [0, 3, 3] and row_starts([]).tolist() == []
