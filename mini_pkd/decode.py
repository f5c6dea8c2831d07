"""Decoding: from encoder rows to label sequences, greedily or with a beam.

A transducer reads an utterance row by row.  In each row it may say symbols, at most `max_symbols` of them, and then
says blank, which moves it on to the next row.  One way of doing so is a *path*.  A path's labels are its symbols
without the blanks, and many paths spell the same labels.  Three rows, one label, "." for blank:

    a . . .      . a . .      . . a .

Greedy search takes the most probable symbol at every step, and so follows one path.  Beam search looks for the most
probable *labels*, P(labels) = sum over their paths, and keeps a few candidates, the hypotheses.  It works row by row
(Graves 2012, section 2.5, with a bound on what a row can say):

    beam      the hypotheses that survived the last row, all with different labels, each with its log-probability
    level s   those that have said s symbols in this row: level 0 is the beam, level s+1 is level s, one symbol longer
    finished  those that have said blank, at any level; where labels are equal, probabilities are added (log-add)

No path is counted twice, because in each row a path says a definite number of symbols and then one blank: it belongs
to one level only.  Inside a level all labels differ, so only `finished` needs merging.  At level `max_symbols` only
blank is allowed, so a row always ends.

What is cut:

- a level keeps the `beam` best extensions;
- an extension must score better than `cutoff`, the beam-th best of `finished` so far.  Log-probabilities only fall, so
  a worse one could not enter the next beam by itself; all we lose is what it would have added to a hypothesis with the
  same labels.  This ends most rows after a level or two;
- the next beam is the `beam` best of `finished`.

With a beam as wide as the search space nothing is cut, and the result is the exact sum over all paths.

The searches see encoder rows and a model, never a reference text.  From the model they use

    predictor_start(N) -> pred (N, J), state                    the prediction network after the start symbol
    predictor_step(symbols (N,), state) -> pred (N, J), state   ... after one more symbol
    joint_logits(enc_rows (N, J), pred_rows (N, J)) -> (N, V)   raw scores of the next symbol

where `state` is a tuple of arrays with N rows.  fast_beam.py is the same beam search for many utterances at once, and
for rows that arrive in pieces.  Left out: length normalisation, external language models, pruned vocabularies.
"""

from typing import NamedTuple

import numpy as np

from .ragged import BLANK, row_starts
from .search_checks import check_inputs, check_numbers, scores_not_finite

BEAM = 8  # the paper's width
MAX_BEAM = 256  # the commands take no wider one: a single row would keep Ctrl-C waiting
MAX_SYMBOLS = 12  # per row.  A row of 80 ms may hold a whole word of many units: with 5, DOUBLE (6 units) was lost


class Hypothesis(NamedTuple):
    labels: list  # of int, without blanks
    log_prob: float  # log of the summed probability of the paths that the search kept


# --- greedy search --------------------------------------------------------------------------------


class GreedyStream:
    """Greedy search on one utterance, whose encoder rows may arrive in pieces; any cutting gives the same labels."""

    def __init__(self, model, max_symbols=MAX_SYMBOLS):
        check_numbers(max_symbols=max_symbols)
        self.model, self.max_symbols = model, max_symbols
        self.pred, self.state = model.predictor_start(1)
        self.labels = []
        self.rows = []  # the row in which each label was said
        self.row = 0

    def push(self, enc_rows):
        """Rows (n, J), n >= 0 -> all labels so far.  Greedy search never takes a label back."""
        for i in range(len(enc_rows)):
            for _ in range(self.max_symbols):
                symbol = _most_probable(self.model.joint_logits(enc_rows[i : i + 1], self.pred))  # (1,)
                if symbol[0] == BLANK:
                    break
                self.pred, self.state = self.model.predictor_step(symbol, self.state)
                self.labels.append(int(symbol[0]))
                self.rows.append(self.row)
            self.row += 1
        return self.finish()

    def finish(self):
        return list(self.labels)  # a copy: the caller's does not grow with ours


def greedy(model, enc, lengths, max_symbols=MAX_SYMBOLS):
    """The same for a batch, fast: enc (sum T', J), lengths (B,) -> B lists of labels.

    In each round every utterance takes one step of its own: one says a symbol while another moves to its next row.
    """
    lengths = check_inputs(enc, lengths, max_symbols)
    pred, state = model.predictor_start(len(lengths))
    pred, state = np.array(pred), [np.array(a) for a in state]  # copies, written below
    labels = [[] for _ in lengths]
    first = row_starts(lengths)
    t, said = np.zeros_like(lengths), np.zeros_like(lengths)  # the row of each utterance, and its symbols there
    live = np.flatnonzero(lengths > 0)
    while live.size:
        best = _most_probable(model.joint_logits(enc[first[live] + t[live]], pred[live]))  # (live,)
        speaks = best != BLANK
        if speaks.any():
            speakers, symbols = live[speaks], best[speaks]
            pred[speakers], new_state = model.predictor_step(symbols, tuple(a[speakers] for a in state))
            for old, new in zip(state, new_state, strict=True):
                old[speakers] = new
            for b, symbol in zip(speakers.tolist(), symbols.tolist(), strict=True):
                labels[b].append(symbol)
            said[speakers] += 1
        done = live[~speaks | (said[live] >= max_symbols)]  # done with this row
        t[done] += 1
        said[done] = 0
        live = live[t[live] < lengths[live]]
    return labels


