"""The chunked walk: nodes that no path comes near are left out, and nothing notices."""

import numpy as np
import pytest

from mini_pkd import lattice_walk
from mini_pkd.lattice_kl import materialised_kl_and_gradients
from mini_pkd.lattice_walk import chunk_groups, merged_chunks, rows_of_nodes, walk_lattice
from mini_pkd.ragged import lattice_offsets
from mini_pkd.rnnt_loss import materialised_loss_and_gradients


def sharp_batch(sizes=((60, 20), (1, 0), (45, 2), (3, 9)), V=12, J=8, dtype=np.float32):
    """A batch on which paths stay near one way, as in a trained model: each row likes its own symbol."""
    rng = np.random.default_rng(0)
    T, U = np.array(sizes).T
    enc, pred = rng.standard_normal((T.sum(), J)), rng.standard_normal(((U + 1).sum(), J))
    table, bias = 4 * rng.standard_normal((V, J)), np.zeros(V)
    return tuple(a.astype(dtype) for a in (enc, pred, table, bias)), rng.integers(1, V, U.sum()), T, U


def spy_on_backward(monkeypatch):
    """The d_logits that reach the matrix products, copied."""
    seen = []
    original = lattice_walk.joint_backward

    def joint_backward(d_logits, *rest):
        seen.append(d_logits.copy())
        original(d_logits, *rest)

    monkeypatch.setattr(lattice_walk, "joint_backward", joint_backward)
    return seen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunk_bytes, keep_bytes", [(10**9, 0), (0, 0), (0, 10**9), (5000, 10**4)])
def test_leaving_nodes_out_changes_no_gradient(monkeypatch, dtype, chunk_bytes, keep_bytes):
    """Against all nodes and against the oracle: within the rounding of a float sum of some thousand terms, about
    20 eps of the largest entry, whose own terms cancel in part."""
    network, labels, T, U = sharp_batch(dtype=dtype)
    exact = tuple(array.astype(np.float64) for array in network)
    _, oracle = materialised_loss_and_gradients(*exact, labels, T, U)
    seen = spy_on_backward(monkeypatch)
    sizes = dict(chunk_bytes=chunk_bytes, keep_bytes=keep_bytes)
    losses, _, grads = walk_lattice(network, labels, T, U, **sizes)
    nodes = (T * (U + 1)).sum()
    assert sum(map(len, seen)) < 0.8 * nodes  # or nothing was tested
    del seen[:]
    losses_all, _, grads_all = walk_lattice(network, labels, T, U, negligible=-1, **sizes)
    assert sum(map(len, seen)) == nodes
    assert np.array_equal(losses, losses_all)
    eps = np.finfo(dtype).eps
    for g, every, o in zip(grads, grads_all, oracle, strict=True):
        scale = max(1, np.abs(o).max())
        assert np.abs(g - every).max() < 20 * eps * scale
        # no further from the truth than with every node, but for rounding
        assert np.abs(g - o).max() < np.abs(every - o).max() + 20 * eps * scale


def test_what_is_left_out_weighs_less_than_one_rounding():
    network, labels, T, U = sharp_batch()
    negligible = np.finfo(np.float32).eps / (T * (U + 1)).sum()
    with_all, without = (
        walk_lattice(tuple(a.astype(np.float64) for a in network), labels, T, U, negligible=n)[2]
        for n in (-1, negligible)
    )
    for a, b in zip(with_all, without, strict=True):
        assert np.abs(a - b).max() < np.finfo(np.float32).eps * max(1, np.abs(network[2]).max())
    assert any(np.abs(a - b).max() > 0 for a, b in zip(with_all, without, strict=True))


