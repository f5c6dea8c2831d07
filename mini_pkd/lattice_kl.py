"""Distillation over the lattice: at every node the student's distribution follows the teacher's.

The paper (arXiv 2210.00169) adds to the RNN-T loss

    L_KD = sum over nodes (t, u), sum over symbols k:  P_T(k|t,u) ln( P_T(k|t,u) / P_S(k|t,u) )

a *sum* over the nodes of an utterance, which is why a small weight (alpha = 0.02) is enough.  Its
derivative by the student's logits is P_S - P_T.  A temperature tau divides both networks' logits before
the softmax, and then the derivative is (P_S - P_T) / tau; no factor tau^2 is put in front.  The paper
uses tau = 1.

kind="collapsed" is the cheaper loss of Panchapagesan et al. (arXiv 2011.06110): only three classes per
node, blank, the transcript's next label, and the rest (two in the last column, which has no next label).
Merging symbols throws away what the teacher thinks of the rest; so collapsed <= full, and the two are equal
where the rest is at most one symbol: up to V = 3 symbols, in the columns that have a next label.

mixing="add" is L_RNNT + alpha L_KD; "convex" is (1 - alpha) L_RNNT + alpha L_KD (the paper does not say).

`materialised_kl_and_gradients` is the oracle.  `distillation_loss` hands the walk of rnnt_loss.py a
function that compares one chunk of the student's logits with the same chunk of the teacher's.  The teacher
may have any joint width, but needs the same vocabulary, frames and labels: the same lattice.
"""

import numpy as np
from numba import njit, prange

from mini_pkd.rnnt_loss import (
    BLANK,
    LatticeError,
    check_lattice,
    log_softmax,
    log_sum,
    record_scalar,
    utterances,
    walk,
    wants_gradients,
)
from mini_pkd.simd import REORDER, exp, kernel, row_max

ALPHA = 0.02
KINDS = ("full", "collapsed")
MIXINGS = ("add", "convex")


# ---------------------------------------------------------------------------------------------------
# The oracle: both networks' logits in memory
# ---------------------------------------------------------------------------------------------------


def node_kl(student_logits, teacher_logits, label=None, kind="full"):
    """KL of one node, by the definition: logits (V,), label None in the last column.

    >>> print(round(node_kl(np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25]), label=1), 6))
    0.173287
    >>> print(round(0.25 * np.log(0.25 / 0.5) + 0.5 * np.log(0.5 / 0.25) + 0.25 * np.log(1), 6))
    0.173287
    """
    student, teacher = log_softmax(student_logits), log_softmax(teacher_logits)
    if kind == "collapsed":
        student, teacher = collapse(student, label), collapse(teacher, label)
    return sum(np.exp(t) * (t - s) for s, t in zip(student, teacher, strict=True) if t > -np.inf)


def collapse(log_probs, label):
    """ln P of blank, of the label if there is one, and of everything else together."""
    classes = [BLANK] if label is None else [BLANK, label]
    rest = np.delete(log_probs, classes)
    return [*log_probs[classes], log_sum(rest) if len(rest) else -np.inf]


def materialised_kl_and_gradients(
    student, teacher, labels, lengths, label_lengths, kind="full", temperature=1.0
):  # fmt: skip
    """KL (B,) and the gradients of their sum by the student's enc, pred, table and bias."""
    enc, pred, table, bias = student
    kl = []
    d_enc, d_pred, d_table, d_bias = (np.zeros_like(array) for array in student)
    for enc_rows, pred_rows, label_rows in utterances(lengths, label_lengths):
        hidden = np.tanh(enc[enc_rows][:, None] + pred[pred_rows][None])  # (T, U+1, J)
        teacher_hidden = np.tanh(teacher[0][enc_rows][:, None] + teacher[1][pred_rows][None])
        scores = (hidden @ table.T + bias) / temperature  # (T, U+1, V)
        teacher_scores = (teacher_hidden @ teacher[2].T + teacher[3]) / temperature
        P, Q = np.exp(log_softmax(scores)), np.exp(log_softmax(teacher_scores))
        d_logits = np.zeros_like(P)
        total = 0.0
        for t, u in np.ndindex(P.shape[:2]):
            label = labels[label_rows][u] if u < P.shape[1] - 1 else None
            total += node_kl(scores[t, u], teacher_scores[t, u], label, kind)
            if kind == "full":
                d_logits[t, u] = P[t, u] - Q[t, u]
            else:  # through each class c: P_S(c) - P_T(c), shared among its symbols as the student does
                p, q = P[t, u], Q[t, u]
                alone = [BLANK] if label is None else [BLANK, label]
                rest = np.delete(np.arange(len(p)), alone)
                d_logits[t, u, alone] = (p - q)[alone]
                if len(rest):
                    d_logits[t, u, rest] = (p[rest].sum() - q[rest].sum()) * p[rest] / p[rest].sum()
        d_logits = (d_logits / temperature).astype(enc.dtype)
        kl.append(total)
        d_table += np.einsum("tuv,tuj->vj", d_logits, hidden)
        d_bias += d_logits.sum(axis=(0, 1))
        d_sum = (d_logits @ table) * (1 - hidden**2)
        d_enc[enc_rows] = d_sum.sum(axis=1)
        d_pred[pred_rows] = d_sum.sum(axis=0)
    return np.array(kl), (d_enc, d_pred, d_table, d_bias)


