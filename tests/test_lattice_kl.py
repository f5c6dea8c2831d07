"""Distillation over the lattice: against the materialised version, against hand-made cases, and in memory."""

import subprocess
import sys

import numpy as np
import pytest

from mini_pkd import rnnt_loss
from mini_pkd.lattice_kl import distillation_loss, kl_map, materialised_kl_and_gradients, node_kl
from mini_pkd.lattice_walk import LatticeError
from mini_pkd.rnnt_loss import log_softmax, materialised_loss_and_gradients, paths
from mini_pkd.tensor import Tensor, no_grad

BATCHES = [
    [(3, 2)],
    [(1, 0)],
    [(1, 3), (4, 0), (2, 4)],
    [(5, 1), (1, 1), (3, 3), (2, 0), (1, 0)],
]
KINDS = ("full", "collapsed")
WEIGHTINGS = ("nodes", "paths")


def random_network(rng, T, U, V, J, dtype=np.float64, scale=1.0):
    shapes = ((T.sum(), J), ((U + 1).sum(), J), (V, J), (V,))
    return tuple((scale * rng.standard_normal(shape)).astype(dtype) for shape in shapes)


def random_batch(rng, sizes, V=6, J=4, teacher_J=5, dtype=np.float64, scale=1.0):
    T, U = np.array(sizes).T
    student = random_network(rng, T, U, V, J, dtype, scale)
    teacher = random_network(rng, T, U, V, teacher_J, dtype, scale)
    return student, teacher, (rng.integers(1, V, U.sum()), T, U)


def tensors(network):
    return [Tensor(array, requires_grad=True) for array in network]


