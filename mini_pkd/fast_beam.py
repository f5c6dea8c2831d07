"""The beam search of decode.py, fast: for many utterances at once, and on rows that arrive in pieces.

One joint call and one predictor call serve a level, whatever the number of utterances and hypotheses.  Label
sequences become integers, the nodes of a prefix tree, so that "equal labels" is `==` and a new hypothesis is one
integer.  One tree serves all utterances: the prediction network sees labels only, so what it says after a prefix is
the same in each of them.

The hypotheses of several utterances are a ragged batch: utterance b owns the rows first[b] .. first[b+1]-1.  What is
kept and what is cut is exactly what the readable search keeps and cuts.  Each kernel here and its partner there:

    log_add         np.logaddexp
    best_first      np.argsort(-values, kind="stable")[:most]
    one_level       the body of its loop over levels, from `extended = {}` to the next `level`
    next_beam       best(finished)
    find_or_make    the keys of its dictionary `predictor`
    compact         no partner, because there no prefix is forgotten; labels are the same before and after
"""

import math

import numpy as np
from numba import njit

from .decode import BEAM, MAX_SYMBOLS, Hypothesis, TableModel, beam_search_readable
from .ragged import row_starts
from .search_checks import check_inputs, check_numbers, scores_not_finite
from .stop_signal import raise_if

# --- the search -----------------------------------------------------------------------------------


def beam_search(model, enc, lengths, beam=BEAM, max_symbols=MAX_SYMBOLS, n_best=1, stop=None):
    """enc (sum T', J), lengths (B,) -> for each utterance its `n_best` Hypotheses, best first.

    stop: a StopSignal, at which the search looks after each row; Interrupted when it is raised.
    """
    lengths = check_inputs(enc, lengths, max_symbols, beam=beam, n_best=n_best)
    B = len(lengths)
    order = np.argsort(-lengths, kind="stable")  # longest first, so that those still running are a prefix
    first = row_starts(lengths)[order]
    running = lengths[order]
    search = Search(model, B, beam, max_symbols)
    results = [None] * B
    live = B
    for t in range(int(running[0]) + 1 if B else 0):
        raise_if(stop)
        while live and running[live - 1] == t:  # this one has no row t: its beam is its answer
            live -= 1
            results[order[live]] = search.hypotheses(live, n_best)
        if live:
            search.advance(enc[first[:live] + t])
    return results


class BeamStream:
    """Beam search on encoder rows that arrive in pieces; any cutting gives the same hypotheses."""

    def __init__(self, model, beam=BEAM, max_symbols=MAX_SYMBOLS):
        check_numbers(max_symbols=max_symbols, beam=beam)
        self.search = Search(model, 1, beam, max_symbols)

    def push(self, enc_rows):
        """Rows (n, J), n >= 0 -> labels of the best hypothesis so far; later rows may still change them."""
        for t in range(len(enc_rows)):
            self.search.advance(enc_rows[t : t + 1])
        return self.search.hypotheses(0, 1)[0].labels

    def finish(self, n_best=1):
        """-> the `n_best` Hypotheses, best first."""
        return self.search.hypotheses(0, n_best)


class Search:
    """The beams of B utterances after the encoder rows seen so far.

    Utterance b owns the entries first[b] .. first[b+1]-1 of `node` and `score`, best first.
    """

    def __init__(self, model, B, beam, max_symbols):
        self.model, self.beam, self.max_symbols = model, beam, max_symbols
        self.tree = PrefixTree(*model.predictor_start(1))
        self.first = np.arange(B + 1, dtype=np.int64)
        self.node = np.zeros(B, dtype=np.int64)  # every utterance begins at the root: no labels
        self.score = np.zeros(B)  # (N,) float64: sums over hundreds of rows
        self.compact_at = 256

    def advance(self, enc_rows):
        """One encoder row (B, J) for each utterance, or for the first B of them: those that have ended stand last."""
        tree, beam = self.tree, self.beam
        B = len(enc_rows)
        first = self.first[: B + 1]
        node, score = self.node[: first[B]], self.score[: first[B]]
        finished_count = np.zeros(B, dtype=np.int64)
        finished_node = np.empty((B, 4 * min(beam, 16)), dtype=np.int64)  # widened where too few
        finished_score = np.empty(finished_node.shape)
        used = 0  # an upper bound of finished_count
        for said in range(self.max_symbols + 1):
            sizes = np.diff(first)
            used += int(sizes.max())
            if used > finished_node.shape[1]:
                finished_node, finished_score = (wider(a, 2 * used) for a in (finished_node, finished_score))
            owner = np.repeat(np.arange(B), sizes)  # (N,)
            logits = self.model.joint_logits(enc_rows[owner], tree.pred[tree.slot[node]])  # (N, V)
            may_speak = said < self.max_symbols
            first, extends, symbol, score, healthy = one_level(
                logits, first, node, score, finished_count, finished_node, finished_score, beam, may_speak
            )
            if not healthy:
                raise scores_not_finite()
            if len(extends) == 0:
                break
            node = tree.children(self.model, node[extends], symbol)
        self.first, self.node, self.score = next_beam(finished_count, finished_node, finished_score, beam)
        if tree.nodes > self.compact_at:
            self.node = tree.forget_all_but(self.node)
            self.compact_at = max(256, 4 * tree.nodes)

    def hypotheses(self, b, n_best):
        rows = range(int(self.first[b]), int(min(self.first[b] + n_best, self.first[b + 1])))
        return [Hypothesis(self.tree.labels(self.node[i]), float(self.score[i])) for i in rows]


