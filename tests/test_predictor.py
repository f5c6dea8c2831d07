"""predictor.py: the start symbol, layers of LSTM, one step at a time as in decoding."""

import numpy as np
import pytest

from mini_pkd.layers import NO_DROPOUT
from mini_pkd.lstm import lstm_readable
from mini_pkd.predictor import LSTM, Predictor, with_start

V, J, L = 7, 6, 5


def make(layers, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    predictor = Predictor(V, J, layers, L, rng, dtype)
    for p in predictor.named_parameters().values():
        p.data = (p.data + 0.3 * rng.standard_normal(p.shape)).astype(dtype)
    return predictor


class Fixed:
    """A dropout of always the same key that counts who asks."""

    def __init__(self, rate):
        self.rate, self.asked = rate, 0

    def next(self):
        self.asked += 1
        return self.rate, 11


def test_with_start():
    assert with_start([5, 6, 7], [2, 0, 1]).tolist() == [0, 5, 6, 0, 0, 7]
    assert with_start([], [0, 0]).tolist() == [0, 0] and with_start([], [0]).dtype == np.int64
    assert with_start(np.array([3]), np.array([0, 1, 0])).tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("label_lengths", [[3], [0], [2, 0, 4, 1], [0, 0]])
def test_rows_are_embedding_and_lstms(layers, label_lengths):
    predictor = make(layers)
    labels = np.random.default_rng(1).integers(1, V, sum(label_lengths))
    rows = predictor(labels, label_lengths, NO_DROPOUT).data
    weights = {name: p.data for name, p in predictor.named_parameters().items()}
    lengths = [n + 1 for n in label_lengths]
    expected, u = [], 0
    for n in label_lengths:  # the start symbol is the blank's row of the table
        expected += [weights["embedding.table"][0], *weights["embedding.table"][labels[u : u + n]]]
        u += n
    expected = np.stack(expected)
    for i in range(layers):
        names = [f"layers.{i}.{part}" for part in ("w_input", "w_hidden", "bias")]
        expected = lstm_readable(expected, *(weights[name] for name in names), lengths)
    assert rows.shape == (sum(lengths), L) and np.abs(rows - expected).max() < 1e-13


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_steps_equal_rows(layers, dtype):
    """Decoding feeds one symbol at a time, N hypotheses side by side; training has all labels at once."""
    predictor, N, U = make(layers, dtype=dtype), 3, 6
    labels = np.random.default_rng(2).integers(1, V, (N, U))
    rows = predictor(labels.ravel(), [U] * N, NO_DROPOUT).data.reshape(N, U + 1, L)
    state = predictor.zero_state(N)
    assert len(state) == 2 * layers and all(s.shape == (N, L) and s.dtype == dtype for s in state)
    for u in range(U + 1):
        symbols = labels[:, u - 1] if u else np.zeros(N, np.int64)
        out, state = predictor.step(symbols, state)
        assert out.dtype == dtype
        assert np.abs(out - rows[:, u]).max() < (1e-13 if dtype == np.float64 else 1e-6)


def test_a_row_knows_only_the_labels_before_it():
    predictor = make(2)
    labels = np.array([1, 2, 3, 4, 5, 6, 1])
    before = predictor(labels, [4, 3], NO_DROPOUT).data
    changed = labels.copy()
    changed[2] = 6  # the third label of the first utterance: rows 3 and 4 know it
    rows = np.flatnonzero((predictor(changed, [4, 3], NO_DROPOUT).data != before).any(axis=1))
    assert rows.tolist() == [3, 4]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_dropout_after_every_layer_but_the_first(layers):
    predictor, dropout = make(layers), Fixed(0.5)
    labels = np.arange(1, 6)
    rows = predictor(labels, [5], dropout).data
    assert dropout.asked == layers - 1
    plain = predictor(labels, [5], NO_DROPOUT).data
    if layers == 1:
        np.testing.assert_array_equal(rows, plain)
    else:
        assert (rows == 0).any()
        if layers == 2:
            np.testing.assert_allclose(rows[rows != 0], 2 * plain[rows != 0], rtol=1e-13)


@pytest.mark.parametrize("label_lengths", [[3, 0, 2], [0, 0]])
def test_a_batch_equals_its_utterances_one_by_one(label_lengths):
    predictor, labels = make(2), np.random.default_rng(3).integers(1, V, sum(label_lengths))
    parameters = predictor.named_parameters()

    def run(labels, label_lengths, cotangent):
        for p in parameters.values():
            p.grad = None
        out = predictor(labels, label_lengths, NO_DROPOUT)
        out.backward(cotangent)
        return out.data, {name: p.grad for name, p in parameters.items()}

    cotangent = np.random.default_rng(4).standard_normal((sum(label_lengths) + len(label_lengths), L))
    whole, gradients = run(labels, label_lengths, cotangent)
    sums, label, row = {name: 0 for name in gradients}, 0, 0
    for n in label_lengths:
        rows, own = run(labels[label : label + n], [n], cotangent[row : row + n + 1])
        assert np.abs(rows - whole[row : row + n + 1]).max() < 1e-13
        label, row = label + n, row + n + 1
        sums = {name: sums[name] + own[name] for name in sums}
    for name, g in gradients.items():
        assert np.abs(g - sums[name]).max() < 1e-12, name


def test_the_forget_gate_starts_open_and_the_others_neutral():
    layer = LSTM(J, L, np.random.default_rng(0))
    np.testing.assert_array_equal(layer.bias.data, [0] * L + [1] * L + [0] * 2 * L)
    assert layer.w_input.shape == (J, 4 * L) and layer.w_hidden.shape == (L, 4 * L)
    assert np.abs(layer.w_input.data).max() <= 1 / np.sqrt(L) and layer.w_input.data.dtype == np.float32