def run(student, teacher, lattice, **options):
    """Loss, RNN-T losses, KL and the gradients of the mean loss."""
    inputs = tensors(student)
    loss, losses, kl = distillation_loss(inputs, teacher, *lattice, **options)
    loss.backward()
    return float(loss.data), losses, kl, [tensor.grad for tensor in inputs]


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("sizes", BATCHES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixing", ["add", "convex"])
@pytest.mark.parametrize("kl_weighting", WEIGHTINGS)
def test_equals_the_materialised_oracle(sizes, temperature, kind, mixing, kl_weighting):
    """float64 to rounding; float32 KL to 1e-6 relative, the gradients to 1e-5 of their largest entry.

    The oracle computes in float64 from the same inputs.  The floor of 0.01 is for a lone node whose KL is
    0.001: that is a difference of logarithms near 1, so its float32 error is not relative to itself.
    """
    for seed in range(4):
        rng = np.random.default_rng(seed)
        V, J, teacher_J = int(rng.integers(2, 40)), int(rng.integers(1, 12)), int(rng.integers(1, 12))
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
            student, teacher, lattice = random_batch(rng, sizes, V, J, teacher_J, dtype)
            alpha = 0.3
            exact_student, exact_teacher = (
                tuple(array.astype(np.float64) for array in network) for network in (student, teacher)
            )
            rnnt, d_rnnt = materialised_loss_and_gradients(*exact_student, *lattice)
            kl, d_kl = materialised_kl_and_gradients(
                exact_student, exact_teacher, *lattice, kind=kind, temperature=temperature, kl_weighting=kl_weighting
            )
            weight = 1 if mixing == "add" else 1 - alpha
            options = dict(kind=kind, temperature=temperature, alpha=alpha, mixing=mixing, kl_weighting=kl_weighting)
            loss, got_rnnt, got_kl, grads = run(student, teacher, lattice, **options)
            assert np.abs(got_kl - kl).max() < tolerance * max(0.01, kl.max())
            assert relative(got_rnnt, rnnt) < 2 * tolerance
            assert loss == pytest.approx((weight * rnnt + alpha * kl).mean(), rel=2 * tolerance)
            for g, a, b in zip(grads, d_rnnt, d_kl, strict=True):
                assert g.dtype == dtype
                expected = (weight * a + alpha * b) / len(rnnt)
                assert np.abs(g - expected).max() < 10 * tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", BATCHES)
def test_gradient_by_central_differences(kind, sizes):
    rng = np.random.default_rng(0)
    student, teacher, lattice = random_batch(rng, sizes)
    options = dict(kind=kind, temperature=1.3, alpha=0.4)
    inputs = tensors(student)
    loss, _, _ = distillation_loss(inputs, teacher, *lattice, **options)
    loss.backward(np.array(-0.7))
    h = 1e-5
    for i in range(4):
        direction = rng.standard_normal(student[i].shape)
        values = []
        for sign in (1, -1):
            moved = [array + sign * h * direction if k == i else array for k, array in enumerate(student)]
            value, _, _ = distillation_loss([*map(Tensor, moved)], teacher, *lattice, **options)
            values.append(float(value.data))
        numeric = -0.7 * (values[0] - values[1]) / (2 * h)
        assert (inputs[i].grad * direction).sum() == pytest.approx(numeric, rel=1e-6, abs=1e-8)


def kl_of_each_path(student, teacher, lattice, kind, temperature):
    """-> (P(path | transcript), KL along the path), each an array over all paths of all utterances."""
    labels, T, U = lattice
    P, kl = [], []
    for enc_rows, pred_rows, label_rows in rnnt_loss.utterances(T, U):
        y = labels[label_rows]
        logits, teacher_logits = (
            np.tanh(enc[enc_rows][:, None] + pred[pred_rows][None]) @ table.T + bias  # (T, U+1, V)
            for enc, pred, table, bias in (student, teacher)
        )
        log_probs, nodes_kl = log_softmax(logits), kl_map(logits / temperature, teacher_logits / temperature, y, kind)
        of_paths = [*paths(len(logits), len(y))]
        p = np.exp([sum(log_probs[t, u, y[u] if says else 0] for t, u, says in path) for path in of_paths])
        P.extend(p / p.sum())
        kl.extend(sum(nodes_kl[t, u] for t, u, _ in path) for path in of_paths)
    return np.array(P), np.array(kl)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", BATCHES)
def test_paths_is_the_expected_kl_along_a_path(kind, sizes):
    """Against all paths, one at a time; the gradient against central differences with their probabilities held."""
    rng = np.random.default_rng(0)
    student, teacher, lattice = random_batch(rng, sizes)
    P, kl_along = kl_of_each_path(student, teacher, lattice, kind, 1.3)
    options = dict(kind=kind, temperature=1.3, alpha=1.0, mixing="convex", kl_weighting="paths")  # the KL alone
    inputs = tensors(student)
    loss, _, kl = distillation_loss(inputs, teacher, *lattice, **options)
    assert kl.sum() == pytest.approx(P @ kl_along, rel=1e-12)
    loss.backward(np.array(-0.7))
    h = 1e-5
    for i in range(4):
        direction = rng.standard_normal(student[i].shape)
        values = []
        for sign in (1, -1):
            moved = [array + sign * h * direction if k == i else array for k, array in enumerate(student)]
            values.append(P @ kl_of_each_path(moved, teacher, lattice, kind, 1.3)[1] / len(sizes))
        numeric = -0.7 * (values[0] - values[1]) / (2 * h)
        assert (inputs[i].grad * direction).sum() == pytest.approx(numeric, rel=1e-6, abs=1e-8)


def test_along_a_path_by_hand():
    """The picture in lattice_kl.py: the student says the label with 3/4 at the first node and tosses coins at the other
    three, the teacher has 1/4 3/4 everywhere.  KL 0, d, d, d with occupancies 1, 3/4, 1/4, 1."""
    rows, ln3 = np.array([[100.0], [-300.0]]), np.log(3)  # of enc and pred: tanh of their sums is 1, -1, -1, -1
    student = (rows, rows, np.array([[0.0], [ln3 / 2]]), np.array([0.0, ln3 / 2]))
    teacher = (rows, rows, np.zeros((2, 1)), np.log([0.25, 0.75]))
    d = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    for kind in KINDS:
        for kl_weighting, expected in (("nodes", 3 * d), ("paths", 2 * d)):
            _, rnnt, kl, _ = run(student, teacher, ([1], [2], [1]), kind=kind, kl_weighting=kl_weighting)
            assert rnnt[0] == pytest.approx(np.log(4), rel=1e-14)  # (3/4 + 1/4) / 2 / 2
            assert kl[0] == pytest.approx(expected, rel=1e-14)


def test_two_coins_by_hand():
    """One node, V = 2, logits straight from the bias: student (1/2, 1/2), teacher (1/4, 3/4)."""
    zero = np.zeros((1, 1))
    student = (zero, zero, np.zeros((2, 1)), np.log([0.5, 0.5]))
    teacher = (zero, zero, np.zeros((2, 1)), np.log([0.25, 0.75]))
    by_hand = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)  # 0.130812
    for kind in KINDS:
        loss, rnnt, kl, grads = run(student, teacher, ([], [1], [0]), kind=kind, alpha=1.0)
        assert kl[0] == pytest.approx(by_hand, abs=1e-15) and rnnt[0] == pytest.approx(np.log(2), abs=1e-15)
        assert loss == pytest.approx(by_hand + np.log(2), abs=1e-15)
        # RNN-T wants blank: (1/2 - 1, 1/2); the KL pulls towards the teacher: (1/2 - 1/4, 1/2 - 3/4)
        assert np.abs(grads[3] - [-0.5 + 0.25, 0.5 - 0.25]).max() < 1e-15


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kl_weighting", WEIGHTINGS)
def test_zero_with_zero_gradient_when_teacher_is_student(dtype, temperature, kind, kl_weighting):
    """Exactly zero, not nearly: both go through the same arithmetic."""
    for seed, sizes in enumerate(BATCHES):
        student, _, lattice = random_batch(np.random.default_rng(seed), sizes, V=23, J=9, dtype=dtype)
        options = dict(kind=kind, temperature=temperature, kl_weighting=kl_weighting)
        _, _, kl, grads = run(student, student, lattice, alpha=1.0, mixing="convex", **options)  # KL alone
        assert np.all(kl == 0)
        assert all(np.all(g == 0) for g in grads)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_collapsed_and_full_agree_exactly_where_nothing_is_merged(temperature):
    """V = 3: blank, label and the one other symbol are three classes; only the last column merges two.

    So the difference between full and collapsed is the last columns' alone.  With V = 2 nothing is
    merged anywhere and the two are the same loss.
    """
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for sizes in BATCHES:
            student, teacher, lattice = random_batch(rng, sizes, V=2)
            full, collapsed = (run(student, teacher, lattice, kind=k, temperature=temperature) for k in KINDS)
            assert np.abs(full[2] - collapsed[2]).max() < 1e-12
            assert all(np.abs(a - b).max() < 1e-12 for a, b in zip(full[3], collapsed[3], strict=True))

        student, teacher, lattice = random_batch(rng, [(4, 3)], V=3)
        full, collapsed = (run(student, teacher, lattice, kind=k, temperature=temperature) for k in KINDS)
        last_student, last_teacher = (
            (np.tanh(enc + pred[3]) @ table.T + bias) / temperature  # column u = U = 3, all frames
            for enc, pred, table, bias in (student, teacher)
        )
        difference = sum(
            node_kl(s, t) - node_kl(s, t, None, "collapsed") for s, t in zip(last_student, last_teacher, strict=True)
        )
        assert full[2][0] - collapsed[2][0] == pytest.approx(difference, abs=1e-12)
        assert difference > 0


