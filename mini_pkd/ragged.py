"""The ragged batch: utterances of different lengths laid end to end, and nothing padded.

A batch of two utterances, of three rows and of two, is one array of five rows and the lengths (3, 2):

        row 0   a a a a        \\
        row 1   a a a a         utterance 0: rows 0 to 2, starts[0] = 0, lengths[0] = 3
        row 2   a a a a        /
        row 3   b b b b        \\
        row 4   b b b b        /  utterance 1: rows 3 and 4, starts[1] = 3, lengths[1] = 2

Frameworks pad the shorter utterance with rows of zeros and then carry a mask through every layer so that the zeros
do no harm.  Here there are none: matrix products, norms and activations work row by row and never ask which utterance
a row belongs to.  Only what mixes rows looks at `lengths`: attention, convolution, pooling, the LSTM, the loss.
So a batch computes exactly what its utterances would compute one by one, and no arithmetic is spent on padding.

The loss will need a second layout.  The encoder turns the frames of an utterance into T rows, its text is U labels, and
its *lattice* is the grid of T x (U + 1) nodes (t, u): "at row t, u labels have been said" (rnnt_loss.py).

The letters that all files use for sizes:

    B   utterances in a batch          b   one of them
    T   frames, or encoder rows, of an utterance (T' after pooling where both occur)       t   one of them
    U   labels of an utterance                                 u   how many are said: 0 to U, a column of the lattice
    V   symbols: the units of the vocabulary (bpe.py), and blank, which is symbol 0        k   a symbol
    N   rows of a ragged batch, or nodes of a ragged lattice                               n   one of them
    F   features of a frame            D   width of the model        I, O   inputs and outputs of a linear map
    H   heads                          C   width of a head           W      window: distances that attention sees
    K   taps of the convolution        L   width of the LSTM         J      width of the joint network

In formulas T stands for the teacher and S for the student: P_T, P_S.
"""

from dataclasses import dataclass

import numpy as np

BLANK = 0  # the symbol that says nothing and moves on to the next row; as the predictor's first input it means "start"


def row_starts(lengths):
    """First row of each utterance: lengths (B,) -> (B,) int64.

    >>> row_starts([3, 2]).tolist()
    [0, 3]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    return np.cumsum(lengths) - lengths


def lattice_offsets(lengths, label_lengths):
    """Where each utterance starts, and at the end the total, (B+1,) each: encoder rows, predictor rows, nodes, labels.

    Node (t, u) of utterance b is nodes[b] + t * (U_b + 1) + u.  int64, because nodes times symbols may pass 2^31.

    >>> [start.tolist() for start in lattice_offsets([2, 3], [2, 0])]
    [[0, 2, 5], [0, 3, 4], [0, 6, 9], [0, 2, 2]]
    """
    T = np.asarray(lengths, dtype=np.int64)
    U = np.asarray(label_lengths, dtype=np.int64)
    return tuple(np.concatenate([[0], np.cumsum(count)]) for count in (T, U + 1, T * (U + 1), U))


@dataclass
class Batch:
    """B utterances laid end to end, as training and decoding get them."""

    ids: list
    features: np.ndarray  # (sum T, F) float32
    lengths: np.ndarray  # (B,) int64
    labels: np.ndarray  # (sum U,) int64
    label_lengths: np.ndarray  # (B,) int64


def demo():
    lengths = np.array([3, 2])
    rows = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]])
    starts = row_starts(lengths)
    print(f"rows {rows.ravel()} with lengths {lengths}: utterances start at rows {starts}")
    print("row by row, lengths do not matter:  2 x =", (2 * rows).ravel())
    means = np.add.reduceat(rows[:, 0], starts) / lengths
    print("what mixes rows looks at lengths: means =", means, " (2 and 15, not one mean of 7.2)")
    enc, pred, nodes, labels = lattice_offsets(lengths, [1, 0])
    print(f"with 1 and 0 labels: lattices of 3 x 2 and 2 x 1 nodes, starting at nodes {nodes[:-1]}, {nodes[-1]} in all")


if __name__ == "__main__":
    demo()