# --- one level, one row ---------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def log_add(a, b):
    if a < b:
        a, b = b, a
    if b == -np.inf:  # also both: -inf - -inf would be nan
        return a
    return a + math.log1p(math.exp(b - a))


@njit(cache=True, nogil=True)
def best_first(values, most):
    """Indices of the `most` largest values, largest first, ties in order; by insertion, because there are few."""
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
def one_level(logits, first, node, score, finished_count, finished_node, finished_score, beam, may_speak):
    """Blank for every hypothesis of this level into `finished`, then the best extensions by a symbol.

    Returns the next level, utterance by utterance: first (B+1,), and for each hypothesis the entry of this
    level that it extends, its symbol and its score; and whether all scores were numbers.
    """
    N, V = logits.shape
    B = len(finished_count)
    log_norm = np.empty(N)
    for i in range(N):
        top = logits[i, 0]
        for k in range(1, V):
            top = max(top, logits[i, k])
        total = 0.0
        for k in range(V):
            total += math.exp(np.float64(logits[i, k]) - top)
        log_norm[i] = top + math.log(total)

    most = 0  # extensions that one utterance can have
    for b in range(B):
        most = max(most, min(beam, (first[b + 1] - first[b]) * (V - 1)))
    capacity = B * most if may_speak else 0
    next_first = np.zeros(B + 1, dtype=np.int64)
    next_extends = np.empty(capacity, dtype=np.int64)
    next_symbol = np.empty(capacity, dtype=np.int64)
    next_score = np.empty(capacity)
    healthy = True

    end = 0
    for b in range(B):
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
                finished_score[b, j] = log_add(finished_score[b, j], done)
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
                bar = finished_score[b, best_first(finished_score[b, :count], beam)[beam - 1]]
            for i in range(first[b], first[b + 1]):
                if score[i] <= bar:  # its extensions can only be worse
                    continue
                base = score[i] - log_norm[i]
                for k in range(1, V):
                    value = base + logits[i, k]
                    if value > bar:
                        if end - begin < beam:
                            end += 1
                        j = end - 1  # a free entry, or that of the worst, which falls out
                        while j > begin and next_score[j - 1] < value:
                            next_extends[j] = next_extends[j - 1]
                            next_symbol[j] = next_symbol[j - 1]
                            next_score[j] = next_score[j - 1]
                            j -= 1
                        next_extends[j], next_symbol[j], next_score[j] = i, k, value
                        if end - begin == beam:
                            bar = max(bar, next_score[end - 1])
        next_first[b + 1] = end
    return next_first, next_extends[:end], next_symbol[:end], next_score[:end], healthy


@njit(cache=True, nogil=True)
def next_beam(count, node, score, beam):
    """The next beam: the `beam` best of each utterance, best first, laid end to end."""
    B = len(count)
    first = np.zeros(B + 1, dtype=np.int64)
    for b in range(B):
        first[b + 1] = first[b] + min(beam, count[b])
    out_node = np.empty(first[B], dtype=np.int64)
    out_score = np.empty(first[B])
    for b in range(B):
        order = best_first(score[b, : count[b]], beam)
        for rank in range(len(order)):
            out_node[first[b] + rank] = node[b, order[rank]]
            out_score[first[b] + rank] = score[b, order[rank]]
    return first, out_node, out_score


# --- the prefix tree ------------------------------------------------------------------------------


PARENT, SYMBOL, FIRST_CHILD, NEXT_SIBLING, SLOT = range(5)  # the rows of `links`, one column per node


