"""RNN-T loss: every rung of the ladder in rnnt_loss.py against the one above it."""

import math
import subprocess
import sys

import numpy as np
import pytest

from mini_pkd.lattice_kernels import forward_backward
from mini_pkd.lattice_walk import LatticeError, chunk_groups
from mini_pkd.lattice_walk import walk_lattice as walk
from mini_pkd.ragged import lattice_offsets
from mini_pkd.rnnt_loss import (
    backward_variables,
    best_path,
    brute_force,
    forward_variables,
    log_probs,
    log_softmax,
    materialised_loss_and_gradients,
    occupancies,
    paths,
    readable,
    rnnt_loss,
    utterances,
)
from mini_pkd.tensor import Tensor, no_grad

STANDARD = np.array([
    [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
    [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
])  # fmt: skip

# (T, U) of each utterance: ragged, no labels, one frame, fewer frames than labels, one node
BATCHES = [
    [(3, 2)],
    [(1, 0)],
    [(1, 3), (4, 0), (2, 4)],
    [(5, 1), (1, 1), (3, 3), (2, 0), (1, 0)],
]


def random_batch(rng, sizes, V=6, J=4, dtype=np.float64, scale=1.0):
    T, U = np.array(sizes).T
    shapes = ((T.sum(), J), ((U + 1).sum(), J), (V, J), (V,))
    network = tuple((scale * rng.standard_normal(shape)).astype(dtype) for shape in shapes)
    return network, rng.integers(1, V, U.sum()), T, U


def kernel_loss(log_probs, labels):
    """forward_backward on one utterance's log_probs (T, U+1, V): total, gradient like `readable`'s."""
    T, C, V = log_probs.shape
    blank = np.ascontiguousarray(log_probs[:, :, 0]).reshape(-1)
    label = np.full((T, C), -np.inf)
    for u in range(C - 1):
        label[:, u] = log_probs[:, u, labels[u]]
    go_on, speak, take_blank, take_label = np.empty((4, T * C))
    columns, node_start, totals = np.array([C]), np.array([0, T * C]), np.empty(1)
    forward_backward(blank, label.reshape(-1), node_start, columns, go_on, speak, take_blank, take_label, totals)
    gradient = np.zeros((T, C, V))
    gradient[:, :, 0] = -take_blank.reshape(T, C)
    for u in range(C - 1):
        gradient[:, u, labels[u]] = -take_label.reshape(T, C)[:, u]
    assert np.all(take_label.reshape(T, C)[:, -1] == 0)
    return totals[0], gradient


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max() if b.size else 0.0


def test_the_standard_case_of_the_literature():
    """4.495666 (more digits: 4.49566668), printed by the tests of every transducer loss."""
    log_probs = log_softmax(STANDARD)
    assert brute_force(log_probs, [1, 2]) == pytest.approx(4.495666, abs=1e-6)
    assert readable(log_probs, [1, 2])[0] == pytest.approx(4.495666, abs=1e-6)
    assert -kernel_loss(log_probs, [1, 2])[0] == pytest.approx(4.495666, abs=1e-6)


def test_the_standard_case_through_the_joint_network():
    """Six nodes, six hidden units, any inputs: solve for the table that gives the standard logits."""
    rng = np.random.default_rng(0)
    enc, pred = rng.standard_normal((2, 6)), rng.standard_normal((3, 6))
    hidden = np.tanh(enc[:, None] + pred[None]).reshape(6, 6)
    table = np.linalg.solve(hidden, STANDARD.reshape(6, 5)).T.copy()
    loss, losses = rnnt_loss(*map(Tensor, (enc, pred, table, np.zeros(5))), [1, 2], [2], [2])
    assert float(loss.data) == losses[0] == pytest.approx(4.495666, abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_brute_force_readable_and_kernel_agree(seed):
    rng = np.random.default_rng(seed)
    for T, U in [(1, 0), (1, 3), (3, 0), (2, 5), tuple(rng.integers(1, 6, 2))]:
        V = int(rng.integers(2, 6))
        log_probs = log_softmax(3 * rng.standard_normal((T, U + 1, V)))
        labels = rng.integers(1, V, U)
        expected = brute_force(log_probs, labels)
        loss, gradient = readable(log_probs, labels)
        total, kernel_gradient = kernel_loss(log_probs, labels)
        assert abs(loss - expected) < 1e-10  # float64 sums of at most a few hundred terms
        assert abs(-total - expected) < 1e-10
        assert np.abs(occupancies(log_probs, labels) + gradient.sum(axis=-1)).max() < 1e-12
        assert np.abs(kernel_gradient - gradient).max() < 1e-12
        # each frame is left by exactly one blank, each label said exactly once
        assert np.abs(gradient[:, :, 0].sum(axis=1) + 1).max() < 1e-12
        assert all(abs(gradient[:, u, labels[u]].sum() + 1) < 1e-12 for u in range(U))


@pytest.mark.parametrize("seed", range(8))
def test_paths_variables_and_the_best_path(seed):
    """C(T-1+U, U) different paths; alpha, beta and occupancies as sums over them; the best path is the best of all."""
    rng = np.random.default_rng(seed)
    T, U, V = int(rng.integers(1, 5)), int(rng.integers(0, 4)), 5
    log_probs, labels = log_softmax(2 * rng.standard_normal((T, U + 1, V))), rng.integers(1, V, U)
    every = [tuple(path) for path in paths(T, U)]
    assert len(set(every)) == len(every) == math.comb(T - 1 + U, U)

    def score(steps):
        return sum(log_probs[t, u, labels[u] if says else 0] for t, u, says in steps)

    alpha, beta = forward_variables(log_probs, labels), backward_variables(log_probs, labels)
    occupied, everything = occupancies(log_probs, labels), np.logaddexp.reduce([score(path) for path in every])
    for t, u in np.ndindex(T, U + 1):
        by_here = np.logaddexp.reduce([score(path) for path in every if (t, u) in [step[:2] for step in path]])
        assert occupied[t, u] == pytest.approx(np.exp(by_here - everything), abs=1e-12)
        heads = {path[: t + u] for path in every if (t, u) in [step[:2] for step in path]}
        tails = {path[t + u :] for path in every if (t, u) in [step[:2] for step in path]}
        assert alpha[t, u] == pytest.approx(np.logaddexp.reduce([score(h) for h in heads]), abs=1e-12)
        assert beta[t, u] == pytest.approx(np.logaddexp.reduce([score(e) for e in tails]), abs=1e-12)
    path, total = best_path(log_probs, labels)
    assert tuple(path) == max(every, key=score) and total == pytest.approx(score(path), abs=1e-12)


@pytest.mark.parametrize("sizes", BATCHES)
def test_log_probs_of_one_utterance_give_the_loss_of_the_batch(sizes):
    network, labels, T, U = random_batch(np.random.default_rng(3), sizes)
    losses, _ = materialised_loss_and_gradients(*network, labels, T, U)
    for loss, (enc_rows, pred_rows, label_rows) in zip(losses, utterances(T, U), strict=True):
        lattice = log_probs(network[0][enc_rows], network[1][pred_rows], *network[2:])
        np.testing.assert_allclose(np.exp(lattice).sum(axis=2), 1, atol=1e-12)
        assert abs(brute_force(lattice, labels[label_rows]) - loss) < 1e-10


@pytest.mark.parametrize("seed", range(5))
def test_readable_gradient_by_central_differences_on_logits(seed):
    rng = np.random.default_rng(seed)
    T, U, V = 3, 2, 4
    logits, labels = rng.standard_normal((T, U + 1, V)), rng.integers(1, V, U)
    _, d_log_probs = readable(log_softmax(logits), labels)
    d_logits = d_log_probs - np.exp(log_softmax(logits)) * d_log_probs.sum(axis=-1, keepdims=True)
    direction = rng.standard_normal(logits.shape)
    h = 1e-5
    up, down = (brute_force(log_softmax(logits + sign * h * direction), labels) for sign in (1, -1))
    # central differences in float64: h^2 / 6 * third derivative, about 1e-9
    assert (d_logits * direction).sum() == pytest.approx((up - down) / (2 * h), rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("sizes", BATCHES)
@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_the_joints_inputs_by_central_differences(sizes, seed):
    rng = np.random.default_rng(seed)
    network, labels, T, U = random_batch(rng, sizes)
    tensors = [Tensor(array, requires_grad=True) for array in network]
    cotangent = 1.7  # not 1: the scaling in backward is tested too
    loss, _ = rnnt_loss(*tensors, labels, T, U)
    loss.backward(np.array(cotangent))
    h = 1e-5
    for i in range(4):  # each input by itself, or a wrong small one hides behind the others
        direction = rng.standard_normal(network[i].shape)
        values = []
        for sign in (1, -1):
            moved = [array + sign * h * direction if k == i else array for k, array in enumerate(network)]
            values.append(float(rnnt_loss(*map(Tensor, moved), labels, T, U)[0].data))
        numeric = cotangent * (values[0] - values[1]) / (2 * h)
        assert (tensors[i].grad * direction).sum() == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-6)])
@pytest.mark.parametrize("sizes", BATCHES)
def test_walk_equals_the_materialised_oracle(sizes, dtype, tolerance):
    """float32: about ten times its rounding, 1.2e-7, relative to the largest entry."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        V, J = int(rng.integers(2, 40)), int(rng.integers(1, 20))
        network, labels, T, U = random_batch(rng, sizes, V, J, dtype)
        exact = tuple(array.astype(np.float64) for array in network)
        losses, expected = materialised_loss_and_gradients(*exact, labels, T, U)
        got, _, grads = walk(network, labels, T, U)
        assert relative(got, losses) < tolerance
        for g, e in zip(grads, expected, strict=True):
            assert g.dtype == dtype
            # a single node's d_enc is tiny beside the terms that cancel in it: hence the floor of 1
            assert np.abs(g - e).max() < tolerance * max(1, np.abs(e).max()) * 5


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("chunk_bytes, keep_bytes", [(0, 0), (0, 10**9), (2000, 0), (700, 2500)])
def test_any_chunking_gives_the_same(dtype, tolerance, chunk_bytes, keep_bytes):
    rng = np.random.default_rng(1)
    network, labels, T, U = random_batch(rng, [(7, 3), (1, 0), (2, 6), (30, 4), (3, 0), (9, 1)], 11, 3, dtype)
    whole = walk(network, labels, T, U, chunk_bytes=10**9)
    cut = walk(network, labels, T, U, chunk_bytes=chunk_bytes, keep_bytes=keep_bytes)
    assert relative(cut[0], whole[0]) < tolerance
    for a, b in zip(cut[2], whole[2], strict=True):
        assert relative(a, b) < tolerance


def test_chunks_cover_every_node_once():
    """Groups and chunks of all sizes: the union of the chunks' rows is the batch, each node once."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        B = int(rng.integers(1, 7))
        T, U = rng.integers(1, 9, B), rng.integers(0, 5, B)
        enc_start, pred_start, _, _ = lattice_offsets(T, U)
        labels = rng.integers(1, 9, U.sum())
        rows = int(rng.integers(1, 60))
        seen = []
        for first, last, chunks in chunk_groups(T, U, labels, rows):
            position = 0
            for chunk in chunks:
                assert chunk.nodes.start == position
                assert chunk.size <= max(rows, (U[first:last] + 1).max())
                position = chunk.nodes.stop
                for k in range(len(chunk.enc_start) - 1):
                    for t in range(chunk.enc_start[k], chunk.enc_start[k + 1]):
                        seen += [(t, p) for p in range(chunk.pred_start[k], chunk.pred_start[k + 1])]
        expected = [
            (t, p)
            for b in range(B)
            for t in range(enc_start[b], enc_start[b + 1])
            for p in range(pred_start[b], pred_start[b + 1])
        ]
        assert seen == expected


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_a_batch_equals_its_utterances_one_by_one(dtype, tolerance):
    rng = np.random.default_rng(2)
    network, labels, T, U = random_batch(rng, [(4, 2), (1, 0), (1, 4), (6, 0), (12, 5)], 9, 5, dtype)
    losses, _, (d_enc, d_pred, d_table, d_bias) = walk(network, labels, T, U)
    d_table_sum, d_bias_sum = np.zeros_like(d_table), np.zeros_like(d_bias)
    for b, (enc_rows, pred_rows, label_rows) in enumerate(utterances(T, U)):
        one = (network[0][enc_rows], network[1][pred_rows], *network[2:])
        loss, _, grads = walk(one, labels[label_rows], T[b : b + 1], U[b : b + 1])
        assert abs(loss[0] - losses[b]) < tolerance * losses[b]
        assert relative(grads[0], d_enc[enc_rows]) < tolerance
        assert relative(grads[1], d_pred[pred_rows]) < tolerance
        d_table_sum += grads[2]
        d_bias_sum += grads[3]
    assert relative(d_table_sum, d_table) < tolerance
    assert relative(d_bias_sum, d_bias) < tolerance


def test_adding_a_constant_to_a_nodes_logits_changes_nothing():
    rng = np.random.default_rng(3)
    logits, labels = rng.standard_normal((4, 3, 5)), np.array([2, 4])
    shift = 50 * rng.standard_normal((4, 3, 1))
    a, b = (brute_force(log_softmax(x), labels) for x in (logits, logits + shift))
    assert abs(a - b) < 1e-10
    # through the joint: a constant in the bias shifts all nodes, and its gradient sums to nothing
    network, labels, T, U = random_batch(rng, [(4, 2), (2, 3)])
    losses, _, grads = walk(network, labels, T, U)
    shifted, _, _ = walk((*network[:3], network[3] + 100), labels, T, U)
    assert np.abs(losses - shifted).max() < 1e-10
    assert abs(grads[3].sum()) < 1e-12
    assert np.abs(grads[2].sum(axis=0)).max() < 1e-12


def test_extreme_logits_stay_finite():
    """A confident and wrong model: losses of thousands, no inf, no nan; float32 and U > T."""
    rng = np.random.default_rng(4)
    network, labels, T, U = random_batch(rng, [(2, 9), (30, 1)], 7, 6, np.float32, scale=400)
    exact = tuple(array.astype(np.float64) for array in network)
    expected, _ = materialised_loss_and_gradients(*exact, labels, T, U)
    losses, _, grads = walk(network, labels, T, U)
    assert losses.min() > 1000 and relative(losses, expected) < 1e-6
    assert all(np.isfinite(g).all() for g in grads)


def test_not_a_number_is_not_hidden():
    """A NaN in any logit must reach the loss, or training would go on with ruined weights."""
    for where in range(4):
        for dtype in (np.float32, np.float64):
            network, labels, T, U = random_batch(np.random.default_rng(5), [(3, 2)], 19, 4, dtype)
            network[where].flat[-1] = np.nan
            losses, _, _ = walk(network, labels, T, U)
            assert np.isnan(losses[0]), (where, dtype)


def test_no_grad_computes_the_loss_only_and_the_same():
    network, labels, T, U = random_batch(np.random.default_rng(6), BATCHES[3])
    tensors = [Tensor(array, requires_grad=True) for array in network]
    loss, losses = rnnt_loss(*tensors, labels, T, U)
    assert loss.requires_grad and loss.data == pytest.approx(losses.mean())
    with no_grad():
        again, losses_again = rnnt_loss(*tensors, labels, T, U)
    assert not again.requires_grad
    assert np.array_equal(losses, losses_again)


def test_two_losses_on_one_tape_do_not_share_their_gradients():
    """The scratch buffers are reused; the gradients of the first loss must survive the second forward."""
    network, labels, T, U = random_batch(np.random.default_rng(7), BATCHES[2])
    tensors = [Tensor(array, requires_grad=True) for array in network]
    first, _ = rnnt_loss(*tensors, labels, T, U)
    other, other_labels, T2, U2 = random_batch(np.random.default_rng(8), BATCHES[3])
    rnnt_loss(*(Tensor(array, requires_grad=True) for array in other), other_labels, T2, U2)
    first.backward()
    _, _, expected = walk(network, labels, T, U, rnnt_weight=1 / len(T))
    for tensor, gradient in zip(tensors, expected, strict=True):
        assert np.array_equal(tensor.grad, gradient)


def test_offsets_beyond_32_bits():
    enc, pred, nodes, labels = lattice_offsets(np.int32([60000, 50000, 2]), np.int32([59999, 49999, 0]))
    assert nodes.dtype == np.int64
    assert nodes.tolist() == [0, 3_600_000_000, 6_100_000_000, 6_100_000_002]
    assert (enc[-1], pred[-1], labels[-1]) == (110_002, 110_001, 109_998)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(labels=[1, 2, 6]), "label 6 is not in 1..5"),
        (dict(labels=[1, 0, 2]), "label 0 is not in 1..5"),
        (dict(labels=[1, -1, 2]), "label -1"),
        (dict(labels=[1.0, 2.0, 3.0]), "whole numbers"),
        (dict(labels=[1, 2]), "add up to the 2 labels"),
        (dict(lengths=[3, 0]), "no encoder rows"),
        (dict(lengths=[3, 3]), "have shapes"),
        (dict(lengths=[5]), "as many lengths"),
        (dict(lengths=[], label_lengths=[]), "at least one"),
        (dict(label_lengths=[4, -1]), "0 or more"),
        (dict(bias=np.zeros(5)), "have shapes"),
        (dict(table=np.zeros((6, 4), np.float32)), "float32 or all float64"),
        (dict(pred=np.zeros((5, 3))), "have shapes"),
    ],
)
def test_bad_input_is_one_sentence(change, words):
    network, labels, T, U = random_batch(np.random.default_rng(9), [(3, 2), (2, 1)])
    arguments = dict(zip(("enc", "pred", "table", "bias"), network, strict=True))
    arguments.update(labels=labels, lengths=T, label_lengths=U)
    arguments.update(change)
    for name in ("enc", "pred", "table", "bias"):
        arguments[name] = Tensor(arguments[name])
    with pytest.raises(LatticeError, match=words) as caught:
        rnnt_loss(**arguments)
    assert "\n" not in str(caught.value)


def test_the_demo_runs():
    command = [sys.executable, "-m", "mini_pkd.rnnt_loss"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout.count("4.49566") == 3
