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

**Which nodes teach?**  In the paper every node counts 1, kl_weighting="nodes".  But the paths of a trained student keep
to few nodes, and most of that sum comes from nodes where they never go.  kl_weighting="paths" (ours) weights each KL
with the node's occupancy w(t, u), the probability that a path of the transcript comes by, under the student:

               u = 0        u = 1
    t = 0        1  -------> 3/4        here three paths of four say the label in the first frame;
                 |            |         each comes by T + U = 3 nodes, so the weights add up to 3, and
                 v            v         sum of w KL  =  the KL that a path meets on its way, on average
    t = 1       1/4 ------->  1

Temperature does not change w.  The gradient takes w as given, w (P_S - P_T) / tau: with a gradient through w as well, a
student could escape the teacher by leading its paths around the nodes where the two disagree.  This sum counts T + U
nodes in place of T (U + 1) and wants a larger alpha.

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
    """The KL of every node, (T, U+1), of both networks' logits (T, U+1, V): a map of where they disagree."""
    columns = list(zip([*labels, None], range(len(labels) + 1), strict=True))
    pairs = zip(student_logits, teacher_logits, strict=True)
    return np.array([[node_kl(s[u], t[u], label, kind) for label, u in columns] for s, t in pairs])


def materialised_kl_and_gradients(
    student, teacher, labels, lengths, label_lengths, kind="full", temperature=1.0, kl_weighting="nodes"
):  # fmt: skip
    """Weighted KL (B,) and the gradients of their sum with respect to the student's enc, pred, table and bias."""
    enc, pred, table, bias = student
    kl = []
    d_enc, d_pred, d_table, d_bias = (np.zeros_like(array) for array in student)
    for enc_rows, pred_rows, label_rows in utterances(lengths, label_lengths):
        hidden = np.tanh(enc[enc_rows][:, None] + pred[pred_rows][None])  # (T, U+1, J)
        teacher_hidden = np.tanh(teacher[0][enc_rows][:, None] + teacher[1][pred_rows][None])
        logits = hidden @ table.T + bias  # (T, U+1, V)
        scores, teacher_scores = logits / temperature, (teacher_hidden @ teacher[2].T + teacher[3]) / temperature
        nodes_kl = kl_map(scores, teacher_scores, labels[label_rows], kind)  # (T, U+1)
        weight = np.ones_like(nodes_kl)
        if kl_weighting == "paths":
            weight = occupancies(log_softmax(logits), labels[label_rows])
        kl.append((weight * nodes_kl).sum())
        P_S, P_T = np.exp(log_softmax(scores)), np.exp(log_softmax(teacher_scores))
        d_logits = np.zeros_like(P_S)
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
    """Both losses together, computed by lattice_walk.py: (mean loss as a Tensor, RNN-T losses (B,), weighted KL (B,)).

    student: (enc, pred, table, bias) Tensors; teacher: the same as plain arrays, of its own joint width.
    options: chunk_bytes, keep_bytes and negligible of `walk_lattice`.
    """
    if kind not in KINDS or mixing not in MIXINGS or kl_weighting not in WEIGHTINGS:
        raise LatticeError(
            f"kind must be one of {KINDS}, mixing one of {MIXINGS} and kl_weighting one of {WEIGHTINGS}, not"
            f" {kind!r}, {mixing!r} and {kl_weighting!r}"
        )
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

    coins = np.log(np.full((2, 2, 2), 0.5))  # (T, U+1, V), as in the picture above
    coins[0, 0] = teacher = np.log([0.25, 0.75])
    weight, kl = occupancies(coins, [1]), kl_map(coins, np.tile(teacher, (2, 2, 1)), [1])
    print("a teacher of 1/4 3/4 at each node; the student agrees in the first one and tosses fair coins in the others:")
    for t in range(2):
        print("    KL {:.6f} {:.6f}    occupancy {:.2f} {:.2f}".format(*kl[t], *weight[t]))
    print(f"  sum over nodes {kl.sum():.6f} = 3 x {kl[1, 1]:.6f}, along a path {(weight * kl).sum():.6f} = 2 x that")

    rng = np.random.default_rng(0)
    T, U, V = np.full(8, 50), np.full(8, 29), 256

    def network(J):
        shapes = ((T.sum(), J), ((U + 1).sum(), J), (V, J), (V,))
        return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]

    student, teacher = [Tensor(array, requires_grad=True) for array in network(128)], network(160)
    labels = rng.integers(1, V, U.sum())
    print(f"12000 nodes, V = {V}, joint widths 128 and 160, with gradients:")
    for kind, kl_weighting in (("full", "nodes"), ("full", "paths"), ("collapsed", "nodes"), ("collapsed", "paths")):
        options = dict(kind=kind, kl_weighting=kl_weighting)
        distillation_loss(student, teacher, labels, T, U, **options)  # compile
        start = time.perf_counter()
        _, losses, kl = distillation_loss(student, teacher, labels, T, U, **options)
        elapsed = 1e3 * (time.perf_counter() - start)
        print(f"  {kind:9s} {kl_weighting}  RNN-T {losses.mean():.1f}, KL {kl.mean():.1f}, in {elapsed:.0f} ms")


if __name__ == "__main__":
    demo()
