"""The kernels of the lattice: scores of nodes, forward-backward, and logits that become their gradients.

What they compute stands in plain loops in rnnt_loss.py (`readable`) and lattice_kl.py (`node_kl`); lattice_walk.py
calls them chunk by chunk.  A row belongs to a node of the chunk: `row_of[node]` is its row, -1 if the node has none,
and `node_of[row]` is the way back.  Outputs per node are float64.
"""

import numpy as np
from numba import njit, prange

from .simd import REORDER, exp, kernel, row_max, tanh

# Their readable partners stand in lesson files that import this one, hence words.
JOINT = "rnnt_loss.materialised_loss_and_gradients: hidden and d_sum, a line each"
KL = "lattice_kl.node_kl and materialised_kl_and_gradients"
SMALLEST = np.float32(2.0**-126)  # the smallest float32 that is not denormal


# --- kernels of the first walk --------------------------------------------------------------------

# Sums in any order and fused multiply-adds are welcome in row kernels, where everything is finite;
# "no infinities" and "no NaNs" are not promised.  Forward-backward is compiled without any of it.


@kernel(weight=2, readable=JOINT)
def joint_hidden(enc, pred, enc_start, pred_start, node_start, row_of, hidden):
    """hidden[row] = tanh(enc[t] + pred[u]) for the nodes of a chunk that have a row; one iteration per enc row."""
    first = enc_start[0]
    for i in prange(enc_start[-1] - first):
        b = np.searchsorted(enc_start, first + i, side="right") - 1
        columns = pred_start[b + 1] - pred_start[b]
        node = node_start[b] + (first + i - enc_start[b]) * columns
        e = enc[first + i]
        for u in range(columns):
            if row_of[node + u] >= 0:
                p, h = pred[pred_start[b] + u], hidden[row_of[node + u]]
                for j in range(h.shape[0]):
                    h[j] = tanh(e[j] + p[j])


@kernel(weight=2, readable="rnnt_loss.log_softmax, and of its result two columns")
def score_nodes(logits, bias, node_labels, blank, label, log_Z):
    """ln P(blank), ln P(label) and the log-normaliser of each node; the logits come without their bias."""
    for n in prange(logits.shape[0]):
        row = logits[n]
        largest = row[0] + bias[0]
        for k in range(row.shape[0]):
            largest = max(largest, row[k] + bias[k])
        total = largest - largest
        for k in range(row.shape[0]):
            total += exp(row[k] + bias[k] - largest)
        y, log_total = node_labels[n], np.log(np.float64(total))
        blank[n] = np.float64(row[0] + bias[0] - largest) - log_total
        label[n] = np.float64(row[y] + bias[y] - largest) - log_total if y >= 0 else -np.inf
        log_Z[n] = np.float64(largest) + log_total


# --- forward-backward -----------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def log_add(a, b):
    """ln(exp(a) + exp(b)), and the shares of both in that sum; also for -inf: hence no fastmath here."""
    if b == -np.inf:
        return a, 1.0, 0.0
    if a == -np.inf:
        return b, 0.0, 1.0
    less = np.exp(-abs(a - b))
    more, less = 1 / (1 + less), less / (1 + less)
    if a > b:
        return a - np.log(more), more, less
    return b - np.log(more), less, more


@njit(cache=True, nogil=True)
def lattice_beta(blank, label, go_on, speak):
    """beta[0, 0], row by row.  Fills in the probabilities that a path at (t, u), given the transcript, takes the blank
    (go_on) and the label (speak): they are the shares of beta's two terms, so they need no further exponential.
    """
    T, columns = blank.shape
    beta = np.full(columns, -np.inf)  # of the frame below; after the last frame nothing may be left to say
    beta[-1] = 0.0
    for t in range(T - 1, -1, -1):
        beta[-1] += blank[t, -1]
        go_on[t, -1], speak[t, -1] = 1.0, 0.0
        for u in range(columns - 2, -1, -1):
            beta[u], go_on[t, u], speak[t, u] = log_add(blank[t, u] + beta[u], label[t, u] + beta[u + 1])
    return beta[0]


