"""Distillation over the lattice: at every node the student's distribution follows the teacher's.

The paper (arXiv 2210.00169) adds to the RNN-T loss alpha times the Kullback-Leibler divergence (KL) of all nodes,

    L_KD = sum over nodes (t, u), sum over symbols k:  P_T(k|t,u) ln( P_T(k|t,u) / P_S(k|t,u) )

This alpha is a weight, not the variable of rnnt_loss.py; 0.02 is enough because the nodes of an utterance are *summed*.
The derivative by the student's logits is P_S - P_T.  A temperature tau divides both networks' logits before the
softmax, and then the derivative is (P_S - P_T) / tau; there is no factor tau^2 in front.  The paper uses tau = 1.

kind="collapsed" is the cheaper loss of Panchapagesan et al. (arXiv 2011.06110).  It knows three classes per node:
blank, the transcript's next label, and the rest, whose probabilities are added up.  (The last column has no next label,
only two classes.)  What the teacher thinks inside the rest is lost, so collapsed <= full; they are equal where the rest
is at most one symbol.

mixing="add" is L_RNNT + alpha L_KD; "convex" is (1 - alpha) L_RNNT + alpha L_KD (the paper does not say).

**Which nodes teach?**  In the paper all do, kl_weighting="nodes".  But a trained network's paths keep to a narrow band
of the lattice, and what a student learns outside of it will never be asked.  kl_weighting="paths" (ours) weights each
node with its occupancy w(t,u), the probability that one of the student's paths, given the transcript, comes by:

        u = 0   u = 1                                            w for coin-tossing symbols, T = 3, U = 1: there are
    t = 0  1  --> 1/3      sum over nodes  w(t,u) KL(t,u)        three paths, equally probable, and each node has
    t = 1  2/3 -> 2/3      = the KL that a path collects,        the share of them that come by
    t = 2  1/3 -> 1          on average

The weights are constants, there is no gradient through them: otherwise the student could evade the teacher by not
going where they differ.  So the derivative is w (P_S - P_T).  This sum is many times smaller than that of all nodes, so
it wants a larger alpha, about 1; and nodes with w = 0 cost nothing (lattice_walk.py).

The teacher may have any joint width, but needs the same vocabulary, frames and labels: the same lattice.
"""

import numpy as np

from .lattice_walk import LatticeError, check_lattice, record_scalar, walk_lattice, wants_gradients
from .ragged import BLANK
from .rnnt_loss import log_softmax, log_sum, occupancies, utterances

ALPHA = 0.02
KINDS = ("full", "collapsed")
MIXINGS = ("add", "convex")
WEIGHTINGS = ("nodes", "paths")

# --- the definition, with both networks' logits in memory -----------------------------------------


def node_kl(student_logits, teacher_logits, label=None, kind="full"):
    """KL of one node: logits (V,); label is the transcript's next, or None in the last column.

    >>> print(round(node_kl(np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])), 6))
    0.173287
    >>> print(round(0.25 * np.log(0.25 / 0.5) + 0.5 * np.log(0.5 / 0.25) + 0.25 * np.log(1), 6))
    0.173287
    """
    student, teacher = log_softmax(student_logits), log_softmax(teacher_logits)
    if kind == "collapsed":
        student, teacher = collapse(student, label), collapse(teacher, label)
    pairs = zip(student, teacher, strict=True)
    return sum(np.exp(ln_T) * (ln_T - ln_S) for ln_S, ln_T in pairs if ln_T > -np.inf)  # 0 ln 0 is 0


def collapse(log_probs, label):
    """ln P of blank, of the label if there is one, and of everything else together."""
    classes = [BLANK] if label is None else [BLANK, label]
    rest = np.delete(log_probs, classes)
    return [*log_probs[classes], log_sum(rest) if len(rest) else -np.inf]


def kl_map(student_logits, teacher_logits, labels, kind="full"):
    """(T, U+1): the KL of every node of one utterance, from both networks' logits (T, U+1, V)."""
    next_labels = [*labels, None]
    return np.array([
        [node_kl(*pair, label, kind) for *pair, label in zip(student_row, teacher_row, next_labels, strict=True)]
        for student_row, teacher_row in zip(student_logits, teacher_logits, strict=True)
    ])  # fmt: skip


