"""The losses over the lattice as training computes them: in chunks of nodes, never all the logits at once.

rnnt_loss.py and lattice_kl.py say what is computed, in plain loops and with every logit in memory; this file does
the same for the whole batch in the memory of a few chunks.  The logits of one utterance of the paper (200 frames, 51
columns, 10026 symbols) are 409 MB, so there are two walks over its nodes:

1. chunk by chunk, joint network -> logits; only three numbers per node are kept: ln P(blank), ln P(next label) and
   the log-normaliser ln Z.  Forward-backward needs no more than the first two, and says with which probability a
   path, given the transcript, takes the blank and the label of every node;
2. backwards over the chunks, logits again (those of the last chunks are still there) -> gradients by the logits ->
   gradients by the joint's inputs and by the table.  The teacher, if there is one, is asked only here.  Chunks of which
   few nodes are left (see below) are processed together.

**Nodes that no path comes near are left out of the second walk** when there is no teacher.  A node's gradient by
each logit is at most the probability w that a path comes by, and |hidden| <= 1.  So leaving a node out changes no entry
of the table's gradient by more than that probability (of d_enc and d_pred: twice that times the table's largest
entry).  All that is left out of a batch has together less probability than float32 loses when it rounds a 1
(`negligible`), and the nodes of each single frame have probability 1: the sums over the nodes do not notice.  It is
most of a long lattice, and the part that hurts: numbers below 1e-38 are "denormal", and a processor multiplies them
up to a hundred times slower.

**With a teacher** it depends on `kl_weighting`.  With "nodes" the teacher is followed at every node, so every node
stays.  With "paths" the KL is weighted by w as well, and its gradient by a logit is at most w / tau: the same nodes are
left out for the same reason, and the teacher is not asked there.  A KL has no such bound, but a student that gives no
symbol less than e^-100 keeps it below 100: what is left out of their sum is less than 100 roundings of a 1.

Buffers have one meaning each.  The only array that changes its meaning is a chunk's `logits`, whose rows become
`d_logits` in place, in one kernel.  Row i of a chunk's matrices belongs to node `node_of[i]`, and `row_of` is the way
back (-1: left out).  All counts and offsets are int64.
"""

import numpy as np

from . import UserError
from .lattice_kernels import (
    distil_collapsed,
    distil_full,
    forward_backward,
    joint_hidden,
    joint_hidden_backward,
    rnnt_gradient_rows,
    score_nodes,
)
from .ragged import BLANK, lattice_offsets
from .tensor import is_recording, record
from .threads import matmul

CHUNK_BYTES = 16 * 2**20  # logits alive at one time, teacher's included: about half of a common L3 cache
KEEP_BYTES = 128 * 2**20  # of an utterance's logits so much stays until its gradients are made
SYMBOLS = 1024  # rows of the table whose gradient is computed at one time


class LatticeError(UserError, ValueError):
    """Lengths, labels and arrays that do not describe a lattice."""


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
                raise LatticeError(f"{name}'s arrays must all be float32 or all float64, not {array.dtype} and {dtype}")
    if len(labels) and (labels.min() <= BLANK or labels.max() >= V):
        wrong = labels[(labels <= BLANK) | (labels >= V)][0]
        raise LatticeError(f"label {wrong} is not in 1..{V - 1}: is this the vocabulary of this model?")
    return labels, lengths, label_lengths


