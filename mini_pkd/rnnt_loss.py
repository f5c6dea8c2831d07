"""The RNN-T loss: minus the log-probability of a transcript, summed over every way to align it.

A transducer walks a lattice.  At node (t, u) it is at frame t and has said u labels, and its joint network gives a
distribution over V symbols.  Blank, symbol 0, leads down to the next frame; the transcript's next label leads to the
right, in the same frame.  Two frames and the labels A B:

               u = 0            u = 1            u = 2

    t = 0        o ---- A ------> o ---- B ------> o
                 |                |                |
               blank            blank            blank
                 v                v                v
    t = 1        o ---- A ------> o ---- B ------> o -- blank --> end

A path starts at (0, 0) and ends with the blank of the last node (T-1, U).  Its probability is the product of those of
its steps, and the loss is -ln of the sum over all paths (Graves 2012, arXiv 1211.3711; "eq." below means his).

Each of four steps is tested against the one before it:

1. `brute_force`: adds up all the paths, one at a time;
2. `readable`: the same sum and its gradient by recursion over the nodes, in plain loops;
3. `materialised_loss_and_gradients`: with a joint network in front, all logits in one array;
4. `rnnt_loss`: what training calls.  The logits of one utterance of the paper (200 frames, 51 columns, 10026
   symbols) are 409 MB, so lattice_walk.py makes them in chunks of nodes and never holds them all.

Batches are ragged (ragged.py): utterance b has T_b rows of `enc`, U_b + 1 rows of `pred` and U_b labels.
Left out: lattices restricted to a band around the diagonal, and regularisers such as FastEmit.
"""

import itertools

import numpy as np

from .lattice_walk import check_lattice, record_scalar, walk_lattice, wants_gradients
from .ragged import BLANK, lattice_offsets

# --- 1. all paths, one at a time ------------------------------------------------------------------


def log_sum(terms):
    """ln of a sum of exponentials, without overflow."""
    largest = max(terms)
    return largest if largest == -np.inf else largest + np.log(sum(np.exp(term - largest) for term in terms))


def paths(T, U):
    """Every path through a lattice of T frames and U labels, as its list of steps (t, u, says_label).

    A path is an order of T blanks and U labels with a blank at the end; there are (T-1+U)! / ((T-1)! U!).

    >>> for path in paths(2, 1):
    ...     print(path)
    [(0, 0, True), (0, 1, False), (1, 1, False)]
    [(0, 0, False), (1, 0, True), (1, 1, False)]
    """
    for label_steps in itertools.combinations(range(T - 1 + U), U):
        t = u = 0
        path = []
        for step in range(T + U):
            says_label = step in label_steps
            path.append((t, u, says_label))
            t, u = (t, u + 1) if says_label else (t + 1, u)
        yield path


def brute_force(log_probs, labels):
    """The definition itself: -ln of the sum over all paths.  log_probs (T, U+1, V), labels (U,).

    >>> half = np.log(np.full((2, 2, 2), 0.5))  # 2 frames, 1 label: two paths of three fair coin tosses
    >>> print(round(brute_force(half, [1]), 6), round(-np.log(2 * 0.5**3), 6))
    1.386294 1.386294
    """
    T, columns, _ = log_probs.shape
    return -log_sum([
        sum(log_probs[t, u, labels[u] if says_label else BLANK] for t, u, says_label in path)
        for path in paths(T, columns - 1)
    ])  # fmt: skip


# --- 2. alpha, beta, and the gradient that they give ----------------------------------------------


def forward_variables(log_probs, labels):
    """alpha (T, U+1): alpha[t, u] = ln P(a path comes to (t, u)), from above or from the left (eq. 16):

    alpha[t, u] = ln( exp(alpha[t-1, u] + blank[t-1, u]) + exp(alpha[t, u-1] + label[t, u-1]) )
    """
    T, columns, _ = log_probs.shape
    alpha = np.full((T, columns), -np.inf)
    for t in range(T):
        for u in range(columns):
            ways = [0.0] if t == u == 0 else []
            if t > 0:
                ways.append(alpha[t - 1, u] + log_probs[t - 1, u, BLANK])
            if u > 0:
                ways.append(alpha[t, u - 1] + log_probs[t, u - 1, labels[u - 1]])
            alpha[t, u] = log_sum(ways)
    return alpha


