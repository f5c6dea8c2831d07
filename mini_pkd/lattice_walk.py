"""The losses over the lattice as training computes them: in chunks of nodes, never all the logits at once.

rnnt_loss.py and lattice_kl.py say what is computed, in plain loops and with every logit in memory; this file does
the same for the whole batch in the memory of one chunk.  The logits of one utterance of the paper (200 frames, 51
columns, 10026 symbols) are 409 MB, so there are two walks over its nodes:

1. chunk by chunk, joint network -> logits; only three numbers per node are kept: ln P(blank), ln P(next label) and
   the log-normaliser ln Z.  Forward-backward needs no more than the first two, and says with which probability a
   path, given the transcript, takes the blank and the label of every node;
2. backwards over the chunks, logits again (the last chunk's are still there) -> gradients by the logits -> gradients
   by the joint's inputs and by the table.  The teacher, if there is one, is asked only here, beside the student.

**Nodes that no path comes near are left out of the second walk** when there is no teacher.  A node's gradient by
each logit is at most the probability that a path comes by, and |hidden| <= 1.  So leaving a node out changes no entry
of the table's gradient by more than that probability (of d_enc and d_pred: twice that times the table's largest
entry).  All that is left out of a batch has together less probability than float32 loses when it rounds one node of
probability 1 (`negligible`), and every frame has such a probability: the sums over the nodes do not notice.  It is
most of a long lattice, and the part that hurts: numbers below 1e-38 are "denormal", and a processor multiplies them
up to a hundred times slower.  A teacher is followed at every node, so with one every node stays.

Buffers have one meaning each.  The only array that changes its meaning is a chunk's `logits`, whose rows become
`d_logits` in place, in one kernel.  Row i of a chunk's matrices belongs to node `node_of[i]`, and `row_of` is the way
back (-1: left out).  All counts and offsets are int64.
"""

import numpy as np
from numba import njit, prange

from mini_pkd import UserError
from mini_pkd.simd import REORDER, exp, kernel, row_max, tanh

BLANK = 0
CHUNK_BYTES = 16 * 2**20  # logits alive at one time, teacher's included: about half of a common L3 cache
SYMBOLS = 1024  # rows of the table whose gradient is computed at one time
SMALLEST = np.float32(2.0**-126)  # the smallest float32 that is not denormal


class LatticeError(UserError, ValueError):
    """Lengths, labels and arrays that do not describe a lattice."""


def lattice_offsets(lengths, label_lengths):
    """Where each utterance starts, (B+1,) each: enc rows, pred rows, nodes, labels.

    Node (t, u) of utterance b is node_start[b] + t * (U_b + 1) + u.  int64 throughout: with 10026 symbols 21
    long utterances pass 2^31 logits, and int32 would wrap around without a word.

    >>> [start.tolist() for start in lattice_offsets([2, 3], [2, 0])]
    [[0, 2, 5], [0, 3, 4], [0, 6, 9], [0, 2, 2]]
    """
    T = np.asarray(lengths, dtype=np.int64)
    U = np.asarray(label_lengths, dtype=np.int64)
    return tuple(np.concatenate([[0], np.cumsum(count)]) for count in (T, U + 1, T * (U + 1), U))


def check_lattice(networks, labels, lengths, label_lengths):
    """Refuse, in one sentence, whatever would read outside an array or train on nonsense.

    networks: a list of (name, (enc, pred, table, bias)).  Returns labels, lengths, label_lengths as int64.
    """
    checked = []
    for name, array in (("labels", labels), ("lengths", lengths), ("label_lengths", label_lengths)):
        array = np.asarray(array)
        if array.size == 0:
            array = array.astype(np.int64)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise LatticeError(f"{name} must be a list of whole numbers, not {array.dtype} {array.shape}")
        checked.append(np.ascontiguousarray(array, dtype=np.int64))
    labels, lengths, label_lengths = checked
    if len(lengths) == 0 or len(lengths) != len(label_lengths):
        raise LatticeError(
            f"a batch needs as many lengths as label_lengths and at least one, not {len(lengths)} and"
            f" {len(label_lengths)}"
        )
    if lengths.min() < 1:
        raise LatticeError(f"utterance {lengths.argmin()} of the batch has no encoder rows: leave it out")
    if label_lengths.min() < 0 or label_lengths.sum() != len(labels):
        raise LatticeError(f"label_lengths must add up to the {len(labels)} labels, and be 0 or more each")

    V, dtype = networks[0][1][2].shape[0], networks[0][1][0].dtype
    for name, (enc, pred, table, bias) in networks:
        J = table.shape[-1]
        expected = ((lengths.sum(), J), ((label_lengths + 1).sum(), J), (V, J), (V,))
        shapes = (enc.shape, pred.shape, table.shape, bias.shape)
        if shapes != expected:
            plain = tuple(tuple(int(size) for size in shape) for shape in expected)
            raise LatticeError(f"{name}'s enc, pred, table, bias have shapes {shapes}, not {plain}")
        for array in (enc, pred, table, bias):
            if array.dtype != dtype or dtype not in (np.float32, np.float64):
                raise LatticeError(
                    f"{name}'s arrays must all be float32 or all float64, not {array.dtype} and {dtype}"
                )
    if len(labels) and (labels.min() <= BLANK or labels.max() >= V):
        wrong = labels[(labels <= BLANK) | (labels >= V)][0]
        raise LatticeError(f"label {wrong} is not in 1..{V - 1}: is this the vocabulary of this model?")
    return labels, lengths, label_lengths


