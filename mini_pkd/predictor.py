"""The prediction network: what the transducer knows of the labels so far.

    symbols -> embedding -> LSTM layers -> rows of width L

Row u depends on the first u labels, so an utterance of U labels has U + 1 rows.  Row 0 has seen no label; its input
is BLANK, which has a row in the embedding table too and is never a label.  As an input it can therefore only mean "a
sentence begins".  The embedding table is also the joint's output matrix (transducer.py): one tensor with two uses.
"""

import numpy as np

from . import fused
from .layers import NO_DROPOUT, Embedding, Module, parameter
from .lstm import lstm, lstm_step
from .ragged import BLANK, row_starts


class LSTM(Module):
    """One layer: rows (N, I) -> (N, L).  The forget gate starts open (bias 1, Jozefowicz et al. 2015)."""

    def __init__(self, I, L, rng, dtype=np.float32):
        bound = 1 / np.sqrt(L)
        self.w_input = parameter(rng.uniform(-bound, bound, (I, 4 * L)).astype(dtype))
        self.w_hidden = parameter(rng.uniform(-bound, bound, (L, 4 * L)).astype(dtype))
        bias = np.zeros(4 * L, dtype)
        bias[L : 2 * L] = 1  # the gates stand in the order i, f, u, o
        self.bias = parameter(bias)

    def __call__(self, x, lengths):
        return lstm(x, self.w_input, self.w_hidden, self.bias, lengths)

    def step(self, x, h, c):
        """One step of N sequences, plain arrays: x (N, I), h and c (N, L) -> new (h, c)."""
        return lstm_step(x, h, c, self.w_input.data, self.w_hidden.data, self.bias.data)


class Predictor(Module):
    """labels (sum U,), label_lengths (B,) -> rows (sum (U+1), L)."""

    def __init__(self, V, J, layers, L, rng, dtype=np.float32):
        self.embedding = Embedding(V, J, rng, dtype)
        self.width = L
        self.layers = [LSTM(J if i == 0 else L, L, rng, dtype) for i in range(layers)]

    def __call__(self, labels, label_lengths, dropout=NO_DROPOUT):
        x = self.embedding(with_start(labels, label_lengths))
        for i, layer in enumerate(self.layers):
            x = layer(x, np.asarray(label_lengths) + 1)
            if i > 0:  # the paper: "after every layer but the first"
                x = fused.dropout(x, *dropout.next())
        return x

    def step(self, symbols, state):
        """Feed one symbol to each of N hypotheses: (N,), state -> rows (N, L), state.

        `state` is a tuple of arrays (N, L): h and c of the first layer, h and c of the second, ...
        """
        x, new = self.embedding.table.data[symbols], ()
        for i, layer in enumerate(self.layers):
            x, c = layer.step(x, state[2 * i], state[2 * i + 1])  # x = h
            new += (x, c)
        return x, new

    def zero_state(self, N):
        """The state before the start symbol."""
        dtype = self.embedding.table.data.dtype
        return tuple(np.zeros((N, self.width), dtype) for _ in range(2 * len(self.layers)))


def with_start(labels, label_lengths):
    """Put the start symbol in front of each utterance's labels: (sum U,) -> (sum (U+1),).

    >>> with_start(np.array([5, 6, 7]), [2, 0, 1]).tolist()
    [0, 5, 6, 0, 0, 7]
    """
    return np.insert(np.asarray(labels, dtype=np.int64), row_starts(label_lengths), BLANK)


def demo():
    network = Predictor(5, 4, 1, 3, np.random.default_rng(0))
    rows = network(np.array([3, 1, 2]), [2, 0, 1]).data
    print("labels 3 1 | - | 2 become inputs", with_start([3, 1, 2], [2, 0, 1]), "(0 starts each utterance)")
    print("and rows of shape", rows.shape, "- the three that have seen no label are equal:")
    print(np.round(rows[[0, 3, 4]], 3))


if __name__ == "__main__":
    demo()