def backward_variables(log_probs, labels):
    """beta (T+1, U+1): beta[t, u] = ln P(the rest is said | a path is at (t, u)), from the end back (eq. 18):

    beta[t, u] = ln( exp(blank[t, u] + beta[t+1, u]) + exp(label[t, u] + beta[t, u+1]) )
    """
    T, columns, _ = log_probs.shape
    U = columns - 1
    beta = np.full((T + 1, columns), -np.inf)  # one row more: after the last frame ...
    beta[T, U] = 0.0  # ... nothing may be left to say
    for t in reversed(range(T)):
        for u in reversed(range(columns)):
            ways = [log_probs[t, u, BLANK] + beta[t + 1, u]]
            if u < U:
                ways.append(log_probs[t, u, labels[u]] + beta[t, u + 1])
            beta[t, u] = log_sum(ways)
    return beta


def readable(log_probs, labels):
    """Loss and its gradient by log_probs (T, U+1, V), from the forward and backward variables.

    Both give the total, ln P(transcript): alpha[T-1, U] + blank[T-1, U] (eq. 17) and beta[0, 0].

    The loss's derivative by the log-probability of a step is minus the probability that a path takes this step, given
    the transcript (eq. 20 in log space): what is before the step, the step, and what is after it.  For a blank

        -exp( alpha[t, u] + blank[t, u] + beta[t+1, u] - total )

    Only blanks and next labels occur in paths: all other entries of the gradient are zero.
    """
    T, columns, _ = log_probs.shape
    U = columns - 1
    alpha, beta = forward_variables(log_probs, labels), backward_variables(log_probs, labels)
    total = alpha[T - 1, U] + log_probs[T - 1, U, BLANK]
    gradient = np.zeros(log_probs.shape)
    for t in range(T):
        for u in range(columns):
            gradient[t, u, BLANK] = -np.exp(alpha[t, u] + log_probs[t, u, BLANK] + beta[t + 1, u] - total)
            if u < U:
                label = labels[u]
                gradient[t, u, label] = -np.exp(alpha[t, u] + log_probs[t, u, label] + beta[t, u + 1] - total)
    return -total, gradient


def occupancies(log_probs, labels):
    """(T, U+1): the probability that a path comes by each node, given the transcript: exp(alpha + beta - total).

    >>> coins = np.log(np.full((2, 2, 2), 0.5))  # 2 frames, 1 label ...
    >>> coins[0, 0] = np.log([0.25, 0.75])  # ... which three paths of four say in the first frame
    >>> print(occupancies(coins, [1]).round(6))
    [[1.   0.75]
     [0.25 1.  ]]
    """
    alpha, beta = forward_variables(log_probs, labels), backward_variables(log_probs, labels)
    return np.exp(alpha + beta[:-1] - beta[0, 0])


def best_path(log_probs, labels):
    """The most probable path, as `paths` yields it, and its log-probability: alpha with max in place of the sum."""
    T, columns, _ = log_probs.shape
    best = np.full((T, columns), -np.inf)
    from_left = np.zeros((T, columns), dtype=bool)  # its last step was a label
    best[0, 0] = 0.0
    for t in range(T):
        for u in range(columns):
            blank = best[t - 1, u] + log_probs[t - 1, u, BLANK] if t > 0 else -np.inf
            label = best[t, u - 1] + log_probs[t, u - 1, labels[u - 1]] if u > 0 else -np.inf
            if t > 0 or u > 0:
                best[t, u], from_left[t, u] = max(blank, label), label > blank
    t, u = T - 1, columns - 1
    path = [(t, u, False)]
    while t > 0 or u > 0:
        says_label = bool(from_left[t, u])
        t, u = (t, u - 1) if says_label else (t - 1, u)
        path.append((t, u, says_label))
    return path[::-1], best[-1, -1] + log_probs[-1, -1, BLANK]


# --- 3. with the joint network, every logit in memory ---------------------------------------------