# ---------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------

@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def add_bias(row, bias):
    for k in range(row.shape[0]):
        row[k] += bias[k]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def exp_row(row, shift, scale):
    """row = exp((row - shift) * scale), in place; returns the sum."""
    total = shift - shift
    for k in range(row.shape[0]):
        e = exp((row[k] - shift) * scale)
        row[k] = e
        total += e
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def scale_row(row, factor):
    for k in range(row.shape[0]):
        row[k] *= factor


@kernel(weight=4)
def compare_full(logits, bias, teacher_logits, teacher_bias, node_labels, temperature, kl):
    """The KL of each node; in place, logits become the student's probabilities and teacher_logits the KL's
    gradient by the student's logits, (P_S - P_T) / tau.
    """
    one = logits.dtype.type(1)
    scale = logits.dtype.type(1 / temperature)
    for n in prange(logits.shape[0]):
        row, teacher_row = logits[n], teacher_logits[n]
        add_bias(row, bias)
        add_bias(teacher_row, teacher_bias)
        top, teacher_top = row_max(row), row_max(teacher_row)

        # KL = sum_k P_T(k) (x_T(k) - x_S(k)) - ln Z_T + ln Z_S, where x are the shifted and scaled logits
        Z = teacher_Z = cross = one - one
        if temperature == 1.0:
            for k in range(row.shape[0]):
                x, x_teacher = row[k] - top, teacher_row[k] - teacher_top
                e, e_teacher = exp(x), exp(x_teacher)
                Z += e
                teacher_Z += e_teacher
                cross += e_teacher * (x_teacher - x)
                row[k] = e
                teacher_row[k] = e_teacher
            p, p_teacher = one / Z, one / teacher_Z
            for k in range(row.shape[0]):
                row[k] *= p
                teacher_row[k] = row[k] - teacher_row[k] * p_teacher
            kl[n] = np.float64(cross) / teacher_Z - np.log(np.float64(teacher_Z)) + np.log(np.float64(Z))
        else:
            for k in range(row.shape[0]):
                x, x_teacher = (row[k] - top) * scale, (teacher_row[k] - teacher_top) * scale
                e_teacher = exp(x_teacher)
                Z += exp(x)
                teacher_Z += e_teacher
                cross += e_teacher * (x_teacher - x)
                teacher_row[k] = e_teacher
            p, p_teacher = scale / Z, scale / teacher_Z
            for k in range(row.shape[0]):
                teacher_row[k] = exp((row[k] - top) * scale) * p - teacher_row[k] * p_teacher
            kl[n] = np.float64(cross) / teacher_Z - np.log(np.float64(teacher_Z)) + np.log(np.float64(Z))
            Z = exp_row(row, top, one)  # the RNN-T loss itself knows no temperature
            scale_row(row, one / Z)


@njit(cache=True, nogil=True, error_model="numpy")  # no fastmath: teacher = student must give exact zeros
def class_log_probs(row, label, scale):
    """ln P of blank, label and rest under softmax(row * scale); the row becomes P(k) / P(rest), in place.

    The rest is summed by itself (blank and label are moved out of its way): 1 - P(blank) - P(label) would be
    nothing but rounding error once a network is sure of itself.
    """
    scale64 = np.float64(scale)
    far_below = row.dtype.type(-1e30)
    blank, said = scale64 * row[0], -np.inf
    row[0] = far_below
    if label >= 0:
        said = scale64 * row[label]
        row[label] = far_below
    top = row_max(row)
    total = exp_row(row, top, scale)
    scale_row(row, row.dtype.type(1) / total)

    rest = scale64 * top + np.log(np.float64(total))
    largest = max(rest, blank, said)
    log_Z = largest + np.log(np.exp(rest - largest) + np.exp(blank - largest) + np.exp(said - largest))
    return blank - log_Z, said - log_Z, rest - log_Z