def test_no_denormal_number_reaches_a_product(monkeypatch):
    """Sure of itself and wrong: most gradients are far below 1e-38 (without a teacher and with one)."""
    (enc, pred, table, bias), labels, T, U = sharp_batch(V=40)
    network = (enc, pred, 10 * table, bias)
    seen = spy_on_backward(monkeypatch)
    walk_lattice(network, labels, T, U)
    walk_lattice(network, labels, T, U, teacher=network[:3] + (bias + 1,), kl_weight=1e-3)
    walk_lattice(network, labels, T, U, teacher=network, kl_weight=1e-3, kind="collapsed", temperature=2.0)
    walk_lattice(
        network, labels, T, U, teacher=network[:3] + (bias + 1,), kl_weight=1e-30, kl_weighting="paths", negligible=-1
    )
    size = np.abs(np.concatenate(seen))
    assert ((size == 0) | (size >= np.finfo(np.float32).tiny)).all()
    assert (size == 0).mean() > 0.05  # so some were flushed


@pytest.mark.parametrize("kind, temperature", [("full", 1.0), ("full", 2.0), ("collapsed", 1.0), ("collapsed", 2.0)])
@pytest.mark.parametrize("chunk_bytes, keep_bytes", [(10**9, 0), (0, 0), (0, 10**9), (5000, 10**4)])
def test_a_teacher_of_paths_is_not_asked_where_none_comes_by(monkeypatch, kind, temperature, chunk_bytes, keep_bytes):
    """The same as with every node, to the rounding of a float32 sum; and with fewer rows."""
    network, labels, T, U = sharp_batch()
    teacher = (*network[:2], 0.5 * network[2], network[3])  # less sure
    options = dict(kind=kind, temperature=temperature, kl_weight=0.7, kl_weighting="paths")
    options |= dict(chunk_bytes=chunk_bytes, keep_bytes=keep_bytes)
    seen = spy_on_backward(monkeypatch)
    some = walk_lattice(network, labels, T, U, teacher=teacher, **options)
    nodes = (T * (U + 1)).sum()
    assert sum(map(len, seen)) < 0.8 * nodes
    every = walk_lattice(network, labels, T, U, teacher=teacher, negligible=-1, **options)
    assert np.array_equal(some[0], every[0])
    np.testing.assert_allclose(some[1], every[1], rtol=1e-5)
    for a, b in zip(some[2], every[2], strict=True):
        assert np.abs(a - b).max() < 40 * np.finfo(np.float32).eps * max(1, np.abs(b).max())


def test_a_teacher_is_followed_at_every_node(monkeypatch):
    network, labels, T, U = sharp_batch()
    seen = spy_on_backward(monkeypatch)
    walk_lattice(network, labels, T, U, teacher=network, kl_weight=1.0)
    assert sum(map(len, seen)) == (T * (U + 1)).sum()


