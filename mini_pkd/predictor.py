"""The prediction network: what the transducer knows of the labels so far.

    symbols -> embedding -> LSTM layers -> rows of the joint's width

Its input at position u is label u-1; at position 0 it is symbol 0, the blank, which never occurs as an input
otherwise and so serves as the start symbol, in training and in decoding alike.  The embedding table is also
the joint's output matrix (transducer.py): one tensor with two uses.
"""

import numpy as np

from . import fused
from .layers import NO_DROPOUT, Embedding, Module, parameter
from .lstm import lstm, lstm_step
from .ragged import row_starts


class LSTM(Module):
    """One layer: inputs -> width.  The forget gate starts open (bias 1, Jozefowicz et al. 2015)."""

    def __init__(self, inputs, width, rng, dtype=np.float32):
        bound = 1 / np.sqrt(width)
        self.w_input = parameter(rng.uniform(-bound, bound, (inputs, 4 * width)).astype(dtype))
        self.w_hidden = parameter(rng.uniform(-bound, bound, (width, 4 * width)).astype(dtype))
        bias = np.zeros(4 * width, dtype)
        bias[width : 2 * width] = 1
        self.bias = parameter(bias)

    def __call__(self, x, lengths):
        return lstm(x, self.w_input, self.w_hidden, self.bias, lengths)

    def step(self, x, h, c):
        """One step of K sequences, plain arrays."""
        return lstm_step(x, h, c, self.w_input.data, self.w_hidden.data, self.bias.data)


class Predictor(Module):
    """labels (sum U,), label_lengths (B,) -> rows (sum (U+1), width)."""

    def __init__(self, symbols, joint_width, layers, width, rng, dtype=np.float32):
        self.embedding = Embedding(symbols, joint_width, rng, dtype)
        self.width = width
        self.layers = [LSTM(joint_width if i == 0 else width, width, rng, dtype) for i in range(layers)]

    def __call__(self, labels, label_lengths, dropout=NO_DROPOUT):
        x = self.embedding(with_start(labels, label_lengths))
        for i, layer in enumerate(self.layers):
            x = layer(x, np.asarray(label_lengths) + 1)
            if i > 0:  # "after every layer but the first"
                x = fused.dropout(x, *dropout.next())
        return x

    def step(self, symbols, state):
        """Feed one symbol to each of K hypotheses: (K,), state -> rows (K, width), state.

        `state` is a tuple h_0, c_0, h_1, c_1, ... of arrays (K, width).
        """
        x, new = self.embedding.table.data[symbols], []
        for i, layer in enumerate(self.layers):
            h, c = layer.step(x, state[2 * i], state[2 * i + 1])
            new += [h, c]
            x = h
        return x, tuple(new)

    def zero_state(self, K):
        """The state before the start symbol."""
        dtype = self.embedding.table.data.dtype
        return tuple(np.zeros((K, self.width), dtype) for _ in range(2 * len(self.layers)))


def with_start(labels, label_lengths):
    """Put symbol 0 in front of each utterance's labels: (sum U,) -> (sum (U+1),).

    >>> with_start(np.array([5, 6, 7]), [2, 0, 1]).tolist()
    [0, 5, 6, 0, 0, 7]
    """
    return np.insert(np.asarray(labels, dtype=np.int64), row_starts(label_lengths), 0)


if __name__ == "__main__":
    network = Predictor(5, 4, 1, 3, np.random.default_rng(0))
    rows = network(np.array([3, 1, 2]), [2, 0, 1], NO_DROPOUT).data
    print("labels 3 1 | - | 2 become inputs", with_start([3, 1, 2], [2, 0, 1]), "(0 starts each utterance)")
    print("and rows of shape", rows.shape, "- the three that have seen only the start are equal:")
    print(np.round(rows[[0, 3, 4]], 3))
