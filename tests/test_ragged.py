"""The ragged batch: where rows and nodes begin."""

import numpy as np
import pytest

from mini_pkd.ragged import lattice_offsets, row_starts


def test_row_starts():
    assert row_starts([3, 0, 2]).tolist() == [0, 3, 3] and row_starts([]).tolist() == []
    assert row_starts(np.int32([2**31 - 1, 1])).tolist() == [0, 2**31 - 1]  # and the next would be beyond 32 bits
    assert row_starts(np.int32([1])).dtype == np.int64


@pytest.mark.parametrize("seed", range(5))
def test_offsets_count_every_row_and_node(seed):
    rng = np.random.default_rng(seed)
    B = int(rng.integers(1, 6))
    T, U = rng.integers(1, 9, B), rng.integers(0, 5, B)
    enc, pred, nodes, labels = lattice_offsets(T, U)
    for b in range(B):
        assert enc[b + 1] - enc[b] == T[b] and labels[b + 1] - labels[b] == U[b]
        assert nodes[b + 1] - nodes[b] == T[b] * (pred[b + 1] - pred[b])
    assert enc[0] == pred[0] == nodes[0] == labels[0] == 0
