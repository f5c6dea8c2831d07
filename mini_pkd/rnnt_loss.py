"""The RNN-T loss: minus the log-probability of a transcript, summed over every way to align it.

A transducer walks a lattice.  At node (t, u) it has consumed t frames and said u labels, and its joint
network gives a distribution over V symbols there.  Symbol 0, blank, moves on to the next frame; the
transcript's next label moves on to the next column, in the same frame:

        u = 0        u = 1        u = 2
          | - blank -> t + 1
          |
     -- label -> u + 1

A path starts at (0, 0), and ends with the blank of the last node (T-1, U).  The loss is
-ln sum over paths of the product of their probabilities (Graves 2012, arXiv 1211.3711).

The file is a ladder; each step is tested against the one above:

1. `brute_force`: adds up all the paths, one at a time;
2. `readable`: the alpha / beta recursions in plain loops, with the gradient;
3. `materialised_loss_and_gradients`: the same behind a joint network, all logits in one array;
4. `walk`: what training uses.  The logits of one utterance of the paper (200 frames, 51 columns, 10026
   symbols) are 409 MB, so they are made in chunks of nodes: hidden = tanh(enc[t] + pred[u]), one matrix
   product, log-softmax, and only two numbers per node are kept, ln P(blank) and ln P(next label).
   Forward-backward needs no more.  Then gradients, again chunk by chunk; here lattice_kl.py puts a teacher
   into the same chunks.

Conventions: `logits` are raw scores, `log_probs` are normalised.  Rows are ragged: utterance b has T_b
rows of `enc`, U_b + 1 rows of `pred` and U_b labels, end to end.  All counts and offsets are int64.
Left out: restricting the lattice to a band, and FastEmit-like regularisers.
"""

import itertools

import numpy as np
from numba import njit, prange

from mini_pkd import UserError
from mini_pkd.simd import exp, kernel, row_max, tanh
from mini_pkd.tensor import is_recording, record
from mini_pkd.threads import matmul

BLANK = 0
CHUNK_BYTES = 16 * 2**20  # logits alive at one time, teacher's included: about half of a common L3 cache
SYMBOLS = 1024  # rows of the table whose gradient is computed at one time
KEEP_BYTES = 128 * 2**20  # of a longer utterance's logits this much is kept, the rest is computed twice


class LatticeError(UserError, ValueError):
    """Lengths, labels and arrays that do not describe a lattice."""


# ---------------------------------------------------------------------------------------------------
# 1. All paths, one at a time
# ---------------------------------------------------------------------------------------------------


def log_sum(terms):
    """ln of a sum of exponentials, without overflow."""
    largest = max(terms)
    return largest if largest == -np.inf else largest + np.log(sum(np.exp(term - largest) for term in terms))


def brute_force(log_probs, labels):
    """The definition itself: -ln of the sum over all paths.  log_probs (T, U+1, V), labels (U,).

    A path is an order of T blanks and U labels that ends with a blank: (T-1+U choose U) of them.

    >>> half = np.log(np.full((2, 2, 2), 0.5))  # 2 frames, 1 label: two paths of three fair coin tosses
    >>> print(round(brute_force(half, [1]), 6), round(-np.log(2 * 0.5**3), 6))
    1.386294 1.386294
    """
    T, columns, _ = log_probs.shape
    U = columns - 1
    paths = []
    for label_steps in itertools.combinations(range(T - 1 + U), U):
        t = u = 0
        total = 0.0
        for step in range(T - 1 + U):
            if step in label_steps:
                total += log_probs[t, u, labels[u]]
                u += 1
            else:
                total += log_probs[t, u, BLANK]
                t += 1
        paths.append(total + log_probs[t, u, BLANK])  # (t, u) is now (T-1, U)
    return -log_sum(paths)


# ---------------------------------------------------------------------------------------------------
# 2. The lesson: alpha, beta, and what they say about the gradient
# ---------------------------------------------------------------------------------------------------