def test_merging_symbols_never_increases_the_kl():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        student, teacher, lattice = random_batch(rng, BATCHES[seed % 4], V=int(rng.integers(4, 30)))
        full, collapsed = (run(student, teacher, lattice, kind=k)[2] for k in KINDS)
        assert np.all(collapsed >= 0) and np.all(collapsed <= full + 1e-12)


def test_a_sure_student_keeps_a_finite_and_exact_collapsed_kl():
    """1 - P(blank) - P(label) in float32 would be 0 here, and its logarithm -inf."""
    bias, teacher_bias = (np.array(b, dtype=np.float32) for b in ([30.0, 0, 1, 2, -1], [0, 1, 0, 0.5, 0]))
    zero, table = np.zeros((1, 1), np.float32), np.zeros((5, 1), np.float32)
    student, teacher = (zero, zero, table, bias), (zero, zero, table, teacher_bias)
    expected = node_kl(bias.astype(np.float64), teacher_bias.astype(np.float64), None, "collapsed")
    _, _, kl, grads = run(student, teacher, ([], [1], [0]), kind="collapsed", alpha=1.0)
    assert expected > 10 and kl[0] == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(grads[3]).all()
    # P_S(blank) - P_T(blank), and what the RNN-T loss adds is about exp(-28)
    t = np.exp(log_softmax(teacher_bias.astype(np.float64)))
    assert grads[3][0] == pytest.approx(1 - t[0], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("chunk_bytes, keep_bytes", [(0, 0), (0, 10**9), (3000, 0), (1500, 5000)])
@pytest.mark.parametrize("kl_weighting", WEIGHTINGS)
def test_any_chunking_gives_the_same(kind, dtype, tolerance, chunk_bytes, keep_bytes, kl_weighting):
    rng = np.random.default_rng(1)
    sizes = [(7, 3), (1, 0), (2, 6), (30, 4), (3, 0), (9, 1)]
    student, teacher, lattice = random_batch(rng, sizes, 11, 3, 4, dtype)
    options = dict(kind=kind, kl_weighting=kl_weighting)
    whole = run(student, teacher, lattice, **options, chunk_bytes=10**9)
    cut = run(student, teacher, lattice, **options, chunk_bytes=chunk_bytes, keep_bytes=keep_bytes)
    assert relative(cut[1], whole[1]) < tolerance and relative(cut[2], whole[2]) < tolerance
    for a, b in zip(cut[3], whole[3], strict=True):
        assert relative(a, b) < tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kl_weighting", WEIGHTINGS)
def test_a_batch_equals_its_utterances_one_by_one(kind, kl_weighting):
    rng = np.random.default_rng(2)
    student, teacher, (labels, T, U) = random_batch(rng, [(4, 2), (1, 0), (1, 4), (6, 0), (12, 5)], 9, 5)
    options = dict(kind=kind, kl_weighting=kl_weighting)
    _, rnnt, kl, grads = run(student, teacher, (labels, T, U), **options)
    table_sum = 0
    for b, (enc_rows, pred_rows, label_rows) in enumerate(rnnt_loss.utterances(T, U)):
        one, one_teacher = ((n[0][enc_rows], n[1][pred_rows], *n[2:]) for n in (student, teacher))
        alone = run(one, one_teacher, (labels[label_rows], T[b : b + 1], U[b : b + 1]), **options)
        assert alone[1][0] == pytest.approx(rnnt[b], rel=1e-12)
        assert alone[2][0] == pytest.approx(kl[b], rel=1e-12)
        assert relative(alone[3][0] / len(T), grads[0][enc_rows]) < 1e-12
        assert relative(alone[3][1] / len(T), grads[1][pred_rows]) < 1e-12
        table_sum = table_sum + alone[3][2] / len(T)
    assert relative(table_sum, grads[2]) < 1e-12


def test_alpha_zero_is_the_rnnt_loss():
    student, teacher, lattice = random_batch(np.random.default_rng(3), BATCHES[3])
    _, rnnt, _, grads = run(student, teacher, lattice, alpha=0)
    inputs = tensors(student)
    loss, losses = rnnt_loss.rnnt_loss(*inputs, *lattice)
    loss.backward()
    assert relative(rnnt, losses) < 1e-14
    assert all(np.abs(a - tensor.grad).max() < 1e-14 for a, tensor in zip(grads, inputs, strict=True))


def test_the_teacher_is_left_alone_and_no_grad_gives_the_same_numbers():
    student, teacher, lattice = random_batch(np.random.default_rng(4), BATCHES[3], dtype=np.float32)
    before = [array.copy() for array in (*student, *teacher)]
    loss, rnnt, kl, _ = run(student, teacher, lattice)
    assert all(np.array_equal(a, b) for a, b in zip(before, (*student, *teacher), strict=True))
    with no_grad():
        again = distillation_loss(tensors(student), teacher, *lattice)
    assert not again[0].requires_grad and float(again[0].data) == loss
    assert np.array_equal(again[1], rnnt) and np.array_equal(again[2], kl)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kl_weighting", WEIGHTINGS)
def test_not_a_number_is_not_hidden(kind, kl_weighting):
    for whose in range(2):
        for where in range(4):
            networks = random_batch(np.random.default_rng(5), [(3, 2)], 19, 4, 4, np.float32)
            networks[whose][where].flat[-1] = np.nan
            loss, _, _, _ = run(*networks, kind=kind, kl_weighting=kl_weighting)
            assert np.isnan(loss), (whose, where)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(kind="half"), "kind must be one of"),
        (dict(mixing="multiply"), "mixing one of"),
        (dict(kl_weighting="frames"), "kl_weighting one of"),
        (dict(temperature=0), "temperature must be above 0"),
        (dict(alpha=-1), "alpha at least 0"),
        (dict(alpha=float("nan")), "alpha at least 0"),
        (dict(alpha=1.5, mixing="convex"), "at most 1"),
    ],
)
def test_bad_options_are_one_sentence(options, words):
    student, teacher, lattice = random_batch(np.random.default_rng(6), BATCHES[0])
    with pytest.raises(LatticeError, match=words) as caught:
        distillation_loss(tensors(student), teacher, *lattice, **options)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_another_lattice_or_vocabulary_is_refused():
    student, teacher, lattice = random_batch(np.random.default_rng(7), BATCHES[2])
    with pytest.raises(LatticeError, match="teacher's enc, pred, table, bias have shapes"):
        distillation_loss(tensors(student), (teacher[0][1:], *teacher[1:]), *lattice)
    with pytest.raises(LatticeError, match="teacher's enc, pred, table, bias have shapes"):
        distillation_loss(tensors(student), (*teacher[:2], teacher[2][1:], teacher[3][1:]), *lattice)
    with pytest.raises(LatticeError, match="float32 or all float64"):
        distillation_loss(tensors(student), [array.astype(np.float32) for array in teacher], *lattice)


