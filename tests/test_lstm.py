"""lstm.py: the packed kernels against one step at a time, ragged batches, gradients, causality."""

import numpy as np
import pytest

from mini_pkd.gradcheck import gradcheck
from mini_pkd.lstm import lstm, lstm_readable, lstm_step, lstm_step_backward_readable
from mini_pkd.ragged import row_starts
from mini_pkd.tensor import Tensor


def random_inputs(seed, rows, inputs, L, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = ((rows, inputs), (inputs, 4 * L), (L, 4 * L), (4 * L,))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def value(arrays, lengths):
    return lstm(*[Tensor(a) for a in arrays], lengths).data


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_two_steps_by_hand():
    """One unit, one input; the gates written out, so that their order i, f, u, o is pinned down."""
    w_input, w_hidden = np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([[0.5, -0.6, 0.7, -0.8]])
    bias, x = np.array([0.01, 0.02, 0.03, 0.04]), np.array([[1.0], [-2.0]])
    c1 = sigmoid(0.11) * np.tanh(0.33)
    h1 = sigmoid(0.44) * np.tanh(c1)
    c2 = sigmoid(-0.38 - 0.6 * h1) * c1 + sigmoid(-0.19 + 0.5 * h1) * np.tanh(-0.57 + 0.7 * h1)
    h2 = sigmoid(-0.76 - 0.8 * h1) * np.tanh(c2)
    np.testing.assert_allclose(value([x, w_input, w_hidden, bias], [2]), [[h1], [h2]], rtol=1e-14)


@pytest.mark.parametrize("seed", range(30))
def test_kernel_equals_the_definition(seed):
    """Lengths in any order, equal ones, ones, zeros."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 8, rng.integers(1, 7))
    I, L = int(rng.integers(1, 7)), int(rng.integers(1, 9))
    inputs = random_inputs(seed, int(lengths.sum()), I, L)
    expected = lstm_readable(*inputs, lengths)
    got = value(inputs, lengths)
    assert got.shape == expected.shape == (lengths.sum(), L)
    assert np.abs(got - expected).max(initial=0) < 1e-13
    single = value([a.astype(np.float32) for a in inputs], lengths)
    assert single.dtype == np.float32 and np.abs(single - expected).max(initial=0) < 1e-5


def backward_readable(g, x, w_input, w_hidden, bias):
    """Backpropagation through the steps of one utterance: gradients of x and the weights."""
    T, L = g.shape
    h, c, gates = np.zeros((T + 1, L)), np.zeros((T + 1, L)), np.zeros((T, 4 * L))  # row 0: before the first step
    for t in range(T):
        i, f, u, o = np.split(x[t] @ w_input + h[t] @ w_hidden + bias, 4)
        gates[t] = np.concatenate([sigmoid(i), sigmoid(f), np.tanh(u), sigmoid(o)])
        h[t + 1], c[t + 1] = (
            a[0] for a in lstm_step(x[t : t + 1], h[t : t + 1], c[t : t + 1], w_input, w_hidden, bias)
        )
    dz, dh, dc = np.zeros((T, 4 * L)), np.zeros((1, L)), np.zeros((1, L))
    for t in reversed(range(T)):
        step, dc = lstm_step_backward_readable(g[t] + dh, dc, gates[t : t + 1], c[t + 1], c[t])
        dz[t], dh = step[0], step @ w_hidden.T
    return dz @ w_input.T, x.T @ dz, h[:-1].T @ dz, dz.sum(axis=0)


@pytest.mark.parametrize("seed", range(10))
def test_gradient_kernel_equals_the_readable_step(seed):
    """Utterance by utterance: lengths in any order, ones, zeros."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 8, 5)
    lengths[seed % 5] = 1
    arrays = random_inputs(seed, int(lengths.sum()), 3, 1 + seed)
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    out = lstm(*tensors, lengths)
    g = rng.standard_normal(out.shape)
    out.backward(g)
    parts = [slice(start, start + T) for start, T in zip(row_starts(lengths), lengths, strict=True)]
    own = [backward_readable(g[rows], arrays[0][rows], *arrays[1:]) for rows in parts]
    expected = [np.concatenate([o[0] for o in own]), *(sum(o[i] for o in own) for i in (1, 2, 3))]
    for tensor, e in zip(tensors, expected, strict=True):
        assert np.abs(tensor.grad - e).max() < 1e-12  # sums of some hundred numbers of size 10 in float64


@pytest.mark.parametrize("seed", range(8))
def test_gradient(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 7, 4)
    lengths[seed % 4] = 1 + seed
    inputs = random_inputs(seed, int(lengths.sum()), 3, 5)
    assert gradcheck(lambda *a: lstm(*a, lengths), inputs, seed=seed) < 1e-7


def test_gradient_of_two_layers():
    lengths = [4, 1, 0, 6]
    first, second = random_inputs(0, 11, 3, 5), random_inputs(1, 11, 5, 4)

    def two_layers(*a):
        return lstm(lstm(*a[:4], lengths), *a[4:], lengths)

    assert gradcheck(two_layers, [*first, *second[1:]]) < 1e-7


def test_float32_gradients_are_those_of_float64():
    lengths, gradients = [20, 1, 13], []
    cotangent = np.random.default_rng(1).standard_normal((34, 5))
    for dtype in (np.float32, np.float64):
        tensors = [Tensor(0.5 * a, requires_grad=True) for a in random_inputs(0, 34, 3, 5, dtype)]
        lstm(*tensors, lengths).backward(cotangent)
        gradients += [[t.grad for t in tensors]]
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == np.float32 and np.abs(a - b).max() < 2e-5 * np.abs(b).max()


@pytest.mark.parametrize("lengths", [[3, 7, 1, 7], [1, 1, 1], [5], [0, 4, 0, 2]])
def test_a_batch_equals_its_utterances_one_by_one(lengths):
    """Up to the rounding of a matrix product with another number of rows."""
    arrays = random_inputs(2, sum(lengths), 3, 6)
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    out = lstm(*tensors, lengths)
    cotangent = np.random.default_rng(0).standard_normal(out.shape)
    out.backward(cotangent)
    sums = [np.zeros_like(a) for a in arrays[1:]]
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        rows = slice(start, start + T)
        own = [Tensor(a, requires_grad=True) for a in (arrays[0][rows], *arrays[1:])]
        out1 = lstm(*own, [T])
        out1.backward(cotangent[rows])
        np.testing.assert_allclose(out1.data, out.data[rows], atol=1e-14)
        np.testing.assert_allclose(own[0].grad, tensors[0].grad[rows], atol=1e-13)
        sums = [s + t.grad for s, t in zip(sums, own[1:], strict=True)]
    for total, tensor in zip(sums, tensors[1:], strict=True):
        np.testing.assert_allclose(tensor.grad, total, atol=1e-12)


def test_changing_a_row_changes_no_row_before_it_and_no_other_utterance():
    lengths = [4, 9, 2]
    arrays = random_inputs(3, 15, 3, 4)
    before = value(arrays, lengths)
    for n in range(15):
        changed = arrays[0].copy()
        changed[n] += 1
        rows = np.flatnonzero((value([changed, *arrays[1:]], lengths) != before).any(axis=1))
        end = next(e for e in np.cumsum(lengths) if n < e)
        assert rows.tolist() == list(range(n, end))  # and all later ones of its own do change


def test_no_gradient_from_one_utterance_into_another():
    arrays = random_inputs(4, 15, 3, 4)
    x = Tensor(arrays[0], requires_grad=True)
    cotangent = np.zeros((15, 4))
    cotangent[9] = 1  # the sixth row of the second utterance
    lstm(x, *[Tensor(a) for a in arrays[1:]], [4, 9, 2]).backward(cotangent)
    assert np.flatnonzero(x.grad.any(axis=1)).tolist() == [4, 5, 6, 7, 8, 9]


def test_nothing_but_empty_utterances():
    arrays = random_inputs(0, 0, 3, 4)
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    out = lstm(*tensors, [0, 0])
    assert out.shape == (0, 4)
    out.backward(np.zeros((0, 4)))
    assert tensors[0].grad.shape == (0, 3) and all(not t.grad.any() for t in tensors[1:])


def test_steps_of_many_hypotheses_equal_steps_of_one():
    _, w_input, w_hidden, bias = random_inputs(0, 1, 3, 4)
    rng = np.random.default_rng(0)
    x, h, c = rng.standard_normal((5, 3)), rng.standard_normal((5, 4)), rng.standard_normal((5, 4))
    h5, c5 = lstm_step(x, h, c, w_input, w_hidden, bias)
    for k in range(5):
        h1, c1 = lstm_step(x[k : k + 1], h[k : k + 1], c[k : k + 1], w_input, w_hidden, bias)
        np.testing.assert_allclose(h1[0], h5[k], atol=1e-14)
        np.testing.assert_allclose(c1[0], c5[k], atol=1e-14)


def test_saturated_gates_stay_finite():
    for dtype in (np.float32, np.float64):
        arrays = random_inputs(0, 20, 3, 4, dtype)
        tensors = [Tensor(a * factor, requires_grad=True) for a, factor in zip(arrays, (500, 1, 1, 1), strict=True)]
        with np.errstate(over="ignore"):
            out = lstm(*tensors, [20])
            out.backward(np.ones((20, 4)))
        assert np.isfinite(out.data).all() and all(np.isfinite(t.grad).all() for t in tensors)
        assert np.abs(out.data - lstm_readable(*[t.data.astype(np.float64) for t in tensors], [20])).max() < 1e-3