def log_softmax(logits):
    """Raw scores -> log-probabilities, over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def utterances(lengths, label_lengths):
    """For each utterance the slices of its rows of enc, its rows of pred and its labels."""
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
        # Through log_softmax: with d = d_log_probs, d - P * (sum of d over the symbols).
        d_logits = d_log_probs - np.exp(log_probs) * d_log_probs.sum(axis=-1, keepdims=True)
        d_logits = d_logits.astype(enc.dtype)
        d_table += np.einsum("tuv,tuj->vj", d_logits, hidden)
        d_bias += d_logits.sum(axis=(0, 1))
        d_sum = (d_logits @ table) * (1 - hidden**2)  # (T, U+1, J)
        d_enc[enc_rows] = d_sum.sum(axis=1)
        d_pred[pred_rows] = d_sum.sum(axis=0)
    return np.array(losses), (d_enc, d_pred, d_table, d_bias)


# --- 4. what training calls -----------------------------------------------------------------------


def rnnt_loss(enc, pred, table, bias, labels, lengths, label_lengths, **options):
    """The mean RNN-T loss of a batch as a Tensor, and each utterance's own loss (B,) as an array.

    enc (sum T, J), pred (sum (U+1), J), table (V, J), bias (V,): Tensors.  The gradients are computed here, while
    the logits are at hand, and backward() only scales them; under no_grad() they are left out.
    options: chunk_bytes, keep_bytes and negligible of `walk_lattice`.  LatticeError for input that is no lattice.
    """
    inputs = (enc, pred, table, bias)
    arrays = tuple(np.ascontiguousarray(tensor.data) for tensor in inputs)
    labels, lengths, label_lengths = check_lattice([("model", arrays)], labels, lengths, label_lengths)
    losses, _, grads = walk_lattice(
        arrays, labels, lengths, label_lengths, wants_gradients(inputs), 1 / len(lengths), **options
    )
    return record_scalar(losses.mean(), inputs, grads), losses


def demo():
    import time

    from .tensor import Tensor

    scores = np.array([
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
    ])  # fmt: skip
    log_probs = log_softmax(scores)
    print("2 frames, labels 1 and 2, 5 symbols: an example that many implementations test, 4.495666 + rounding")
    loss, gradient = readable(log_probs, [1, 2])
    print(f"  alpha and beta  {loss:.6f}\n  all 3 paths     {brute_force(log_probs, [1, 2]):.6f}")
    print("given the transcript, a row for each frame:")
    print("  P(a path takes the blank)    P(a path takes the label)")
    for t in range(2):
        label_steps = [-gradient[t, u, u + 1] for u in range(2)]
        print("  {:.3f}  {:.3f}  {:.3f}          {:.3f}  {:.3f}".format(*abs(gradient[t, :, BLANK]), *label_steps))
    path, score = best_path(log_probs, [1, 2])
    says = " ".join(str([1, 2][u]) if says_label else "blank" for _, u, says_label in path)
    print(f"the best path is {says}: ln P = {score:.3f}, and ln P(all paths) = {-loss:.3f}")

    rng = np.random.default_rng(0)
    T, U, V, J = np.full(8, 50), np.full(8, 29), 256, 128
    shapes = ((T.sum(), J), ((U + 1).sum(), J), (V, J), (V,))
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    inputs, labels = [Tensor(array, requires_grad=True) for array in arrays], rng.integers(1, V, U.sum())
    rnnt_loss(*inputs, labels, T, U)  # compile
    print(f"with a joint network and gradients, 12000 nodes, V = {V}, J = {J}:")
    start = time.perf_counter()
    losses, _ = materialised_loss_and_gradients(*arrays, labels, T, U)
    middle = time.perf_counter()
    _, same = rnnt_loss(*inputs, labels, T, U)
    end = time.perf_counter()
    print(f"  all logits in memory  {losses.mean():.3f}  {1e3 * (middle - start):.0f} ms")
    print(f"  in chunks of nodes    {same.mean():.3f}  {1e3 * (end - middle):.0f} ms")


if __name__ == "__main__":
    demo()