PEAK = """
import tracemalloc
import numpy as np
from mini_pkd.lattice_kl import distillation_loss
from mini_pkd.tensor import Tensor

def inputs(T, U, V, J):
    rng = np.random.default_rng(0)
    shapes = ((T, J), (U + 1, J), (V, J), (V,))
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]

def run(T, U, V, J):
    student, teacher = [Tensor(a, requires_grad=True) for a in inputs(T, U, V, J)], inputs(T, U, V, J)
    for tensor in student:
        tensor.grad = np.zeros_like(tensor.data)  # as the optimizer does
    tracemalloc.start()  # numpy reports its arrays to it
    loss, _, kl = distillation_loss(student, teacher, np.arange(1, U + 1), [T], [U])
    loss.backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kl[0] == 0 and np.isfinite(loss.data)
    return peak

run(3, 2, 10, 4)  # compile
print(run(200, 50, 10026, 1024))
"""


@pytest.mark.slow
def test_peak_memory_at_the_papers_size():
    """T = 200, U = 50, V = 10026, J = 1024, teacher and student: below 300 MB (logits alone: 818 MB)."""
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 41e6 < int(out.stdout) < 300e6  # at least the table's gradient, or nothing was measured


def test_the_demo_runs():
    command = [sys.executable, "-m", "mini_pkd.lattice_kl"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0.173287 = 0.173287" in out.stdout and "0.173287, 0.130812" in out.stdout
    assert "0.392436 = 3 x 0.130812, along a path 0.261624 = 2 x that" in out.stdout