@kernel(weight=32, fastmath=False, readable="rnnt_loss.readable")
def forward_backward(blank, label, node_start, columns, go_on, speak, take_blank, take_label, totals):
    """Totals (B,), ln P of each transcript, and P(a path takes this blank / label | the transcript) of each node.

    blank, label and the four outputs: one float64 per node.  Utterances are independent: one iteration each.
    First beta, in the log domain; then forward with plain probabilities, which cannot overflow: the probability that a
    path comes by a node, given the transcript, is the sum of what the nodes above and to the left send there.  It is
    exp(alpha + beta - total) of `readable`, computed without alpha.
    """
    for b in prange(columns.shape[0]):
        first, end, width = node_start[b], node_start[b + 1], columns[b]
        T = (end - first) // width
        blank_b, label_b = blank[first:end].reshape(T, width), label[first:end].reshape(T, width)
        go_on_b, speak_b = go_on[first:end].reshape(T, width), speak[first:end].reshape(T, width)
        take_blank_b, take_label_b = take_blank[first:end].reshape(T, width), take_label[first:end].reshape(T, width)
        totals[b] = lattice_beta(blank_b, label_b, go_on_b, speak_b)
        here = np.zeros(width + 1)
        here[0] = 1.0
        for t in range(T):
            for u in range(width):
                on, out = here[u] * go_on_b[t, u], here[u] * speak_b[t, u]
                take_blank_b[t, u], take_label_b[t, u] = on, out
                here[u] = on  # into the next frame
                here[u + 1] += out


# --- kernels of the second walk: logits become their gradients ------------------------------------


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def flush(x):
    """Zero for a denormal number; a NaN stays one."""
    return x - x if abs(x) < SMALLEST else x


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def subtract_steps(d_row, at_blank, at_label, y):
    """Subtract from d_row the probabilities that a path takes the blank and the label y."""
    d_row[0] = flush(d_row[0] - d_row.dtype.type(at_blank))
    if y >= 0:
        d_row[y] = flush(d_row[y] - d_row.dtype.type(at_label))


@kernel(weight=2, readable="rnnt_loss.readable, and the line through log-softmax behind it")
def rnnt_gradient_rows(logits, source, node_of, bias, log_Z, node_labels, take_blank, take_label, weight):
    """Row i becomes the gradient of weight * loss by the logits of node_of[i], which stand in row source[i].

    d ln P(k) / d logit(j) = [j = k] - P(j), and the loss's derivatives by ln P(blank) and ln P(label) are -take_blank
    and -take_label.  Together: (take_blank + take_label) P(j) - take_blank [j = blank] - take_label [j = label].
    """
    for i in prange(node_of.shape[0]):
        n = node_of[i]
        row, out = logits[source[i]], logits[i]
        at_blank, at_label = weight * take_blank[n], weight * take_label[n]
        at, shift = row.dtype.type(at_blank + at_label), row.dtype.type(log_Z[n])
        for k in range(row.shape[0]):
            out[k] = flush(at * exp(row[k] + bias[k] - shift))
        subtract_steps(out, at_blank, at_label, node_labels[n])


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def add_bias(row, bias, out):
    for k in range(row.shape[0]):
        out[k] = row[k] + bias[k]


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


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def mix_rows(P, kl_row, at, c):
    """P becomes at * P + c * kl_row: the RNN-T loss's and the KL's gradient together."""
    for k in range(P.shape[0]):
        P[k] = flush(at * P[k] + c * kl_row[k])


@kernel(weight=4, readable=KL)
def distil_full(
    logits, source, node_of, bias, teacher_logits, teacher_bias, node_labels, temperature, take_blank, take_label,
    rnnt_weight, kl_weight, node_weight, kl,
):  # fmt: skip
    """Row i becomes the gradient of rnnt_weight * RNN-T + kl_weight * KL by the logits of node_of[i], which stand in
    row source[i] (the teacher's in row i).  kl gets node_weight times the KL of each of these nodes.

    The KL's part is node_weight (P_S - P_T) / tau.  teacher_logits serve as working space.
    """
    one = logits.dtype.type(1)
    scale = logits.dtype.type(1 / temperature)
    for i in prange(node_of.shape[0]):
        n, row, teacher_row = node_of[i], logits[i], teacher_logits[i]
        add_bias(logits[source[i]], bias, row)
        add_bias(teacher_row, teacher_bias, teacher_row)
        top, teacher_top = row_max(row), row_max(teacher_row)
        at_blank, at_label = rnnt_weight * take_blank[n], rnnt_weight * take_label[n]
        at, c = flush(row.dtype.type(at_blank + at_label)), flush(row.dtype.type(kl_weight * node_weight[n]))

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
                P = row[k] * p
                row[k] = flush(at * P + c * (P - teacher_row[k] * p_teacher))
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
            at /= exp_row(row, top, one)  # the RNN-T loss itself knows no temperature
            mix_rows(row, teacher_row, at, c)
        divergence = np.float64(cross) / teacher_Z - np.log(np.float64(teacher_Z)) + np.log(np.float64(Z))
        kl[n] = node_weight[n] * divergence
        subtract_steps(row, at_blank, at_label, node_labels[n])


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