# --- chunks ---------------------------------------------------------------------------------------------------


class Chunk:
    """Some nodes that are processed together: whole utterances, or some frames of one utterance.

    Either way it is a small ragged batch: block k has enc rows enc_start[k] .. enc_start[k+1], pred rows
    pred_start[k] .. pred_start[k+1] and all the nodes between them, from node_start[k] (0 in the chunk).
    nodes: the slice of its group's nodes.  labels: the label that leads on from each node, -1 where u = U.
    """

    def __init__(self, enc_start, pred_start, first_node, next_label):
        self.enc_start, self.pred_start = enc_start, pred_start
        frames, columns = np.diff(enc_start), np.diff(pred_start)
        self.node_start = np.concatenate([[0], np.cumsum(frames * columns)])
        self.size = int(self.node_start[-1])
        self.nodes = slice(first_node, first_node + self.size)
        rows = zip(pred_start[:-1], pred_start[1:], frames, strict=True)
        self.labels = np.concatenate([np.tile(next_label[a:z], T) for a, z, T in rows])
        self.all = np.arange(self.size)


def chunk_groups(lengths, label_lengths, labels, rows):
    """Cut the batch into groups that share one forward-backward: yields (first, last + 1, chunks).

    A group is some consecutive utterances of at most `rows` nodes together, in one chunk; or a longer utterance,
    in chunks of `rows`.
    """
    enc_start, pred_start, node_start, _ = lattice_offsets(lengths, label_lengths)
    next_label = np.full(pred_start[-1], -1, dtype=np.int64)
    has_next = np.ones(len(next_label), dtype=bool)
    has_next[pred_start[1:] - 1] = False
    next_label[has_next] = labels

    first = 0
    while first < len(lengths):
        last = first + 1
        while last < len(lengths) and node_start[last + 1] - node_start[first] <= rows:
            last += 1
        columns = label_lengths[first] + 1
        cuts = enc_start[[first, last]]
        if node_start[last] - node_start[first] > rows:
            cuts = np.array([*range(*cuts, max(1, rows // columns)), cuts[1]])
            pairs = [cuts[i : i + 2] for i in range(len(cuts) - 1)]
        else:
            pairs = [enc_start[first : last + 1]]
        yield first, last, [
            Chunk(pair, pred_start[first : last + 1], (pair[0] - cuts[0]) * columns, next_label) for pair in pairs
        ]
        first = last


def rows_of_nodes(taken, negligible, in_place):
    """Which nodes of a chunk get a row in the second walk: (node_of (rows,), row_of (nodes,), -1 if left out).

    taken: P(a path comes by), per node.  Where the logits of the first walk still stand (in_place), row i is node i
    as far as possible: only the rows that are free below the new height are filled from above it.  So each row is
    read and written by one iteration, whatever the threads do.

    >>> rows_of_nodes(np.array([0.0, 0.4, 0.0, 0.6, 1.0]), 1e-9, in_place=True)
    (array([3, 1, 4]), array([-1,  1, -1,  0,  2]))
    >>> rows_of_nodes(np.array([0.0, 0.4, 0.0, 0.6, 1.0]), 1e-9, in_place=False)[0]
    array([1, 3, 4])
    """
    kept = ~(taken <= negligible)  # so that a NaN stays, and is seen
    node_of = np.flatnonzero(kept)
    if in_place:
        height = len(node_of)
        above = node_of[node_of >= height]
        node_of = np.arange(height)
        node_of[~kept[:height]] = above
    row_of = np.full(len(taken), -1)
    row_of[node_of] = np.arange(len(node_of))
    return node_of, row_of


# --- kernels of the first walk ----------------------------------------------------------------------------------

# Sums in any order and fused multiply-adds are welcome in row kernels, where everything is finite;
# "no infinities" and "no NaNs" are not promised.  Forward-backward is compiled without any of it.


@kernel(weight=2)
def joint_hidden(enc, pred, enc_start, pred_start, node_start, row_of, hidden):
    """hidden[row] = tanh(enc[t] + pred[u]) for the nodes of a chunk that have a row; one iteration per enc row."""
    first = enc_start[0]
    for i in prange(enc_start[-1] - first):
        k = np.searchsorted(enc_start, first + i, side="right") - 1
        columns = pred_start[k + 1] - pred_start[k]
        node = node_start[k] + (first + i - enc_start[k]) * columns
        e = enc[first + i]
        for u in range(columns):
            if row_of[node + u] >= 0:
                p, h = pred[pred_start[k] + u], hidden[row_of[node + u]]
                for j in range(h.shape[0]):
                    h[j] = tanh(e[j] + p[j])


@kernel(weight=2)
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


# --- forward-backward -------------------------------------------------------------------------------------------


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
    """beta[0, 0], row by row; fills in with which probability a path at (t, u), given the transcript, takes the
    blank (go_on) and the label (speak): beta's two terms say so, and no exponential has to be taken again.
    """
    T, columns = blank.shape
    beta = np.full(columns, -np.inf)  # of the frame below: beyond the last one only the full transcript counts
    beta[-1] = 0.0
    for t in range(T - 1, -1, -1):
        beta[-1] += blank[t, -1]
        go_on[t, -1], speak[t, -1] = 1.0, 0.0
        for u in range(columns - 2, -1, -1):
            beta[u], go_on[t, u], speak[t, u] = log_add(blank[t, u] + beta[u], label[t, u] + beta[u + 1])
    return beta[0]


@kernel(weight=32, fastmath=False)
def forward_backward(blank, label, node_start, columns, go_on, speak, take_blank, take_label, totals):
    """Totals (B,), ln P of each transcript, and P(a path takes this blank / label | the transcript) of each node.

    blank, label and the four outputs: one float64 per node.  Utterances are independent: one iteration each.
    Backward in the log domain; then forward with plain probabilities, which only shrink: the probability that
    a path, given the transcript, comes by a node is what its neighbours above and to the left send there.
    That is exp(alpha + beta - total) of `readable`, without alpha.
    """
    for b in prange(columns.shape[0]):
        first, end, C = node_start[b], node_start[b + 1], columns[b]
        T = (end - first) // C
        blank_b, label_b = blank[first:end].reshape(T, C), label[first:end].reshape(T, C)
        go_on_b, speak_b = go_on[first:end].reshape(T, C), speak[first:end].reshape(T, C)
        take_blank_b, take_label_b = take_blank[first:end].reshape(T, C), take_label[first:end].reshape(T, C)
        totals[b] = lattice_beta(blank_b, label_b, go_on_b, speak_b)
        here = np.zeros(C + 1)
        here[0] = 1.0
        for t in range(T):
            for u in range(C):
                on, out = here[u] * go_on_b[t, u], here[u] * speak_b[t, u]
                take_blank_b[t, u], take_label_b[t, u] = on, out
                here[u] = on  # into the next frame
                here[u + 1] += out


# --- kernels of the second walk: logits become their gradients ----------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def flush(x):
    """Zero for a denormal number; a NaN stays one."""
    return x - x if abs(x) < SMALLEST else x


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def subtract_steps(d_row, at_blank, at_label, y):
    """The entries of d_row at blank and at label y, less what the path takes there."""
    d_row[0] = flush(d_row[0] - d_row.dtype.type(at_blank))
    if y >= 0:
        d_row[y] = flush(d_row[y] - d_row.dtype.type(at_label))


@kernel(weight=2)
def rnnt_gradient_rows(logits, source, node_of, bias, log_Z, node_labels, take_blank, take_label, weight):
    """Row i becomes the gradient of weight * loss by the logits of node_of[i]; its logits stand in row source[i].

    d ln P(k) / d logit(i) = [i = k] - P(i), and the loss falls by take_blank and take_label with ln P(blank) and
    ln P(label): (take_blank + take_label) P - take_blank [blank] - take_label [label].
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


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER)
def mix_rows(P, kl_row, at, c):
    """P becomes at * P + c * kl_row: the RNN-T loss's and the KL's gradient together."""
    for k in range(P.shape[0]):
        P[k] = flush(at * P[k] + c * kl_row[k])


@kernel(weight=4)
def distil_full(
    logits, bias, teacher_logits, teacher_bias, node_labels, temperature, take_blank, take_label, rnnt_weight,
    kl_weight, kl,
):  # fmt: skip
    """Logits become the gradient of rnnt_weight * RNN-T + kl_weight * KL by them, in place; kl gets a KL per node.

    The KL's part is (P_S - P_T) / tau.  teacher_logits serve as working space.
    """
    one = logits.dtype.type(1)
    scale = logits.dtype.type(1 / temperature)
    for n in prange(logits.shape[0]):
        row, teacher_row = logits[n], teacher_logits[n]
        add_bias(row, bias)
        add_bias(teacher_row, teacher_bias)
        top, teacher_top = row_max(row), row_max(teacher_row)
        at_blank, at_label = rnnt_weight * take_blank[n], rnnt_weight * take_label[n]
        at, c = flush(row.dtype.type(at_blank + at_label)), row.dtype.type(kl_weight)

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
        kl[n] = np.float64(cross) / teacher_Z - np.log(np.float64(teacher_Z)) + np.log(np.float64(Z))
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


@kernel(weight=4)
def distil_collapsed(
    logits, bias, teacher_logits, teacher_bias, node_labels, temperature, take_blank, take_label, rnnt_weight,
    kl_weight, kl,
):  # fmt: skip
    """As distil_full, with three classes.  Of the teacher only three numbers are needed, so its row then holds the
    KL's gradient: P_S(c) - P_T(c) for class c, shared among the rest's symbols as P_S does.
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
        mix_rows(row, out, flush(row.dtype.type(at_blank + at_label)), row.dtype.type(kl_weight))
        subtract_steps(row, at_blank, at_label, y)


@kernel(weight=2)
def joint_hidden_backward(d_hidden, hidden, enc_start, pred_start, node_start, row_of, d_enc, d_pred):
    """Through tanh (in place), then sum over columns into d_enc and over frames into d_pred.

    Every output row is written by one iteration and always in the same order, so threads change no bit.
    """
    first = enc_start[0]
    for i in prange(enc_start[-1] - first):
        k = np.searchsorted(enc_start, first + i, side="right") - 1
        columns = pred_start[k + 1] - pred_start[k]
        node = node_start[k] + (first + i - enc_start[k]) * columns
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
        k = np.searchsorted(pred_start, first + i, side="right") - 1
        columns = pred_start[k + 1] - pred_start[k]
        out = d_pred[first + i]
        for node in range(node_start[k] + first + i - pred_start[k], node_start[k + 1], columns):
            if row_of[node] >= 0:
                d = d_hidden[row_of[node]]
                for j in range(d.shape[0]):
                    out[j] += d[j]


# --- the walk -------------------------------------------------------------------------------------------------

_scratch = {}  # large buffers live on between calls: fresh memory costs a page fault every 4 kB


def scratch(name, rows, columns, dtype):
    """A (rows, columns) array that is valid until the next request of the same name.  Not thread-safe."""
    key, size = (name, np.dtype(dtype)), rows * columns
    if key not in _scratch or _scratch[key].size < size:
        _scratch[key] = None  # let the old one go before the new one comes
        _scratch[key] = np.empty(-(-size // 2**18) * 2**18, dtype)  # a little more is asked for next time
    return _scratch[key][:size].reshape(rows, columns)


def walk_lattice(
    student, labels, lengths, label_lengths, gradients=True, rnnt_weight=1.0,
    teacher=None, kind="full", temperature=1.0, kl_weight=0.0, chunk_bytes=None, negligible=None,
):  # fmt: skip
    """Loss, and gradients of the joint network's four inputs, without ever holding all the logits.

    student, teacher    (enc, pred, table, bias) arrays; the teacher may be None, and has its own width
    kind, temperature   of the KL, see lattice_kl.py
    chunk_bytes         logits (both networks') that are alive together
    negligible          without a teacher, a node gets no gradient if a path comes by with at most this probability;
                        by default so little that float32 (or float64) sums do not notice; 0 keeps all that are visited

    Returns RNN-T losses (B,), KL (B,), and the gradients of
    rnnt_weight * sum of losses + kl_weight * sum of KL by enc, pred, table and bias, or None.
    """
    enc, _, table, bias = student
    V, J = table.shape
    B = len(lengths)
    if negligible is None:
        negligible = np.finfo(enc.dtype).eps / (lengths * (label_lengths + 1)).sum()
    # At least J rows: each chunk adds a (V, J) product into d_table, which should not cost more than the
    # (rows, V) logits themselves.
    together = V * enc.itemsize * (1 if teacher is None else 2)
    rows = max((CHUNK_BYTES if chunk_bytes is None else chunk_bytes) // together, J)
    groups = list(chunk_groups(lengths, label_lengths, labels, rows))
    largest = max(chunk.size for _, _, chunks in groups for chunk in chunks)

    losses, kl_sums = np.empty(B), np.zeros(B)
    grads = tuple(np.zeros_like(array) for array in student) if gradients else None
    distil = distil_full if kind == "full" else distil_collapsed

    def matrix(name, height, width):
        return scratch(name, largest, width, enc.dtype)[:height]

    def joint(network, chunk, row_of, height, name):
        """hidden and logits of those nodes of a chunk that have a row."""
        enc, pred, table, _ = network
        hidden = matrix(name + " hidden", height, table.shape[1])
        joint_hidden(enc, pred, chunk.enc_start, chunk.pred_start, chunk.node_start, row_of, hidden)
        return hidden, np.matmul(hidden, table.T, out=matrix(name + " logits", height, V))

    for first, last, chunks in groups:
        N = chunks[-1].nodes.stop
        blank, label, log_Z, go_on, speak, take_blank, take_label, kl = scratch("nodes", 8, N, np.float64)
        for chunk in chunks:
            at = chunk.nodes
            hidden, logits = joint(student, chunk, chunk.all, chunk.size, "student")
            score_nodes(logits, bias, chunk.labels, blank[at], label[at], log_Z[at])

        columns = label_lengths[first:last] + 1
        node_start = np.concatenate([[0], np.cumsum(lengths[first:last] * columns)])
        totals = np.empty(last - first)
        forward_backward(blank, label, node_start, columns, go_on, speak, take_blank, take_label, totals)
        losses[first:last] = -totals

        for chunk in reversed(chunks) if gradients or teacher is not None else ():
            at, in_place = chunk.nodes, chunk is chunks[-1]
            if teacher is not None:
                node_of = row_of = chunk.all
                if not in_place:
                    hidden, logits = joint(student, chunk, row_of, chunk.size, "student")
                _, teacher_logits = joint(teacher, chunk, row_of, chunk.size, "teacher")
                distil(
                    logits, bias, teacher_logits, teacher[3], chunk.labels, float(temperature), take_blank[at],
                    take_label[at], float(rnnt_weight), float(kl_weight), kl[at],
                )  # fmt: skip
            else:
                node_of, row_of = rows_of_nodes(take_blank[at] + take_label[at], negligible, in_place)
                if in_place:
                    moved = np.flatnonzero(node_of >= len(node_of))
                    hidden[moved] = hidden[node_of[moved]]
                else:
                    hidden, logits = joint(student, chunk, row_of, len(node_of), "student")
                rnnt_gradient_rows(
                    logits, node_of if in_place else row_of[node_of], node_of, bias, log_Z[at], chunk.labels,
                    take_blank[at], take_label[at], float(rnnt_weight),
                )  # fmt: skip
            if gradients:
                height = len(node_of)
                d_hidden = matrix("d_hidden", height, J)
                joint_backward(logits[:height], hidden[:height], table, chunk, row_of, d_hidden, grads)
        if teacher is not None:
            kl_sums[first:last] = np.add.reduceat(kl, node_start[:-1])
    return losses, kl_sums, grads


def joint_backward(d_logits, hidden, table, chunk, row_of, d_hidden, grads):
    """From a chunk's d_logits (rows, V) into the gradients of the joint's inputs."""
    d_enc, d_pred, d_table, d_bias = grads
    d_bias += np.ones(len(hidden), hidden.dtype) @ d_logits  # .sum(0) would use one thread
    for start in range(0, len(table), SYMBOLS):  # a block's product is still in the cache when it is added
        block = slice(start, min(start + SYMBOLS, len(table)))
        product = scratch("d_table", block.stop - start, table.shape[1], table.dtype)
        d_table[block] += np.matmul(d_logits[:, block].T, hidden, out=product)
    np.matmul(d_logits, table, out=d_hidden)
    joint_hidden_backward(
        d_hidden, hidden, chunk.enc_start, chunk.pred_start, chunk.node_start, row_of, d_enc, d_pred
    )
