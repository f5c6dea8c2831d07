"""Differentiable operations on rows: the value and its gradient side by side, in plain numpy.

Everything here works row by row on N rows of D numbers, `(N, D)`.  (All letters for sizes stand in ragged.py.)
What mixes rows of one utterance lives in files of its own: attention.py, convolution.py, lstm.py.

The first part is small operations: a line for the value, and a line for what the cotangent g of that value contributes
to each input.  The second part composes them, with the operators of tensor.py, into the layers of a conformer;
their gradients come from the tape.  Where a name ends in `_readable`, the model itself runs its namesake in fused.py,
which computes the same in fewer passes over memory.  Tests compare each pair, in value and in every gradient.
"""

import numpy as np

from .simd import random_bits_readable
from .tensor import Tensor, record

# --- small operations -----------------------------------------------------------------------------


def total(x):
    """The sum of all elements, a scalar."""
    return record(x.data.sum(), [x], lambda g: (np.broadcast_to(g, x.shape),))


def transpose(x):
    """x^T: (N, D) -> (D, N)."""
    return record(x.data.T, [x], lambda g: (g.T,))


def tanh(x):
    """tanh(x) elementwise."""
    y = np.tanh(x.data)
    return record(y, [x], lambda g: (g * (1 - y * y),))


def sigmoid(x):
    """1 / (1 + exp(-x)) elementwise, written with tanh because exp(-x) would overflow."""
    s = (1 + np.tanh(x.data / 2)) / 2
    return record(s, [x], lambda g: (g * s * (1 - s),))


def swish(x):
    """x sigmoid(x), elementwise (Ramachandran et al. 2017)."""
    return x * sigmoid(x)


def softmax(x):
    """exp(x) over its sum, row by row.  Adding a constant to a row changes nothing, so its gradient sums to zero."""
    p = np.exp(x.data - x.data.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return record(p, [x], lambda g: (p * (g - (g * p).sum(axis=1, keepdims=True)),))


def glu(x):
    """The gated linear unit of Dauphin et al. 2017: x (N, 2D) = a | b -> a sigmoid(b) (N, D)."""
    a, b = np.split(x.data, 2, axis=1)
    s = sigmoid(Tensor(b)).data
    return record(a * s, [x], lambda g: (np.hstack([g * s, g * a * s * (1 - s)]),))


def embedding(table, ids):
    """Rows `ids (N,)` of `table (V, J)`: (N, J).  A row that was taken twice receives the sum of both gradients."""

    def backward(g):
        gradient = np.zeros_like(table.data)
        np.add.at(gradient, ids, g)
        return (gradient,)

    return record(table.data[ids], [table], backward)


def dropout_readable(x, rate, key):
    """x (N, D) with a fraction `rate` of its elements set to 0 and the others divided by 1 - rate.

    Which ones depends on the 32-bit `key` and the position alone: fused.py draws them again instead of saving them.
    """
    kept = random_bits_readable(key, *x.shape) >= np.uint32(rate * (2**32 - 1))
    return x * (kept / (1 - rate))


def layer_norm_readable(x, gain, bias, swish=False, epsilon=1e-5):
    """gain (x - mean) / sqrt(var + epsilon) + bias over each row (Ba et al. 2016), then swish if asked."""
    centred = x.data - x.data.mean(axis=1, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)  # (N, 1)
    h = centred * r

    def backward(g):  # the norm undoes a shift or stretch of a row, so dx must have no part along 1 or along h
        a = g * gain.data
        dx = r * (a - a.mean(axis=1, keepdims=True) - h * (a * h).mean(axis=1, keepdims=True))
        return dx, (g * h).sum(axis=0), g.sum(axis=0)

    y = record(gain.data * h + bias.data, [x, gain, bias], backward)
    return y * sigmoid(y) if swish else y


# --- the layers, composed of them -----------------------------------------------------------------


def linear_readable(x, weight, bias=None):
    """x W + b: (N, I) x (I, O) -> (N, O)."""
    return x @ weight if bias is None else x @ weight + bias


def linear_columns_readable(x, weight, bias):
    """(x W + b)^T: (N, I) x (I, O) -> (O, N), which attention.py wants."""
    return transpose(linear_readable(x, weight, bias))


def linear_glu_readable(x, weight, bias):
    """glu(x W + b): (N, I) x (I, 2D) -> (N, D)."""
    return glu(linear_readable(x, weight, bias))


def linear_dropout_residual_readable(x, h, weight, bias, factor, rate, key, columns=False):
    """x + factor dropout(h W + b): x (N, D), h (N, I) -> (N, D); with `columns`, h is (I, N).

    With h computed from x this is a residual step: the layer only adds to what x holds already.
    """
    h = transpose(h) if columns else h
    return x + factor * dropout_readable(linear_readable(h, weight, bias), rate, key)


def feed_forward_readable(x, h, wide, wide_bias, narrow, narrow_bias, factor, inner, outer):
    """x + factor dropout(linear(dropout(swish(linear(h))))): x (N, D) and h, its layer norm, -> (N, D).

    `wide` (D, I) and `narrow` (I, D) are the weights; `inner` and `outer` the (rate, key) of the dropouts.
    """
    hidden = dropout_readable(swish(linear_readable(h, wide, wide_bias)), *inner)  # (N, I)
    return linear_dropout_residual_readable(x, hidden, narrow, narrow_bias, factor, *outer)


def demo():
    from .gradcheck import gradcheck

    one, zero = np.ones(3), np.zeros(3)
    x = Tensor(np.array([[1.0, 2.0, 3.0]]))
    print("swish of 1 2 3:      ", np.round(swish(x).data[0], 3), " (1 / (1 + e^-1) = 0.731)")
    print("layer norm of 1 2 3: ", np.round(layer_norm_readable(x, Tensor(one), Tensor(zero)).data[0], 3))
    dropped = dropout_readable(Tensor(np.ones((1, 12))), 0.25, key=1).data[0]
    print("dropout 0.25 of ones:", np.round(dropped, 2), " (survivors are 1 / 0.75)")
    shapes = [(4, 3), (4, 3), (3, 6), (6,), (6, 3), (3,)]
    inputs = [np.random.default_rng(i).normal(size=shape) for i, shape in enumerate(shapes)]
    error = gradcheck(lambda *t: feed_forward_readable(*t, 0.5, (0.1, 1), (0.1, 2)), inputs)
    print(f"feed-forward: the tape's gradient against central differences: {error:.1e}")


if __name__ == "__main__":
    demo()