def readable(log_probs, labels):
    """Loss and d loss / d log_probs by the forward and backward variables.  log_probs (T, U+1, V).

    alpha[t, u] = ln P(some path reaches (t, u)); a node is reached from the left or from above (eq. 16):
        alpha[t, u] = ln( exp(alpha[t-1, u] + blank[t-1, u]) + exp(alpha[t, u-1] + label[t, u-1]) )
    beta[t, u]  = ln P(the rest is said | we are at (t, u)), the same from the far end (eq. 18):
        beta[t, u]  = ln( exp(blank[t, u] + beta[t+1, u]) + exp(label[t, u] + beta[t, u+1]) )
    Both give the total: alpha[T-1, U] + blank[T-1, U] (eq. 17) and beta[0, 0].

    The loss's derivative by the log-probability of one step is minus the probability that a path, given
    the transcript, takes this step (eq. 20 in log space): everything before it, the step, everything after:
        -exp( alpha[t, u] + blank[t, u] + beta[t+1, u] - total )
    Only blanks and next labels occur in paths: all other entries of the gradient are zero.
    """
    T, columns, _ = log_probs.shape
    U = columns - 1

    alpha = np.full((T, columns), -np.inf)
    for t in range(T):
        for u in range(columns):
            ways = [0.0] if t == u == 0 else []
            if t > 0:
                ways.append(alpha[t - 1, u] + log_probs[t - 1, u, BLANK])
            if u > 0:
                ways.append(alpha[t, u - 1] + log_probs[t, u - 1, labels[u - 1]])
            alpha[t, u] = log_sum(ways)

    beta = np.full((T + 1, columns), -np.inf)  # one row more: beyond the last frame ...
    beta[T, U] = 0.0  # ... only the full transcript counts
    for t in reversed(range(T)):
        for u in reversed(range(columns)):
            ways = [log_probs[t, u, BLANK] + beta[t + 1, u]]
            if u < U:
                ways.append(log_probs[t, u, labels[u]] + beta[t, u + 1])
            beta[t, u] = log_sum(ways)

    total = alpha[T - 1, U] + log_probs[T - 1, U, BLANK]
    gradient = np.zeros(log_probs.shape)
    for t in range(T):
        for u in range(columns):
            gradient[t, u, BLANK] = -np.exp(alpha[t, u] + log_probs[t, u, BLANK] + beta[t + 1, u] - total)
            if u < U:
                label = labels[u]
                gradient[t, u, label] = -np.exp(alpha[t, u] + log_probs[t, u, label] + beta[t, u + 1] - total)
    return -total, gradient


# ---------------------------------------------------------------------------------------------------
# 3. The oracle: the joint network with every logit in memory
# ---------------------------------------------------------------------------------------------------


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def utterances(lengths, label_lengths):
    """Slices of enc rows, pred rows and labels, utterance by utterance."""
    enc_start, pred_start, _, label_start = lattice_offsets(lengths, label_lengths)
    for b in range(len(lengths)):
        yield tuple(slice(start[b], start[b + 1]) for start in (enc_start, pred_start, label_start))


def materialised_loss_and_gradients(enc, pred, table, bias, labels, lengths, label_lengths):
    """Losses (B,) and the gradients of their sum with respect to enc, pred, table and bias."""
    losses = []
    d_enc, d_pred, d_table, d_bias = (np.zeros_like(array) for array in (enc, pred, table, bias))
    for enc_rows, pred_rows, label_rows in utterances(lengths, label_lengths):
        hidden = np.tanh(enc[enc_rows][:, None] + pred[pred_rows][None])  # (T, U+1, J)
        log_probs = log_softmax(hidden @ table.T + bias)  # (T, U+1, V)
        loss, d_log_probs = readable(log_probs, labels[label_rows])
        losses.append(loss)
        # through log-softmax: d_logits = d - P * (sum of d over the symbols)
        d_logits = d_log_probs - np.exp(log_probs) * d_log_probs.sum(axis=-1, keepdims=True)
        d_logits = d_logits.astype(enc.dtype)
        d_table += np.einsum("tuv,tuj->vj", d_logits, hidden)
        d_bias += d_logits.sum(axis=(0, 1))
        d_sum = (d_logits @ table) * (1 - hidden**2)  # (T, U+1, J)
        d_enc[enc_rows] = d_sum.sum(axis=1)
        d_pred[pred_rows] = d_sum.sum(axis=0)
    return np.array(losses), (d_enc, d_pred, d_table, d_bias)


# ---------------------------------------------------------------------------------------------------
# 4. The fast version.  Geometry first: where things start
# ---------------------------------------------------------------------------------------------------


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