def chunk_rows(V, J, taught, itemsize=4, chunk_bytes=CHUNK_BYTES):
    """Nodes of a chunk: as many as chunk_bytes of logits hold, but at least J.

    Each chunk adds a (V, J) product into d_table, which should not cost more than the (rows, V) logits themselves.
    """
    return max(chunk_bytes // (V * itemsize * (2 if taught else 1)), J)


# --- chunks ---------------------------------------------------------------------------------------


class Chunk:
    """Some nodes that are processed together: whole utterances, or some frames of one utterance.

    Either way it is a small ragged batch: utterance b of it has enc rows enc_start[b] .. enc_start[b+1], pred rows
    pred_start[b] .. pred_start[b+1], and a node for each pair of them, from node_start[b] on (counted in the chunk).
    nodes: the slice of its group's nodes.  labels: the label that leads on from each node, -1 where u = U.
    """

    def __init__(self, enc_start, pred_start, first_node, next_label):
        self.enc_start, self.pred_start, self.next_label = enc_start, pred_start, next_label
        frames, columns = np.diff(enc_start), np.diff(pred_start)
        self.node_start = np.concatenate([[0], np.cumsum(frames * columns)])
        self.size = int(self.node_start[-1])
        self.nodes = slice(first_node, first_node + self.size)
        rows = zip(pred_start[:-1], pred_start[1:], frames, strict=True)
        self.labels = np.concatenate([np.tile(next_label[a:z], T) for a, z, T in rows])
        self.all = np.arange(self.size)

    def up_to(self, last):
        """One chunk from here to the end of `last`, of the same utterance."""
        ends = np.array([self.enc_start[0], last.enc_start[-1]])
        return Chunk(ends, self.pred_start, self.nodes.start, self.next_label)


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
        yield (
            first,
            last,
            [Chunk(pair, pred_start[first : last + 1], (pair[0] - cuts[0]) * columns, next_label) for pair in pairs],
        )
        first = last


def merged_chunks(chunks, taken, negligible, most):
    """The chunks of a group, the last one first; neighbours become one while at most `most` of their nodes get a row.

    Otherwise a few rows would bear the whole price of a chunk, a product as large as d_table.
    """
    kept = [np.count_nonzero(~(taken[chunk.nodes] <= negligible)) for chunk in chunks]
    end = len(chunks)
    while end > 0:
        start, height = end - 1, kept[end - 1]
        while start > 0 and height + kept[start - 1] <= most:
            start, height = start - 1, height + kept[start - 1]
        yield chunks[start] if start == end - 1 else chunks[start].up_to(chunks[end - 1])
        end = start


def rows_of_nodes(taken, negligible, in_place):
    """Which nodes of a chunk get a row in the second walk: (node_of (rows,), row_of (nodes,), -1 if left out).

    taken: P(a path comes by), per node.  Where the logits of the first walk still stand (in_place), row i stays node i
    as far as possible: only rows that become free below the new height are filled, from rows above it.  So a row is
    read and written by one iteration, and the order of the threads does not matter.

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


# --- the walk -------------------------------------------------------------------------------------

_scratch = {}  # large buffers live on between calls: fresh memory costs a page fault every 4 kB


def scratch(name, rows, columns, dtype):
    """A (rows, columns) array that is valid until the next request of the same name.  Not thread-safe."""
    key, size = (name, np.dtype(dtype)), rows * columns
    if key not in _scratch or _scratch[key].size < size:
        _scratch[key] = None  # let the old one go before the new one comes
        _scratch[key] = np.empty(-(-size // 2**18) * 2**18, dtype)  # a little more is asked for next time
    return _scratch[key][:size].reshape(rows, columns)


def walk_lattice(
    student, labels, lengths, label_lengths, gradients=True, rnnt_weight=1.0, teacher=None, kind="full",
    temperature=1.0, kl_weight=0.0, kl_weighting="nodes", chunk_bytes=CHUNK_BYTES, keep_bytes=KEEP_BYTES,
    negligible=None,
):  # fmt: skip
    """Loss, and gradients of the joint network's four inputs, without ever holding all the logits.

    student, teacher    (enc, pred, table, bias) arrays; the teacher may be None, and has its own width
    kind, temperature   of the KL, see lattice_kl.py,
    kl_weighting        and so is this, "nodes" or "paths"
    chunk_bytes         logits (both networks') of one chunk
    keep_bytes          logits of the last chunks that stay from the first walk to the second, and are not made again
    negligible          a node gets no row in the second walk if a path comes by with at most this probability (never
                        so with a teacher and "nodes"); by default so little that float32 (or float64) sums do not
                        notice; 0 keeps all that are visited

    Returns RNN-T losses (B,), weighted KL (B,), and the gradients of
    rnnt_weight * sum of losses + kl_weight * sum of KL by enc, pred, table and bias, or None.
    """
    enc, _, table, bias = student
    V, J = table.shape
    B = len(lengths)
    if negligible is None:
        negligible = np.finfo(enc.dtype).eps / (lengths * (label_lengths + 1)).sum()
    rows = chunk_rows(V, J, teacher is not None, enc.itemsize, chunk_bytes)
    kept = max(1, keep_bytes // (rows * V * enc.itemsize))  # chunks, from the last one back
    groups = list(chunk_groups(lengths, label_lengths, labels, rows))
    largest = max(chunk.size for _, _, chunks in groups for chunk in chunks)

    losses, kl_sums = np.empty(B), np.zeros(B)
    grads = tuple(np.zeros_like(array) for array in student) if gradients else None
    distil = distil_full if kind == "full" else distil_collapsed

    def matrix(name, height, width):
        return scratch(name, largest, width, enc.dtype)[:height]

    def hidden_of(network, chunk, row_of, height, name):
        """Of those nodes of a chunk that have a row."""
        enc, pred, table, _ = network
        hidden = matrix(name + " hidden", height, table.shape[1])
        joint_hidden(enc, pred, chunk.enc_start, chunk.pred_start, chunk.node_start, row_of, hidden)
        return hidden

    def logits_of(network, hidden, name):
        return matmul(hidden, network[2].T, out=matrix(name + " logits", len(hidden), V))

    for first, last, chunks in groups:
        N = chunks[-1].nodes.stop
        blank, label, log_Z, go_on, speak, take_blank, take_label, weight, kl = scratch("nodes", 9, N, np.float64)
        standing = {}  # logits of the first walk by chunk; where they do not stay, the next chunk's replace them
        for back, chunk in reversed(list(enumerate(reversed(chunks)))):
            at = chunk.nodes
            hidden = hidden_of(student, chunk, chunk.all, chunk.size, "student")
            logits = logits_of(student, hidden, f"student {back}" if back < kept else "student 0")
            score_nodes(logits, bias, chunk.labels, blank[at], label[at], log_Z[at])
            if back < kept:
                standing[chunk] = logits

        columns = label_lengths[first:last] + 1
        node_start = np.concatenate([[0], np.cumsum(lengths[first:last] * columns)])
        totals = np.empty(last - first)
        forward_backward(blank, label, node_start, columns, go_on, speak, take_blank, take_label, totals)
        losses[first:last] = -totals
        weight[:] = 1.0 if teacher is not None and kl_weighting == "nodes" else take_blank + take_label
        kl[:] = 0.0

        for chunk in merged_chunks(chunks, weight, negligible, largest) if gradients or teacher is not None else ():
            at, stands = chunk.nodes, chunk in standing
            node_of, row_of = rows_of_nodes(weight[at], negligible, stands)
            height = len(node_of)
            source = node_of if stands else row_of[node_of]
            if chunk is not chunks[-1] or height < chunk.size:  # else the hidden rows of the first walk still stand
                hidden = hidden_of(student, chunk, row_of, height, "student")
            logits = standing[chunk] if stands else logits_of(student, hidden, "student 0")
            if teacher is None:
                rnnt_gradient_rows(
                    logits, source, node_of, bias, log_Z[at], chunk.labels, take_blank[at], take_label[at],
                    float(rnnt_weight),
                )  # fmt: skip
            else:
                teacher_logits = logits_of(teacher, hidden_of(teacher, chunk, row_of, height, "teacher"), "teacher")
                distil(
                    logits, source, node_of, bias, teacher_logits, teacher[3], chunk.labels, float(temperature),
                    take_blank[at], take_label[at], float(rnnt_weight), float(kl_weight), weight[at], kl[at],
                )  # fmt: skip
            if gradients:
                d_hidden = matrix("d_hidden", height, J)
                joint_backward(logits[:height], hidden, table, chunk, row_of, d_hidden, grads)
        if teacher is not None:
            kl_sums[first:last] = np.add.reduceat(kl, node_start[:-1])
    return losses, kl_sums, grads


def joint_backward(d_logits, hidden, table, chunk, row_of, d_hidden, grads):
    """From a chunk's d_logits (rows, V) into the gradients of the joint's inputs."""
    d_enc, d_pred, d_table, d_bias = grads
    d_bias += matmul(np.ones((1, len(hidden)), hidden.dtype), d_logits)[0]  # .sum(0) would use one thread
    for start in range(0, len(table), SYMBOLS):  # a block's product is still in the cache when it is added
        block = slice(start, min(start + SYMBOLS, len(table)))
        product = scratch("d_table", block.stop - start, table.shape[1], table.dtype)
        d_table[block] += matmul(d_logits[:, block].T, hidden, out=product)
    matmul(d_logits, table, out=d_hidden)
    joint_hidden_backward(d_hidden, hidden, chunk.enc_start, chunk.pred_start, chunk.node_start, row_of, d_enc, d_pred)


# --- onto the tape --------------------------------------------------------------------------------


def wants_gradients(inputs):
    """Will backward() be asked for the gradients of these Tensors?"""
    return is_recording() and any(tensor.requires_grad for tensor in inputs)


def record_scalar(value, inputs, grads):
    """A loss whose gradients are known already, on the tape: backward() only multiplies them."""

    def backward(cotangent):
        if cotangent != 1:
            for gradient in grads:
                gradient *= cotangent
        return grads

    return record(np.asarray(value, dtype=inputs[0].data.dtype), inputs, backward)