def materialised_kl_and_gradients(
    student, teacher, labels, lengths, label_lengths, kind="full", temperature=1.0, kl_weighting="nodes"
):  # fmt: skip
    """KL (B,), weighted, and the gradients of their sum with respect to the student's enc, pred, table and bias."""
    enc, pred, table, bias = student
    kl = []
    d_enc, d_pred, d_table, d_bias = (np.zeros_like(array) for array in student)
    for enc_rows, pred_rows, label_rows in utterances(lengths, label_lengths):
        hidden = np.tanh(enc[enc_rows][:, None] + pred[pred_rows][None])  # (T, U+1, J)
        teacher_hidden = np.tanh(teacher[0][enc_rows][:, None] + teacher[1][pred_rows][None])
        logits = hidden @ table.T + bias  # (T, U+1, V)
        weight = np.ones(logits.shape[:2])
        if kl_weighting == "paths":
            weight = occupancies(log_softmax(logits), labels[label_rows])
        scores = logits / temperature
        teacher_scores = (teacher_hidden @ teacher[2].T + teacher[3]) / temperature
        P_S, P_T = np.exp(log_softmax(scores)), np.exp(log_softmax(teacher_scores))
        d_logits = np.zeros_like(P_S)
        kl.append((weight * kl_map(scores, teacher_scores, labels[label_rows], kind)).sum())
        for t, u in np.ndindex(P_S.shape[:2]):
            label = labels[label_rows][u] if u < P_S.shape[1] - 1 else None
            wanted = P_T[t, u].copy()
            if kind == "collapsed":  # the teacher fixes the sum of the rest; inside it the student's shares stay
                rest = np.delete(np.arange(len(wanted)), [BLANK] if label is None else [BLANK, label])
                wanted[rest] = wanted[rest].sum() * P_S[t, u, rest] / P_S[t, u, rest].sum()
            d_logits[t, u] = weight[t, u] * (P_S[t, u] - wanted)
        d_logits = (d_logits / temperature).astype(enc.dtype)
        d_table += np.einsum("tuv,tuj->vj", d_logits, hidden)
        d_bias += d_logits.sum(axis=(0, 1))
        d_sum = (d_logits @ table) * (1 - hidden**2)  # (T, U+1, J)
        d_enc[enc_rows] = d_sum.sum(axis=1)
        d_pred[pred_rows] = d_sum.sum(axis=0)
    return np.array(kl), (d_enc, d_pred, d_table, d_bias)


# --- what training calls --------------------------------------------------------------------------


def distillation_loss(
    student, teacher, labels, lengths, label_lengths,
    alpha=ALPHA, temperature=1.0, kind="full", mixing="add", kl_weighting="nodes", **options,
):  # fmt: skip
    """Both losses together, computed by lattice_walk.py: (mean loss as a Tensor, RNN-T losses (B,), KL (B,), weighted).

    student: (enc, pred, table, bias) Tensors; teacher: the same as plain arrays, of its own joint width.
    options: chunk_bytes and keep_bytes of `walk_lattice`.
    """
    for name, value, known in (
        ("kind", kind, KINDS), ("mixing", mixing, MIXINGS), ("kl_weighting", kl_weighting, WEIGHTINGS)
    ):  # fmt: skip
        if value not in known:
            raise LatticeError(f"{name} must be one of {known}, not {value!r}")
    if not temperature > 0 or not 0 <= alpha < np.inf or (mixing == "convex" and alpha > 1):
        raise LatticeError(
            f"temperature must be above 0 and alpha at least 0 (at most 1 when mixing is convex), not"
            f" {temperature} and {alpha}"
        )
    arrays = tuple(np.ascontiguousarray(tensor.data) for tensor in student)
    teacher = tuple(np.ascontiguousarray(array) for array in teacher)
    labels, lengths, label_lengths = check_lattice(
        [("student", arrays), ("teacher", teacher)], labels, lengths, label_lengths
    )
    B = len(lengths)
    rnnt_weight = 1.0 if mixing == "add" else 1.0 - alpha
    losses, kl, grads = walk_lattice(
        arrays, labels, lengths, label_lengths, wants_gradients(student), rnnt_weight / B,
        teacher, kind, temperature, alpha / B, kl_weighting, **options,
    )  # fmt: skip
    loss = (rnnt_weight * losses + alpha * kl).mean()
    return record_scalar(loss, student, grads), losses, kl


def demo():
    import time

    from .tensor import Tensor

    half, quarter = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])
    print("student 1/2 1/4 1/4, teacher 1/4 1/2 1/4: KL = 1/4 ln 1/2 + 1/2 ln 2 = (ln 2) / 4")
    print(f"  {node_kl(half, quarter):.6f} = {np.log(2) / 4:.6f}")
    print("collapsed: the same when symbol 1 is the next label, and smaller in the last column, where 1 and 2 merge:")
    print(f"  {node_kl(half, quarter, 1, 'collapsed'):.6f}, {node_kl(half, quarter, None, 'collapsed'):.6f}")

    print("kl_weighting=paths: P(one of three equally probable paths comes by), 3 frames and 1 label:")
    print("  " + str(occupancies(np.log(np.full((3, 2, 2), 0.5)), [1]).round(3)).replace("\n", "\n  "))

    rng = np.random.default_rng(0)
    T, U, V = np.full(8, 50), np.full(8, 29), 256

    def network(J):
        shapes = ((T.sum(), J), ((U + 1).sum(), J), (V, J), (V,))
        return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]

    student, teacher = [Tensor(array, requires_grad=True) for array in network(128)], network(160)
    labels = rng.integers(1, V, U.sum())
    print(f"12000 nodes, V = {V}, joint widths 128 and 160, with gradients:")
    for kind in KINDS:
        distillation_loss(student, teacher, labels, T, U, kind=kind)  # compile
        start = time.perf_counter()
        _, losses, kl = distillation_loss(student, teacher, labels, T, U, kind=kind)
        elapsed = 1e3 * (time.perf_counter() - start)
        print(f"  {kind:9s}  RNN-T {losses.mean():.1f}, KL {kl.mean():.1f} per utterance, in {elapsed:.0f} ms")


if __name__ == "__main__":
    demo()
