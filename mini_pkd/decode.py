"""Decoding: from encoder rows to label sequences, greedily or with a beam.

A transducer reads an utterance frame by frame.  In each frame it may say any number of symbols (we allow
`max_symbols`) and then says blank, which moves it on to the next frame.  One way of doing so is a *path*;
a path's labels are its symbols without the blanks, and many paths spell the same labels:

    a . .      . a .      . . a        three frames, one label: "." is blank

Greedy search follows the single most probable next symbol.  Beam search looks for the most probable
*labels*, P(labels) = sum over their paths, and keeps a few candidates.  It works frame by frame (Graves 2012,
section 2.5, made frame-synchronous and bounded):

    beam     what survived the last frame: label sequences, all different, each with its log-probability
    level 0  := beam;  level s+1 := hypotheses of level s, each extended by one symbol, in this same frame
    finished := for every hypothesis of every level: + log P(blank); equal labels are merged with log-add

Why no path is counted twice: a path decides for each frame how many symbols it says there.  It therefore
passes through exactly one level per frame, and leaves the frame through exactly one blank.  Inside a level
all labels differ (they extend different labels, or by different symbols), so only `finished` needs merging.
At level `max_symbols` only blank is allowed, so a frame always ends.

What is cut, and the fast and the readable version cut the same:

- a level keeps the `beam` best extensions;
- an extension must score better than `cutoff`, the beam-th best of `finished` so far.  Log-probabilities only
  fall, so a worse one could never enter the next beam by itself; all we lose is the crumb of probability
  by which it might have raised a hypothesis of the same labels.  This ends most frames after a level or two;
- the next beam is the `beam` best of `finished`.

With a beam as wide as the search space nothing is cut, and the result is the exact sum over all paths.

The functions here see encoder rows and a model, never a reference text.  From the model they use

    predictor_start(K) -> pred (K, J), state                    after the start symbol 0
    predictor_step(symbols (K,), state) -> pred (K, J), state   after one more symbol
    joint_logits(enc_rows (K, J), pred_rows (K, J)) -> (K, V)   raw scores, blank = 0

where `state` is a tuple of arrays with K rows.

Left out: length normalisation, external language models, decoding on a pruned vocabulary.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from . import UserError
from .ragged import BLANK

BEAM = 8  # the paper's width
MAX_BEAM = 256  # of the commands.  A frame of a wider one takes so long in a kernel that Ctrl-C seems dead
MAX_SYMBOLS = 12  # per row.  A word said in a breath may be many units: at 5, DOUBLE (6 units) was lost


class Hypothesis(NamedTuple):
    labels: list  # of int, without blanks
    log_prob: float  # log of the summed probability of the paths that the search kept


# ---------------------------------------------------------------------------------------------- greedy


def greedy(model, enc, lengths, max_symbols=MAX_SYMBOLS):
    """Most probable next symbol, again and again.  enc (sum T', J), lengths (B,) -> B lists of labels."""
    lengths = _check(enc, lengths, max_symbols)
    B = len(lengths)
    pred, state = _writable(*model.predictor_start(B))
    labels = [[] for _ in range(B)]
    _greedy_rows(model, enc, lengths, max_symbols, pred, state, labels)
    return labels


def _greedy_rows(model, enc, lengths, max_symbols, pred, state, labels):
    """Consume all rows; `pred`, `state` and `labels` are updated in place, so a stream can go on from them.

    All utterances move together, but each at its own pace: in one round one utterance says a symbol while
    another one steps to its next frame.  So there are max(T + U) rounds, whatever B is.
    """
    first = np.cumsum(lengths) - lengths  # (B,) each utterance's first row
    t = np.zeros_like(lengths)
    said = np.zeros_like(lengths)  # symbols in the present frame
    live = np.flatnonzero(lengths > 0)
    while live.size:
        logits = model.joint_logits(enc[first[live] + t[live]], pred[live])  # (live, V)
        best = logits.argmax(axis=1)
        # argmax returns a NaN or +inf where there is one; -inf alone is no error but a symbol that cannot be said
        if not np.isfinite(logits[np.arange(live.size), best]).all():
            raise _not_finite()
        speaks = best != BLANK
        if speaks.any():
            who, symbols = live[speaks], best[speaks]
            new_pred, new_state = model.predictor_step(symbols, tuple(a[who] for a in state))
            pred[who] = new_pred
            for old, new in zip(state, new_state, strict=True):
                old[who] = new
            for b, symbol in zip(who.tolist(), symbols.tolist(), strict=True):
                labels[b].append(symbol)
            said[who] += 1
        done = live[~speaks | (said[live] >= max_symbols)]  # done with this frame
        t[done] += 1
        said[done] = 0
        live = live[t[live] < lengths[live]]


class GreedyStream:
    """Greedy search on encoder rows that arrive in pieces; any cutting gives the same labels."""

    def __init__(self, model, max_symbols=MAX_SYMBOLS):
        _check_numbers(max_symbols=max_symbols)
        self.model, self.max_symbols = model, max_symbols
        self.pred, self.state = _writable(*model.predictor_start(1))
        self.labels = []

    def push(self, enc_rows):
        """Rows (n, J), n >= 0 -> all labels so far.  Greedy never takes a label back."""
        lengths = np.array([len(enc_rows)], dtype=np.int64)
        _greedy_rows(self.model, enc_rows, lengths, self.max_symbols, self.pred, self.state, [self.labels])
        return list(self.labels)

    def finish(self):
        return list(self.labels)


# ------------------------------------------------------------------- beam search, the readable version


def beam_search_readable(model, enc, beam=BEAM, max_symbols=MAX_SYMBOLS, n_best=1):
    """One utterance, enc (T', J) -> its `n_best` hypotheses.  Dictionaries from label tuples; the oracle."""
    _check(enc, [len(enc)], max_symbols, beam=beam, n_best=n_best)
    pred, state = model.predictor_start(1)
    predictor = {(): (pred, state)}  # what the prediction network says after these labels

    def predict(labels):
        if labels not in predictor:
            before = predictor[labels[:-1]]
            predictor[labels] = model.predictor_step(np.array(labels[-1:], dtype=np.int64), before[1])
        return predictor[labels][0]

    def best(scores):  # the `beam` best of a dictionary, best first
        return dict(sorted(scores.items(), key=lambda item: -item[1])[:beam])

    hypotheses = {(): 0.0}
    for t in range(len(enc)):
        finished = {}
        level = hypotheses
        for said in range(max_symbols + 1):
            extended = {}
            for labels, score in level.items():
                logits = model.joint_logits(enc[t : t + 1], predict(labels))[0].astype(np.float64)
                if not np.isfinite(logits.max()):  # max returns a NaN where there is one
                    raise _not_finite()
                log_probs = logits - np.logaddexp.reduce(logits)
                finished[labels] = np.logaddexp(finished.get(labels, -np.inf), score + log_probs[BLANK])
                if said < max_symbols:
                    for symbol in range(1, len(log_probs)):
                        extended[labels + (symbol,)] = score + log_probs[symbol]
            cutoff = min(best(finished).values()) if len(finished) >= beam else -np.inf
            level = best({labels: score for labels, score in extended.items() if score > cutoff})
            if not level:
                break
        hypotheses = best(finished)
    return [Hypothesis(list(labels), float(score)) for labels, score in list(hypotheses.items())[:n_best]]


# ----------------------------------------------------------------------- beam search, the fast version
#
# The same search for all utterances at once: one joint call and one predictor call per level, whatever the
# number of utterances and hypotheses.  Label sequences become integers, the nodes of a prefix tree, so that
# "equal labels" is `==` and a new hypothesis is one integer.  One tree serves all utterances: the prediction
# network sees labels only, so what it says after a prefix is the same for whoever said it.


def beam_search(model, enc, lengths, beam=BEAM, max_symbols=MAX_SYMBOLS, n_best=1):
    """enc (sum T', J), lengths (B,) -> for each utterance its `n_best` Hypotheses, best first."""
    lengths = _check(enc, lengths, max_symbols, beam=beam, n_best=n_best)
    B = len(lengths)
    order = np.argsort(-lengths, kind="stable")  # longest first, so that those still running are a prefix
    first = (np.cumsum(lengths) - lengths)[order]
    running = lengths[order]
    search = _Search(model, B, beam, max_symbols)
    results = [None] * B
    live = B
    for t in range(int(running[0]) + 1 if B else 0):
        while live and running[live - 1] == t:  # this one has no row t: its beam is its answer
            live -= 1
            results[order[live]] = search.hypotheses(live, n_best)
        if live:
            search.advance(enc[first[:live] + t])
    return results


class BeamStream:
    """Beam search on encoder rows that arrive in pieces; any cutting gives the same hypotheses."""

    def __init__(self, model, beam=BEAM, max_symbols=MAX_SYMBOLS):
        _check_numbers(max_symbols=max_symbols, beam=beam)
        self.search = _Search(model, 1, beam, max_symbols)

    def push(self, enc_rows):
        """Rows (n, J), n >= 0 -> labels of the best hypothesis so far; later rows may still change them."""
        for t in range(len(enc_rows)):
            self.search.advance(enc_rows[t : t + 1])
        return self.search.hypotheses(0, 1)[0].labels

    def finish(self, n_best=1):
        """-> the `n_best` Hypotheses, best first."""
        return self.search.hypotheses(0, n_best)


class _Search:
    """The beams of several utterances after the frames seen so far.

    Utterance b owns the rows first[b] .. first[b+1]-1 of `node` and `score`, best first.  Utterances that end
    early must be the last ones: `advance` takes one encoder row for each of the first len(enc_rows).
    """

    def __init__(self, model, B, beam, max_symbols):
        self.model, self.beam, self.max_symbols = model, beam, max_symbols
        self.tree = _PrefixTree(*model.predictor_start(1))
        self.first = np.arange(B + 1, dtype=np.int64)
        self.node = np.zeros(B, dtype=np.int64)  # everybody begins at the root: no labels
        self.score = np.zeros(B)  # (N,) float64: sums over hundreds of frames
        self.compact_at = 256

    def advance(self, enc_rows):
        tree, beam = self.tree, self.beam
        A = len(enc_rows)
        first = self.first[: A + 1]
        node, score = self.node[: first[A]], self.score[: first[A]]
        finished_count = np.zeros(A, dtype=np.int64)
        finished_node = np.empty((A, 4 * min(beam, 16)), dtype=np.int64)  # widened where too few
        finished_score = np.empty(finished_node.shape)
        used = 0  # an upper bound of finished_count
        for said in range(self.max_symbols + 1):
            sizes = np.diff(first)
            used += int(sizes.max())
            if used > finished_node.shape[1]:
                finished_node, finished_score = (_wider(a, 2 * used) for a in (finished_node, finished_score))
            owner = np.repeat(np.arange(A), sizes)  # (N,)
            logits = self.model.joint_logits(enc_rows[owner], tree.pred[tree.slot[node]])  # (N, V)
            may_speak = said < self.max_symbols
            first, row, symbol, score, healthy = _one_level(
                logits, first, node, score, finished_count, finished_node, finished_score, beam, may_speak
            )
            if not healthy:
                raise _not_finite()
            if len(row) == 0:
                break
            node = tree.children(self.model, node[row], symbol)
        self.first, self.node, self.score = _next_beam(finished_count, finished_node, finished_score, beam)
        if tree.nodes > self.compact_at:
            self.node = tree.forget_all_but(self.node)
            self.compact_at = max(256, 4 * tree.nodes)

    def hypotheses(self, b, n_best):
        rows = range(int(self.first[b]), int(min(self.first[b] + n_best, self.first[b + 1])))
        return [Hypothesis(self.tree.labels(self.node[i]), float(self.score[i])) for i in rows]


@njit(cache=True, nogil=True)
def _log_add(a, b):
    if a < b:
        a, b = b, a
    if b == -np.inf:  # also both: -inf - -inf would be nan
        return a
    return a + math.log1p(math.exp(b - a))


@njit(cache=True, nogil=True)
def _best_first(values, most):
    """Indices of the `most` largest values, largest first, ties in order; insertion, for there are few."""
    order = np.empty(min(most, len(values)), dtype=np.int64)
    end = 0
    for i in range(len(values)):
        if end < len(order):
            end += 1
        elif not values[i] > values[order[end - 1]]:
            continue
        j = end - 1
        while j > 0 and values[order[j - 1]] < values[i]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
    return order


@njit(cache=True, nogil=True)
def _one_level(logits, first, node, score, finished_count, finished_node, finished_score, beam, may_speak):
    """Blank for every hypothesis of this level into `finished`, then the best extensions by a symbol.

    Returns the next level, utterance by utterance: first (A+1,), and for each hypothesis the row of this
    level that it extends, its symbol and its score; and whether all scores were numbers.
    """
    N, V = logits.shape
    A = len(finished_count)
    log_norm = np.empty(N)
    for i in range(N):
        top = logits[i, 0]
        for v in range(1, V):
            top = max(top, logits[i, v])
        total = 0.0
        for v in range(V):
            total += math.exp(np.float64(logits[i, v]) - top)
        log_norm[i] = top + math.log(total)

    most = 0  # extensions that one utterance can have
    for b in range(A):
        most = max(most, min(beam, (first[b + 1] - first[b]) * (V - 1)))
    capacity = A * most if may_speak else 0
    next_first = np.zeros(A + 1, dtype=np.int64)
    next_row = np.empty(capacity, dtype=np.int64)
    next_symbol = np.empty(capacity, dtype=np.int64)
    next_score = np.empty(capacity)
    healthy = True

    end = 0
    for b in range(A):
        # Blank.  Labels differ inside a level, so only entries of earlier levels can be the same labels.
        earlier = finished_count[b]
        for i in range(first[b], first[b + 1]):
            done = score[i] + (logits[i, 0] - log_norm[i])
            if np.isnan(done):
                healthy = False
            j = 0
            while j < earlier and finished_node[b, j] != node[i]:
                j += 1
            if j < earlier:
                finished_score[b, j] = _log_add(finished_score[b, j], done)
            else:
                finished_node[b, finished_count[b]] = node[i]
                finished_score[b, finished_count[b]] = done
                finished_count[b] += 1

        # Symbols: the `beam` best above the cutoff, kept sorted by insertion in next_*[begin:end].
        begin = end
        if may_speak:
            count = finished_count[b]
            bar = -np.inf
            if count >= beam:
                bar = finished_score[b, _best_first(finished_score[b, :count], beam)[beam - 1]]
            for i in range(first[b], first[b + 1]):
                if score[i] <= bar:  # its extensions can only be worse
                    continue
                base = score[i] - log_norm[i]
                for v in range(1, V):
                    value = base + logits[i, v]
                    if value > bar:
                        if end - begin < beam:
                            end += 1
                        j = end - 1  # the last place: free, or that of the worst, which falls out
                        while j > begin and next_score[j - 1] < value:
                            next_row[j] = next_row[j - 1]
                            next_symbol[j] = next_symbol[j - 1]
                            next_score[j] = next_score[j - 1]
                            j -= 1
                        next_row[j], next_symbol[j], next_score[j] = i, v, value
                        if end - begin == beam:
                            bar = max(bar, next_score[end - 1])
        next_first[b + 1] = end
    return next_first, next_row[:end], next_symbol[:end], next_score[:end], healthy


@njit(cache=True, nogil=True)
def _next_beam(count, node, score, beam):
    """The next beam: the `beam` best of each row, best first, laid end to end."""
    A = len(count)
    first = np.zeros(A + 1, dtype=np.int64)
    for b in range(A):
        first[b + 1] = first[b] + min(beam, count[b])
    out_node = np.empty(first[A], dtype=np.int64)
    out_score = np.empty(first[A])
    for b in range(A):
        order = _best_first(score[b, : count[b]], beam)
        for k in range(len(order)):
            out_node[first[b] + k] = node[b, order[k]]
            out_score[first[b] + k] = score[b, order[k]]
    return first, out_node, out_score


class _PrefixTree:
    """Label sequences as integers, and what the prediction network says after each of them.

    Node 0 is the empty sequence.  Node n is the labels of parent[n] followed by symbol[n]; a parent lists its
    children as a chain first_child -> next_sibling -> ... (-1 ends it).  The predictor's output and state
    after node n stand in row slot[n] of `pred` and `state`, so a hypothesis that says blank, or comes back
    in a later frame, costs nothing; slot -1 means forgotten, to be computed again if it is needed again.
    """

    def __init__(self, pred, state):
        self.links = np.full((5, 256), -1, dtype=np.int64)
        self.nodes, self.slots = 1, 1
        self.links[4, 0] = 0  # the root's slot: the predictor after the start symbol
        self.pred, self.state = pred, tuple(state)

    @property
    def slot(self):
        return self.links[4]

    def labels(self, node):
        parent, symbol = self.links[:2]
        labels = []
        while node != 0:
            labels.append(int(symbol[node]))
            node = parent[node]
        return labels[::-1]

    def children(self, model, parents, symbols):
        """The nodes of `parents` + `symbols` (N,), made where missing; one predictor call for the new."""
        if self.nodes + len(parents) > self.links.shape[1]:
            self.links = _wider(self.links, 2 * (self.nodes + len(parents)), fill=-1)
        children, self.nodes, new = _find_or_make(self.links, self.nodes, self.slots, parents, symbols)
        if len(new):
            parent, symbol, _, _, slot = self.links
            before = slot[parent[new]]  # (new,) parents are in the present level, so never forgotten
            pred, state = model.predictor_step(symbol[new], tuple(a[before] for a in self.state))
            end = self.slots + len(new)
            if end > len(self.pred):
                self.pred = _longer(self.pred, 2 * end)
                self.state = tuple(_longer(a, 2 * end) for a in self.state)
            self.pred[self.slots : end] = pred
            for old, fresh in zip(self.state, state, strict=True):
                old[self.slots : end] = fresh
            self.slots = end
        return children

    def forget_all_but(self, live):
        """Keep `live` and their ancestors; returns live's new numbers.  Or memory would grow for ever."""
        kept = np.unique(live)
        rows = self.slot[kept]
        self.pred = self.pred[rows]
        self.state = tuple(a[rows] for a in self.state)
        self.slots = len(kept)
        self.links, self.nodes, number = _compact(self.links, self.nodes, kept)
        return number[live]


@njit(cache=True, nogil=True)
def _find_or_make(links, nodes, slots, parents, symbols):
    parent, symbol, first_child, next_sibling, slot = links[0], links[1], links[2], links[3], links[4]
    children = np.empty(len(parents), dtype=np.int64)
    new = np.empty(len(parents), dtype=np.int64)  # nodes that have no predictor output yet, each once
    count = 0
    for i in range(len(parents)):
        n = first_child[parents[i]]
        while n != -1 and symbol[n] != symbols[i]:
            n = next_sibling[n]
        if n == -1:
            n = nodes
            nodes += 1
            parent[n], symbol[n] = parents[i], symbols[i]
            next_sibling[n] = first_child[parents[i]]
            first_child[parents[i]] = n
        if slot[n] == -1:
            slot[n] = slots + count
            new[count] = n
            count += 1
        children[i] = n
    return children, nodes, new[:count]


@njit(cache=True, nogil=True)
def _compact(links, nodes, live):
    """A tree of `live` (sorted, each once) and their ancestors; live[k] gets slot k."""
    number = np.full(nodes, -1, dtype=np.int64)  # old node -> new node
    number[0] = 0
    for n in live:
        while number[n] == -1:
            number[n] = 0  # marked; numbered below
            n = links[0, n]
    marked = 1
    for n in range(1, nodes):  # in order, so that a parent keeps a smaller number than its children
        if number[n] == 0:
            number[n] = marked
            marked += 1
    out = np.full((5, 2 * marked), -1, dtype=np.int64)
    for n in range(1, nodes):
        m = number[n]
        if m > 0:
            p = number[links[0, n]]
            out[0, m], out[1, m] = p, links[1, n]
            out[3, m] = out[2, p]
            out[2, p] = m
    for k in range(len(live)):
        out[4, number[live[k]]] = k
    return out, marked, number


# ----------------------------------------------------------------------------------------- small things


def _wider(array, columns, fill=0):
    out = np.full((array.shape[0], columns), fill, dtype=array.dtype)
    out[:, : array.shape[1]] = array
    return out


def _longer(array, rows):
    out = np.empty((rows, *array.shape[1:]), dtype=array.dtype)
    out[: len(array)] = array
    return out


def _writable(pred, state):
    return np.array(pred), tuple(np.array(a) for a in state)


def _not_finite():
    return UserError(
        "the model's scores are infinite or not numbers (NaN) while decoding; its checkpoint is damaged or its "
        "training diverged: train it again or use an earlier checkpoint."
    )


def _check_numbers(**numbers):
    for name, value in numbers.items():
        if isinstance(value, bool) or value != int(value) or value < 1:
            raise UserError(f"{name} is {value}, but decoding needs a whole number of at least 1.")


def _check(enc, lengths, max_symbols, **numbers):
    _check_numbers(max_symbols=max_symbols, **numbers)
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != len(enc):
        raise UserError(
            f"there are {len(enc)} encoder rows but the lengths add up to {lengths.sum()}; "
            "give one length per utterance, none negative, that together count all rows."
        )
    return lengths


# ------------------------------------------------------------------------------------------------- demo


class TableModel:
    """P(symbol | frame, last symbol) straight from a table (T, V, V): a transducer to do by hand."""

    def __init__(self, table):
        with np.errstate(divide="ignore"):
            self.logits = np.log(np.asarray(table, dtype=np.float64))
        self.size = max(self.logits.shape)
        self.enc = np.eye(self.size)[: len(self.logits)]  # row t says "frame t"

    def predictor_start(self, K):
        return self.predictor_step(np.zeros(K, dtype=np.int64), ())

    def predictor_step(self, symbols, state):
        return np.eye(self.size)[symbols], ()  # the row says "the last symbol was ..."

    def joint_logits(self, enc_rows, pred_rows):
        return self.logits[enc_rows.argmax(axis=1), pred_rows.argmax(axis=1)]


def main():
    silent = [1.0, 0.0, 0.0]  # after a symbol: blank for certain
    model = TableModel(
        # blank  a    b
        [
            [[0.3, 0.4, 0.3], silent, silent],  # frame 1
            [[0.0, 0.1, 0.9], silent, silent],  # frame 2
        ]
    )
    print("Two frames, symbols a and b; after one symbol the model is silent.  Nothing said yet:")
    print("    frame 1:  blank 0.3  a 0.4  b 0.3        frame 2:  blank 0.0  a 0.1  b 0.9")
    print("By hand:  P(a) = 0.4 + 0.3 x 0.1 = 0.43     P(b) = 0.3 + 0.3 x 0.9 = 0.57")
    names = " ab"

    def spell(labels):
        return "".join(names[k] for k in labels)

    print(f"greedy takes the 0.4 of frame 1:   {spell(greedy(model, model.enc, [2])[0])}   (wrong)")
    for title, found in (
        ("beam 8, fast:", beam_search(model, model.enc, [2], n_best=2)[0]),
        ("beam 8, readable:", beam_search_readable(model, model.enc, n_best=2)),
    ):
        print(f"{title:18s}", "   ".join(f"P({spell(h.labels)}) = {math.exp(h.log_prob):.2f}" for h in found))
    print("Merging decides: b's best single path has only 0.3, its two paths together 0.57.")


if __name__ == "__main__":
    main()