@kernel(weight=4)
def compare_collapsed(logits, bias, teacher_logits, teacher_bias, node_labels, temperature, kl):
    """As compare_full, with three classes.  Of the teacher only three numbers are needed, so its row then
    serves for the gradient: P_S(c) - P_T(c) for class c, shared among the rest's symbols as P_S does.
    """
    one = logits.dtype.type(1)
    scale = logits.dtype.type(1 / temperature)
    for n in prange(logits.shape[0]):
        row, out = logits[n], teacher_logits[n]
        y = node_labels[n]
        add_bias(row, bias)
        add_bias(out, teacher_bias)
        t_blank, t_label, t_rest = class_log_probs(out, y, scale)
        for k in range(row.shape[0]):
            out[k] = row[k]
        s_blank, s_label, s_rest = class_log_probs(out, y, scale)
        t_blank_p, t_label_p, t_rest_p = np.exp(t_blank), np.exp(t_label), np.exp(t_rest)
        s_blank_p, s_label_p, s_rest_p = np.exp(s_blank), np.exp(s_label), np.exp(s_rest)
        kl[n] = t_blank_p * (t_blank - s_blank) + t_rest_p * (t_rest - s_rest)
        if y >= 0:
            kl[n] += t_label_p * (t_label - s_label)

        # row becomes P_S at temperature 1, for the RNN-T loss; out holds P_S(k) / P_S(rest) at tau
        if temperature == 1.0:
            p_rest = logits.dtype.type(s_rest_p)
            for k in range(row.shape[0]):
                row[k] = out[k] * p_rest
            row[0] = s_blank_p
            if y >= 0:
                row[y] = s_label_p
        else:
            Z = exp_row(row, row_max(row), one)
            scale_row(row, one / Z)
        scale_row(out, logits.dtype.type((s_rest_p - t_rest_p) / temperature))
        out[0] = (s_blank_p - t_blank_p) / temperature
        if y >= 0:
            out[y] = (s_label_p - t_label_p) / temperature


# ---------------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------------


def distillation_loss(
    student, teacher, labels, lengths, label_lengths,
    alpha=ALPHA, temperature=1.0, kind="full", mixing="add", **budgets,
):  # fmt: skip
    """RNN-T and distillation together: (mean loss as a Tensor, RNN-T losses (B,), KL (B,)).

    student: (enc, pred, table, bias) Tensors; teacher: the same as plain arrays, of its own joint width.
    budgets: chunk_bytes and keep_bytes of rnnt_loss.walk.
    """
    if kind not in KINDS or mixing not in MIXINGS:
        raise LatticeError(
            f"kind must be one of {KINDS} and mixing one of {MIXINGS}, not {kind!r} and {mixing!r}"
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
    compare_rows = compare_full if kind == "full" else compare_collapsed

    def compare(logits, bias, teacher_logits, teacher_bias, node_labels, kl):
        compare_rows(logits, bias, teacher_logits, teacher_bias, node_labels, float(temperature), kl)

    B = len(lengths)
    rnnt_weight = 1.0 if mixing == "add" else 1.0 - alpha
    losses, kl, grads = walk(
        arrays, labels, lengths, label_lengths, wants_gradients(student), rnnt_weight / B,
        teacher, compare, alpha / B, **budgets,
    )  # fmt: skip
    loss = (rnnt_weight * losses + alpha * kl).mean()
    return record_scalar(loss, student, grads), losses, kl


if __name__ == "__main__":
    import time

    from mini_pkd.tensor import Tensor

    half, quarter = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])
    print("student 1/2 1/4 1/4, teacher 1/4 1/2 1/4: KL = 1/4 ln 1/2 + 1/2 ln 2 = (ln 2) / 4")
    print(f"  {node_kl(half, quarter):.6f} = {np.log(2) / 4:.6f}")
    print("with symbol 1 as label nothing is merged; with 2 symbols merged some of it is no longer seen:")
    print(f"  {node_kl(half, quarter, 1, 'collapsed'):.6f}, {node_kl(half, quarter, None, 'collapsed'):.6f}")

    rng = np.random.default_rng(0)
    T, U, V = np.full(8, 50), np.full(8, 29), 256

    def network(J):
        shapes = ((T.sum(), J), ((U + 1).sum(), J), (V, J), (V,))
        return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]

    student, teacher = [Tensor(array, requires_grad=True) for array in network(128)], network(160)
    labels = rng.integers(1, V, U.sum())
    for kind in KINDS:
        distillation_loss(student, teacher, labels, T, U, kind=kind)  # compile
        start = time.perf_counter()
        _, losses, kl = distillation_loss(student, teacher, labels, T, U, kind=kind)
        elapsed = 1e3 * (time.perf_counter() - start)
        print(
            f"{kind}: 12000 nodes, V = {V}, widths 128 and 160, with gradients: {elapsed:.0f} ms;"
            f" RNN-T {losses.mean():.1f}, KL {kl.mean():.1f} per utterance"
        )