class Chunk:
    """Some nodes that are processed together: whole utterances, or some frames of one utterance.

    Either way it is a small ragged batch: block k has enc rows enc_start[k] .. enc_start[k+1], pred rows
    pred_start[k] .. pred_start[k+1] and all the nodes between them, from node_start[k] (0 in the chunk).
    kept: its logits stay from the first walk to the second, in rows `place` and following of their buffer.
    """

    def __init__(self, enc_start, pred_start, first_node, next_label, kept=True, place=0):
        self.kept, self.place = kept, int(place)
        self.enc_start, self.pred_start = enc_start, pred_start
        frames, columns = np.diff(enc_start), np.diff(pred_start)
        self.node_start = np.concatenate([[0], np.cumsum(frames * columns)])
        self.size = int(self.node_start[-1])
        self.nodes = slice(first_node, first_node + self.size)  # where they lie in the group's node arrays
        # next_label[row] is the label that leads on from a pred row; -1 where there is none (u = U)
        rows = zip(pred_start[:-1], pred_start[1:], frames, strict=True)
        self.labels = np.concatenate([np.tile(next_label[a:z], T) for a, z, T in rows])  # per node


def plan(enc_start, pred_start, label_lengths, labels, rows, keep_rows):
    """Cut the batch into groups that share one forward-backward: yields (first, last + 1, chunks).

    A group is some consecutive utterances of at most `rows` nodes together, in one chunk; or a longer utterance,
    in chunks of `rows`.  Of those the last are kept, about `keep_rows` nodes and at least one chunk.
    """
    next_label = np.full(pred_start[-1], -1, dtype=np.int64)
    has_next = np.ones(len(next_label), dtype=bool)
    has_next[pred_start[1:] - 1] = False
    next_label[has_next] = labels

    nodes = np.diff(enc_start) * np.diff(pred_start)
    first = 0
    while first < len(nodes):
        last, total = first + 1, nodes[first]
        while last < len(nodes) and total + nodes[last] <= rows:
            total += nodes[last]
            last += 1
        if total <= rows:
            chunks = [Chunk(enc_start[first : last + 1], pred_start[first : last + 1], 0, next_label)]
        else:
            columns = label_lengths[first] + 1
            start, end = enc_start[first : last + 1]
            frames = max(1, rows // columns)
            kept = max(start, end - max(frames, keep_rows // columns))
            cuts = np.array([*range(start, kept, frames), *range(kept, end, frames), end])
            chunks = [
                Chunk(
                    cuts[i : i + 2], pred_start[first : last + 1], (cuts[i] - start) * columns, next_label,
                    cuts[i] >= kept, max(0, cuts[i] - kept) * columns,
                )
                for i in range(len(cuts) - 1)
            ]  # fmt: skip
        yield first, last, chunks
        first = last


# ---------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------

# Sums in any order and fused multiply-adds are welcome in row kernels, where everything is finite;
# "no infinities" and "no NaNs" are not promised.  Forward-backward is compiled without any of it.


@kernel(weight=2)
def hidden_rows(enc, pred, enc_start, pred_start, node_start, hidden):
    """hidden[node] = tanh(enc[t] + pred[u]) for the nodes of a chunk; one iteration per enc row."""
    first = enc_start[0]
    for i in prange(enc_start[-1] - first):
        k = np.searchsorted(enc_start, first + i, side="right") - 1
        columns = pred_start[k + 1] - pred_start[k]
        node = node_start[k] + (first + i - enc_start[k]) * columns
        e = enc[first + i]
        for u in range(columns):
            p, h = pred[pred_start[k] + u], hidden[node + u]
            for j in range(h.shape[0]):
                h[j] = tanh(e[j] + p[j])


@kernel(weight=2)
def hidden_rows_backward(d_hidden, hidden, enc_start, pred_start, node_start, d_enc, d_pred):
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
            d, h = d_hidden[node + u], hidden[node + u]
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
            d = d_hidden[node]
            for j in range(d.shape[0]):
                out[j] += d[j]


@kernel(weight=2)
def softmax_rows(logits, bias, node_labels, blank, label):
    """Logits (without bias) become probabilities, in place; ln P(blank) and ln P(label) are noted."""
    one = logits.dtype.type(1)
    for n in prange(logits.shape[0]):
        row = logits[n]
        for k in range(row.shape[0]):
            row[k] += bias[k]
        largest = row_max(row)
        y = node_labels[n]
        blank[n] = row[0] - largest
        label[n] = row[y] - largest if y >= 0 else -np.inf
        total = one - one
        for k in range(row.shape[0]):
            e = exp(row[k] - largest)
            row[k] = e
            total += e
        log_total = np.log(np.float64(total))
        blank[n] -= log_total
        label[n] -= log_total
        inverse = one / total
        for k in range(row.shape[0]):
            row[k] *= inverse


@kernel(weight=2)
def label_log_probs(logits, bias, node_labels, blank, label):
    """ln P(blank) and ln P(label) of each node; the logits get their bias, in place, and remain."""
    for n in prange(logits.shape[0]):
        row = logits[n]
        for k in range(row.shape[0]):
            row[k] += bias[k]
        largest = row_max(row)
        total = largest - largest
        for k in range(row.shape[0]):
            total += exp(row[k] - largest)
        y, log_total = node_labels[n], np.log(np.float64(total))
        blank[n] = np.float64(row[0] - largest) - log_total
        label[n] = np.float64(row[y] - largest) - log_total if y >= 0 else -np.inf


@kernel(weight=2)
def logit_gradients(probs, kl_gradients, node_labels, d_blank, d_label, rnnt_weight, kl_weight):
    """Probabilities become the gradient of the loss with respect to the logits, in place.

    d ln P(k) / d logit(i) = [i = k] - P(i), so: d_blank ([i = blank] - P(i)) + d_label ([i = label] - P(i)),
    plus the distillation's part, which lattice_kl.py has left in kl_gradients (None without a teacher).
    """
    for n in prange(probs.shape[0]):
        row = probs[n]
        at_blank, at_label = rnnt_weight * d_blank[n], rnnt_weight * d_label[n]
        weight = row.dtype.type(-(at_blank + at_label))
        if kl_gradients is None:
            for k in range(row.shape[0]):
                row[k] *= weight
        else:
            kl_row, c = kl_gradients[n], row.dtype.type(kl_weight)
            for k in range(row.shape[0]):
                row[k] = row[k] * weight + c * kl_row[k]
        row[0] += row.dtype.type(at_blank)
        if node_labels[n] >= 0:
            row[node_labels[n]] += row.dtype.type(at_label)


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
def forward_backward(blank, label, node_start, columns, d_blank, d_label, totals):
    """Totals (B,), ln P of each transcript, and the gradients of each utterance's loss.

    blank, label, d_blank, d_label: one float64 per node.  Utterances are independent: one iteration each.
    Backward in the log domain; then forward with plain probabilities, which only shrink: the probability that
    a path, given the transcript, comes by a node is what its neighbours above and to the left send there.
    That is exp(alpha + beta - total) of `readable`, without alpha.
    """
    for b in prange(columns.shape[0]):
        first, end, C = node_start[b], node_start[b + 1], columns[b]
        T = (end - first) // C
        blank_b, label_b = blank[first:end].reshape(T, C), label[first:end].reshape(T, C)
        d_blank_b, d_label_b = d_blank[first:end].reshape(T, C), d_label[first:end].reshape(T, C)
        totals[b] = lattice_beta(blank_b, label_b, d_blank_b, d_label_b)
        here = np.zeros(C + 1)
        here[0] = 1.0
        for t in range(T):
            for u in range(C):
                on, out = here[u] * d_blank_b[t, u], here[u] * d_label_b[t, u]
                d_blank_b[t, u], d_label_b[t, u] = -on, -out
                here[u] = on  # into the next frame
                here[u + 1] += out


# ---------------------------------------------------------------------------------------------------
# The walk
# ---------------------------------------------------------------------------------------------------

_scratch = {}  # large buffers live on between calls: fresh memory costs a page fault every 4 kB


def scratch(name, rows, columns, dtype):
    """A (rows, columns) array that is valid until the next request of the same name.  Not thread-safe."""
    key, size = (name, np.dtype(dtype)), rows * columns
    if key not in _scratch or _scratch[key].size < size:
        _scratch[key] = None  # let the old one go before the new one comes
        _scratch[key] = np.empty(-(-size // 2**18) * 2**18, dtype)  # a little more is asked for next time
    return _scratch[key][:size].reshape(rows, columns)


def walk(
    student, labels, lengths, label_lengths, gradients=True, rnnt_weight=1.0,
    teacher=None, compare=None, kl_weight=0.0, chunk_bytes=None, keep_bytes=None,
):  # fmt: skip
    """Loss, and gradients of the joint network's four inputs, without ever holding all the logits.

    A first walk over the chunks scores the student's nodes for forward-backward; a second one, backwards, makes
    gradients.  Only the second needs the teacher, whose logits are therefore never computed twice.

    student, teacher  (enc, pred, table, bias) arrays; the teacher may be None, and has its own width
    compare           compare(logits, bias, teacher_logits, teacher_bias, node_labels, kl), as lattice_kl.py makes it:
                      logits become probabilities, teacher_logits d kl / d logits, and kl gets a number per node
    chunk_bytes       logits (both networks') that are alive together
    keep_bytes        of an utterance with more logits, about this much is kept from the first walk to the second and
                      the rest is computed again: up to 4/3 of the arithmetic (with a teacher 5/4), for memory that
                      does not grow with the utterance

    Returns RNN-T losses (B,), KL (B,), and the gradients of
    rnnt_weight * sum of losses + kl_weight * sum of KL by enc, pred, table and bias, or None.
    """
    enc, pred, table, bias = student
    V, J = table.shape
    B = len(lengths)
    enc_start, pred_start, _, _ = lattice_offsets(lengths, label_lengths)

    node_bytes = V * enc.itemsize
    # At least J rows: each chunk adds a (V, J) product into d_table, which should not cost more than the
    # (rows, V) logits themselves.
    together = node_bytes * (1 if teacher is None else 2)
    rows = max((CHUNK_BYTES if chunk_bytes is None else chunk_bytes) // together, J)
    keep_rows = (KEEP_BYTES if keep_bytes is None else keep_bytes) // node_bytes

    groups = list(plan(enc_start, pred_start, label_lengths, labels, rows, keep_rows))
    every = [chunk for _, _, chunks in groups for chunk in chunks]
    largest, room = max(chunk.size for chunk in every), max(chunk.place + chunk.size for chunk in every)

    losses, kl_sums = np.empty(B), np.zeros(B)
    grads = tuple(np.zeros_like(array) for array in student) if gradients else None
    no_bias = np.zeros_like(bias)

    def hidden_of(network, chunk, name):
        enc, pred, table, _ = network
        hidden = scratch(name + " hidden", largest, table.shape[1], enc.dtype)[: chunk.size]
        hidden_rows(enc, pred, chunk.enc_start, chunk.pred_start, chunk.node_start, hidden)
        return hidden

    def logits_of(chunk):
        """Where the student's logits of a chunk are, or belong."""
        return scratch("student logits", room, V, enc.dtype)[chunk.place : chunk.place + chunk.size]

    def distil(logits, bias, chunk, kl):
        """The student's logits become probabilities; returns the gradient of the KL to the teacher by them."""
        teacher_logits = scratch("teacher logits", largest, V, enc.dtype)[: chunk.size]
        matmul(hidden_of(teacher, chunk, "teacher"), teacher[2].T, out=teacher_logits)
        compare(logits, bias, teacher_logits, teacher[3], chunk.labels, kl)
        return teacher_logits

    for first, last, chunks in groups:
        blank, label, d_blank, d_label, kl = scratch("nodes", 5, chunks[-1].nodes.stop, np.float64)
        for chunk in chunks:
            hidden, logits, at = hidden_of(student, chunk, "student"), logits_of(chunk), chunk.nodes
            matmul(hidden, table.T, out=logits)
            if teacher is None:
                softmax_rows(logits, bias, chunk.labels, blank[at], label[at])
                continue
            label_log_probs(logits, bias, chunk.labels, blank[at], label[at])  # and adds the bias
            if not gradients:
                distil(logits, no_bias, chunk, kl[at])

        columns = label_lengths[first:last] + 1
        node_start = np.concatenate([[0], np.cumsum(lengths[first:last] * columns)])
        totals = np.empty(last - first)
        forward_backward(blank, label, node_start, columns, d_blank, d_label, totals)
        losses[first:last] = -totals

        for chunk in reversed(chunks) if gradients else ():
            logits, at, kl_gradients = logits_of(chunk), chunk.nodes, None
            if chunk is not chunks[-1]:  # its hidden rows are still there
                hidden = hidden_of(student, chunk, "student")
            if not chunk.kept:
                matmul(hidden, table.T, out=logits)
            if teacher is not None:
                kl_gradients = distil(logits, no_bias if chunk.kept else bias, chunk, kl[at])
            elif not chunk.kept:
                softmax_rows(logits, bias, chunk.labels, blank[at], label[at])
            logit_gradients(
                logits, kl_gradients, chunk.labels, d_blank[at], d_label[at], float(rnnt_weight), float(kl_weight)
            )
            joint_backward(logits, hidden, table, chunk, grads)
        if teacher is not None:
            kl_sums[first:last] = np.add.reduceat(kl, node_start[:-1])
    return losses, kl_sums, grads


def joint_backward(d_logits, hidden, table, chunk, grads):
    """From a chunk's d_logits (nodes, V) into the gradients of the joint's inputs."""
    d_enc, d_pred, d_table, d_bias = grads
    d_bias += matmul(np.ones((1, chunk.size), hidden.dtype), d_logits)[0]  # .sum(0) would use one thread
    for start in range(0, len(table), SYMBOLS):  # a block's product is still in the cache when it is added
        block = slice(start, min(start + SYMBOLS, len(table)))
        product = scratch("d_table", block.stop - start, table.shape[1], table.dtype)
        d_table[block] += matmul(d_logits[:, block].T, hidden, out=product)
    # the teacher's hidden rows are not needed any more: their buffer serves again
    d_hidden = matmul(d_logits, table, out=scratch("teacher hidden", *hidden.shape, hidden.dtype))
    hidden_rows_backward(d_hidden, hidden, chunk.enc_start, chunk.pred_start, chunk.node_start, d_enc, d_pred)


def record_scalar(value, inputs, grads):
    """Put a loss on the tape whose gradients are known already; backward only multiplies."""

    def backward(cotangent):
        if cotangent != 1:
            for gradient in grads:
                gradient *= cotangent
        return grads

    return record(np.asarray(value, dtype=inputs[0].data.dtype), inputs, backward)


def wants_gradients(inputs):
    return is_recording() and any(tensor.requires_grad for tensor in inputs)


def rnnt_loss(enc, pred, table, bias, labels, lengths, label_lengths, **budgets):
    """The mean RNN-T loss of a batch as a Tensor, and each utterance's own loss (B,) as an array.

    enc (sum T, J), pred (sum (U+1), J), table (V, J), bias (V,): Tensors.  The gradients are computed here
    and now, while the logits are at hand, and only scaled by backward(); under no_grad() they are left out.
    budgets: chunk_bytes and keep_bytes of `walk`.
    """
    inputs = (enc, pred, table, bias)
    student = tuple(np.ascontiguousarray(tensor.data) for tensor in inputs)
    labels, lengths, label_lengths = check_lattice([("model", student)], labels, lengths, label_lengths)
    losses, _, grads = walk(
        student, labels, lengths, label_lengths, wants_gradients(inputs), 1 / len(lengths), **budgets
    )
    return record_scalar(losses.mean(), inputs, grads), losses


if __name__ == "__main__":
    import time

    from mini_pkd.tensor import Tensor, no_grad

    scores = np.array([
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
    ])  # fmt: skip
    log_probs = log_softmax(scores)
    print("2 frames, labels 1 and 2, 5 symbols: the standard case of the literature, 4.495666")
    loss, gradient = readable(log_probs, [1, 2])
    print(f"  alpha and beta  {loss:.6f}\n  all 3 paths     {brute_force(log_probs, [1, 2]):.6f}")
    print("P(path takes the blank here)     P(path takes the label here)")
    for t in range(2):
        label_steps = [-gradient[t, u, u + 1] for u in range(2)]
        print("  ", np.round(-gradient[t, :, 0], 3), "          ", np.round(label_steps, 3))

    rng = np.random.default_rng(0)
    T, U, V, J = np.full(8, 50), np.full(8, 29), 256, 128
    inputs = [
        Tensor(rng.standard_normal(shape, dtype=np.float32), requires_grad=True)
        for shape in ((T.sum(), J), ((U + 1).sum(), J), (V, J), (V,))
    ]
    labels = rng.integers(1, V, U.sum())
    rnnt_loss(*inputs, labels, T, U)  # compile
    start = time.perf_counter()
    rnnt_loss(*inputs, labels, T, U)
    both = time.perf_counter() - start
    with no_grad():
        start = time.perf_counter()
        rnnt_loss(*inputs, labels, T, U)
    print(
        f"joint + loss of 12000 nodes, V = {V}, J = {J}: {1e3 * (time.perf_counter() - start):.0f} ms,"
        f" with gradients {1e3 * both:.0f} ms"
    )