@kernel(weight=4, readable=KL)
def distil_collapsed(
    logits, source, node_of, bias, teacher_logits, teacher_bias, node_labels, temperature, take_blank, take_label,
    rnnt_weight, kl_weight, node_weight, kl,
):  # fmt: skip
    """As distil_full, with three classes.  Once the teacher's three numbers are known, its row holds the KL's gradient:
    P_S(c) - P_T(c) for class c, and in the rest each symbol's share of it, P_S(k) / P_S(rest).
    """
    one = logits.dtype.type(1)
    scale = logits.dtype.type(1 / temperature)
    for i in prange(node_of.shape[0]):
        n, row, out = node_of[i], logits[i], teacher_logits[i]
        y = node_labels[n]
        add_bias(logits[source[i]], bias, row)
        add_bias(out, teacher_bias, out)
        t_blank, t_label, t_rest = class_log_probs(out, y, scale)
        for k in range(row.shape[0]):
            out[k] = row[k]
        s_blank, s_label, s_rest = class_log_probs(out, y, scale)
        t_blank_p, t_label_p, t_rest_p = np.exp(t_blank), np.exp(t_label), np.exp(t_rest)
        s_blank_p, s_label_p, s_rest_p = np.exp(s_blank), np.exp(s_label), np.exp(s_rest)
        divergence = t_blank_p * (t_blank - s_blank) + t_rest_p * (t_rest - s_rest)
        if y >= 0:
            divergence += t_label_p * (t_label - s_label)
        kl[n] = node_weight[n] * divergence

        # P_S at temperature 1 for the RNN-T loss: in row; P_S(k) / P_S(rest) at tau: in out
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

        at_blank, at_label = rnnt_weight * take_blank[n], rnnt_weight * take_label[n]
        at, c = flush(row.dtype.type(at_blank + at_label)), flush(row.dtype.type(kl_weight * node_weight[n]))
        mix_rows(row, out, at, c)
        subtract_steps(row, at_blank, at_label, y)


@kernel(weight=2, readable=JOINT)
def joint_hidden_backward(d_hidden, hidden, enc_start, pred_start, node_start, row_of, d_enc, d_pred):
    """Through tanh (in place), then sum over columns into d_enc and over frames into d_pred.

    Every output row is written by one iteration and always in the same order, so threads change no bit.
    """
    first = enc_start[0]
    for i in prange(enc_start[-1] - first):
        b = np.searchsorted(enc_start, first + i, side="right") - 1
        columns = pred_start[b + 1] - pred_start[b]
        node = node_start[b] + (first + i - enc_start[b]) * columns
        out = d_enc[first + i]
        for u in range(columns):
            if row_of[node + u] >= 0:
                d, h = d_hidden[row_of[node + u]], hidden[row_of[node + u]]
                for j in range(h.shape[0]):
                    x = d[j] - d[j] * h[j] * h[j]
                    d[j] = x
                    out[j] += x
    first = pred_start[0]
    for i in prange(pred_start[-1] - first):
        b = np.searchsorted(pred_start, first + i, side="right") - 1
        columns = pred_start[b + 1] - pred_start[b]
        out = d_pred[first + i]
        for node in range(node_start[b] + first + i - pred_start[b], node_start[b + 1], columns):
            if row_of[node] >= 0:
                d = d_hidden[row_of[node]]
                for j in range(d.shape[0]):
                    out[j] += d[j]