@pytest.mark.parametrize("kind", ["full", "collapsed"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunk_bytes, keep_bytes", [(10**9, 0), (0, 0), (0, 10**9), (5000, 10**4)])
def test_along_paths_a_teacher_is_asked_at_few_nodes(monkeypatch, kind, temperature, dtype, chunk_bytes, keep_bytes):
    """The same as with every node, and as the oracle; tolerances as above, for a gradient of 1 + 1 / temperature times
    the occupancy, and the KL's is 100 roundings of a 1 (the largest KL at a node is below 100)."""
    network, labels, T, U = sharp_batch(dtype=dtype)
    teacher = tuple(array + array.dtype.type(0.1) for array in network)
    rows, original = {"teacher": 0}, lattice_walk.matmul

    def matmul(a, b, out=None):
        if b.base is teacher[2]:
            rows["teacher"] += len(a)
        return original(a, b, out=out)

    monkeypatch.setattr(lattice_walk, "matmul", matmul)
    seen = spy_on_backward(monkeypatch)
    options = dict(teacher=teacher, kind=kind, temperature=temperature, kl_weight=1.0, kl_weighting="paths")
    options |= dict(chunk_bytes=chunk_bytes, keep_bytes=keep_bytes)
    losses, kl, grads = walk_lattice(network, labels, T, U, **options)
    nodes, taught = (T * (U + 1)).sum(), rows["teacher"]
    assert sum(map(len, seen)) == taught < 0.8 * nodes  # or nothing was tested
    _, kl_all, grads_all = walk_lattice(network, labels, T, U, negligible=-1, **options)
    assert rows["teacher"] - taught == nodes
    exact, exact_teacher = (tuple(a.astype(np.float64) for a in n) for n in (network, teacher))
    oracle_kl, d_kl = materialised_kl_and_gradients(
        exact, exact_teacher, labels, T, U, kind, temperature, kl_weighting="paths"
    )
    _, d_rnnt = materialised_loss_and_gradients(*exact, labels, T, U)
    eps = np.finfo(dtype).eps
    assert np.abs(kl - kl_all).max() < 100 * eps
    # the weights are exponentials of sums near -losses
    assert np.abs(kl_all - oracle_kl).max() < 10 * losses.max() * eps * oracle_kl.max()
    for g, every, a, b in zip(grads, grads_all, d_rnnt, d_kl, strict=True):
        scale = max(1, np.abs(a + b).max())
        assert np.abs(g - every).max() < 20 * (1 + 1 / temperature) * eps * scale
        assert np.abs(g - a - b).max() < np.abs(every - a - b).max() + 20 * (1 + 1 / temperature) * eps * scale
    _, kl_alone, none = walk_lattice(network, labels, T, U, gradients=False, **options)
    assert none is None and np.array_equal(kl_alone, kl)


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_nodes(seed):
    """Every kept node has one row; in place, no row is written that another iteration still has to read."""
    rng = np.random.default_rng(seed)
    N = int(rng.integers(1, 40))
    taken = np.where(rng.random(N) < rng.random(), rng.random(N), 1e-12)
    taken[rng.integers(N)] = np.nan  # not hidden
    kept = np.flatnonzero(~(taken < 1e-9))
    for in_place in (True, False):
        node_of, row_of = rows_of_nodes(taken, 1e-9, in_place)
        assert sorted(node_of) == list(kept)
        assert np.array_equal(row_of[node_of], np.arange(len(kept))) and (np.delete(row_of, kept) == -1).all()
    node_of, _ = rows_of_nodes(taken, 1e-9, in_place=True)
    for row, node in enumerate(node_of):
        assert row == node or row not in node_of


@pytest.mark.parametrize("seed", range(10))
def test_merged_chunks(seed):
    """They cover an utterance backwards without a gap, and each is as long as it can be."""
    rng = np.random.default_rng(seed)
    T, U = int(rng.integers(20, 60)), int(rng.integers(0, 9))
    [(_, _, chunks)] = chunk_groups(np.array([T]), np.array([U]), rng.integers(1, 9, U), 2 * U + 3)
    most = max(chunk.size for chunk in chunks)
    taken = (rng.random(T * (U + 1)) < seed / 10).astype(float)
    merged = [*merged_chunks(chunks, taken, 0.5, most)]
    assert np.array_equal(np.concatenate([taken[chunk.nodes] for chunk in merged[::-1]]), taken)
    assert np.array_equal(*(np.concatenate([c.labels for c in some]) for some in (chunks, merged[::-1])))
    before = {chunk.nodes.stop: chunk for chunk in chunks}
    for chunk in merged:
        height = taken[chunk.nodes].sum()
        assert height <= most and np.diff(chunk.enc_start) * (U + 1) == chunk.size == len(chunk.all)
        if chunk.nodes.start > 0:
            assert height + taken[before[chunk.nodes.start].nodes].sum() > most
    assert [*merged_chunks(chunks, np.ones(len(taken)), 0.5, most)] == chunks[::-1]  # the logits of these may stand


def test_not_a_number_reaches_loss_and_gradient():
    """A NaN in one utterance reaches the loss and that utterance's gradients."""
    (enc, pred, table, bias), labels, T, U = sharp_batch()
    enc[0, 0] = np.nan
    losses, _, grads = walk_lattice((enc, pred, table, bias), labels, T, U)
    enc_start = lattice_offsets(T, U)[0]
    assert np.isnan(losses[0]) and np.isfinite(losses[1:]).all()
    assert np.isnan(grads[0][0]).all() and np.isfinite(grads[0][enc_start[1] :]).all()