def _most_probable(logits):
    """(N, V) -> (N,)"""
    best = logits.argmax(axis=1)  # the place of a NaN or +inf where there is one; -inf: a symbol that cannot be said
    if not np.isfinite(logits[np.arange(len(best)), best]).all():
        raise scores_not_finite()
    return best


# --- beam search ----------------------------------------------------------------------------------


def beam_search_readable(model, enc, beam=BEAM, max_symbols=MAX_SYMBOLS, n_best=1, trace=None):
    """One utterance, enc (T', J) -> its `n_best` Hypotheses, best first.

    Labels are tuples here, and a dictionary gives each its log-probability.  To watch the search, pass a list as
    `trace`: it gets one entry per row, {labels: ways}, the hypotheses after this row, best first.  A way is a pair, the
    number of symbols said in this row and the log-probability of the paths that did so; several ways were merged.
    """
    check_inputs(enc, [len(enc)], max_symbols, beam=beam, n_best=n_best)
    predictor = {(): model.predictor_start(1)}  # labels: (pred, state) of the prediction network after them

    def next_log_probs(t, labels):
        if labels not in predictor:
            _, state = predictor[labels[:-1]]
            predictor[labels] = model.predictor_step(np.array(labels[-1:], dtype=np.int64), state)
        logits = model.joint_logits(enc[t : t + 1], predictor[labels][0])[0].astype(np.float64)
        if not np.isfinite(logits.max()):  # max returns a NaN where there is one
            raise scores_not_finite()
        return logits - np.logaddexp.reduce(logits)  # (V,)

    def best(scores):  # the `beam` best of a dictionary, best first
        return dict(sorted(scores.items(), key=lambda item: -item[1])[:beam])

    hypotheses = {(): 0.0}
    for t in range(len(enc)):
        level, finished, ways = hypotheses, {}, {}
        for said in range(max_symbols + 1):
            extended = {}
            for labels, score in level.items():
                log_probs = next_log_probs(t, labels)
                blank = score + log_probs[BLANK]
                finished[labels] = np.logaddexp(finished.get(labels, -np.inf), blank)
                ways.setdefault(labels, []).append((said, float(blank)))
                if said < max_symbols:
                    for symbol in range(1, len(log_probs)):
                        extended[labels + (symbol,)] = score + log_probs[symbol]
            cutoff = min(best(finished).values()) if len(finished) >= beam else -np.inf
            level = best({labels: score for labels, score in extended.items() if score > cutoff})
            if not level:
                break
        hypotheses = best(finished)
        if trace is not None:
            trace.append({labels: ways[labels] for labels in hypotheses})
    return [Hypothesis(list(labels), float(score)) for labels, score in list(hypotheses.items())[:n_best]]


# --- demo -----------------------------------------------------------------------------------------


class TableModel:
    """A transducer to do by hand: P(symbol | row, last symbol) straight from a table (T, V, V)."""

    def __init__(self, table):
        with np.errstate(divide="ignore"):
            self.logits = np.log(table)
        self.enc = np.arange(len(table))[:, None]  # (T, 1): row t holds the number t

    def predictor_start(self, N):
        return self.predictor_step(np.zeros(N, dtype=np.int64), ())

    def predictor_step(self, symbols, state):
        return symbols[:, None], ()  # (N, 1): the last symbol itself; there is nothing else to remember

    def joint_logits(self, enc_rows, pred_rows):
        return self.logits[enc_rows[:, 0], pred_rows[:, 0]]


def demo():
    silent = [1.0, 0.0, 0.0]  # after a symbol: blank for certain
    row_0, row_1 = [0.3, 0.4, 0.3], [0.0, 0.1, 0.9]  # blank, a, b when nothing is said yet
    model = TableModel([[row_0, silent, silent], [row_1, silent, silent]])
    print("Two rows, symbols a and b; after one symbol the model is silent.  Nothing said yet:")
    print("    row 0:  blank 0.3  a 0.4  b 0.3        row 1:  blank 0.0  a 0.1  b 0.9")
    print("By hand:  P(a) = 0.4 + 0.3 x 0.1 = 0.43     P(b) = 0.3 + 0.3 x 0.9 = 0.57")
    print(f"greedy takes the 0.4 of row 0:  {' ab'[GreedyStream(model).push(model.enc)[0]]}   (wrong)")
    trace = []
    for labels, log_prob in beam_search_readable(model, model.enc, n_best=2, trace=trace):
        ways = [f"{np.exp(way):.2f} with {said} said in row 1" for said, way in trace[-1][tuple(labels)]]
        print(f"beam 8:  P({' ab'[labels[0]]}) = {np.exp(log_prob):.2f}   merged from {' and '.join(ways)}")
    print("Merging decides: the best path of all spells a (0.40), but b's two paths together have more.")


if __name__ == "__main__":
    demo()