class PrefixTree:
    """Label sequences as integers, and what the prediction network says after each of them.

    Node 0 is the empty sequence.  Node n is the labels of its parent followed by its symbol; a parent lists its
    children as a chain first child -> next sibling -> ... (-1 ends it).  The predictor's output and state after
    node n stand in row slot[n] of `pred` and `state`, so a hypothesis that says blank, or comes back in a later
    row, costs nothing; slot -1 means forgotten, to be computed again if it is needed again.
    """

    def __init__(self, pred, state):
        self.links = np.full((5, 256), -1, dtype=np.int64)
        self.nodes, self.slots = 1, 1
        self.links[SLOT, 0] = 0  # the root's slot: the predictor after the start symbol
        self.pred, self.state = pred, tuple(state)

    @property
    def slot(self):
        return self.links[SLOT]

    def labels(self, node):
        labels = []
        while node != 0:
            labels.append(int(self.links[SYMBOL, node]))
            node = self.links[PARENT, node]
        return labels[::-1]

    def children(self, model, parents, symbols):
        """The nodes of `parents` + `symbols` (N,), made where missing; one predictor call for the new."""
        if self.nodes + len(parents) > self.links.shape[1]:
            self.links = wider(self.links, 2 * (self.nodes + len(parents)), fill=-1)
        children, self.nodes, new = find_or_make(self.links, self.nodes, self.slots, parents, symbols)
        if len(new):
            before = self.slot[self.links[PARENT, new]]  # (new,) parents are in the present level, so never forgotten
            pred, state = model.predictor_step(self.links[SYMBOL, new], tuple(a[before] for a in self.state))
            end = self.slots + len(new)
            if end > len(self.pred):
                self.pred = longer(self.pred, 2 * end)
                self.state = tuple(longer(a, 2 * end) for a in self.state)
            self.pred[self.slots : end] = pred
            for old, fresh in zip(self.state, state, strict=True):
                old[self.slots : end] = fresh
            self.slots = end
        return children

    def forget_all_but(self, live):
        """Keep `live` and their ancestors, or memory would grow with the length of a stream; live's new numbers."""
        kept = np.unique(live)
        rows = self.slot[kept]
        self.pred = self.pred[rows]
        self.state = tuple(a[rows] for a in self.state)
        self.slots = len(kept)
        self.links, self.nodes, number = compact(self.links, self.nodes, kept)
        return number[live]


@njit(cache=True, nogil=True)
def find_or_make(links, nodes, slots, parents, symbols):
    """-> the children (N,), how many nodes there are now, and the nodes that need a row in `pred` and `state`."""
    parent, symbol, slot = links[PARENT], links[SYMBOL], links[SLOT]
    first_child, next_sibling = links[FIRST_CHILD], links[NEXT_SIBLING]
    children = np.empty(len(parents), dtype=np.int64)
    new = np.empty(len(parents), dtype=np.int64)  # each once
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
def compact(links, nodes, live):
    """-> `links` of a tree of `live` (sorted, each once) and their ancestors, its number of nodes, and the new number
    of every old node; the i-th of `live` gets slot i.
    """
    number = np.full(nodes, -1, dtype=np.int64)  # old node -> new node
    number[0] = 0
    for n in live:
        while number[n] == -1:
            number[n] = 0  # marked; numbered below
            n = links[PARENT, n]
    marked = 1
    for n in range(1, nodes):  # in order, so that a parent keeps a smaller number than its children
        if number[n] == 0:
            number[n] = marked
            marked += 1
    out = np.full((5, 2 * marked), -1, dtype=np.int64)
    for n in range(1, nodes):
        m = number[n]
        if m > 0:
            p = number[links[PARENT, n]]
            out[PARENT, m], out[SYMBOL, m] = p, links[SYMBOL, n]
            out[NEXT_SIBLING, m] = out[FIRST_CHILD, p]
            out[FIRST_CHILD, p] = m
    for i in range(len(live)):
        out[SLOT, number[live[i]]] = i
    return out, marked, number


def wider(array, columns, fill=0):
    out = np.full((array.shape[0], columns), fill, dtype=array.dtype)
    out[:, : array.shape[1]] = array
    return out


def longer(array, rows):
    out = np.empty((rows, *array.shape[1:]), dtype=array.dtype)
    out[: len(array)] = array
    return out


# --- demo -----------------------------------------------------------------------------------------


def demo():
    silent = [1.0, 0.0, 0.0]
    model = TableModel([[[0.3, 0.4, 0.3], silent, silent], [[0.0, 0.1, 0.9], silent, silent]])  # as in decode.py
    for title, found in (
        ("readable:", beam_search_readable(model, model.enc, n_best=2)),
        ("fast:", beam_search(model, model.enc, [2], n_best=2)[0]),
    ):
        print(f"{title:10s}", "   ".join(f"P({' ab'[h.labels[0]]}) = {math.exp(h.log_prob):.2f}" for h in found))
    stream = BeamStream(model)
    for t in range(2):
        print(f"after row {t} the stream's best labels are {stream.push(model.enc[t : t + 1])}")


if __name__ == "__main__":
    demo()
