"""Assignment 6: decoding, from one greedy path to the exact sum over all of them, in pieces and with times."""

import numpy as np

from .task import CORE, Assignment, Mutant, Output, Task

LOWER_FIRST = "key=lambda pair: (-round(pair[1], 9), pair[0])"
HIGHER_FIRST = "key=lambda pair: (round(pair[1], 9), pair[0]), reverse=True"
LOWER_PICK = "symbol = int(np.argmax(log_probs))"
HIGHER_PICK = "symbol = V - 1 - int(np.argmax(log_probs[::-1]))"

CONVENTIONS = {
    "blank": {
        "first": {
            "blank": "0",
            "where blank is": "symbol 0",
            "symbols": "_abcd",
            "A, B, C, D": "1, 2, 3, 4",
            "example blank": "",
        },
        "last": {
            "blank": "V - 1",
            "where blank is": "the last symbol, V - 1",
            "symbols": "abcd_",
            "A, B, C, D": "0, 1, 2, 3",
            "example blank": "scores = np.roll(scores, -1, axis=-1)  # blank is the last symbol",
        },
    },
    "ties": {
        "lower": {
            "pick": LOWER_PICK,
            "other pick": HIGHER_PICK,
            "ranking": LOWER_FIRST,
            "winner": "lower",
            "better tuple": "smaller",
            "tied symbols": "[A]",
            "tied sequences": "(A,), (B,)",
            "reached by blank": ">=",
            "reached by other": ">",
            "when tied": "early",
            "tied rows": "[0, 0]",
        },
        "higher": {
            "pick": HIGHER_PICK,
            "other pick": LOWER_PICK,
            "ranking": HIGHER_FIRST,
            "winner": "higher",
            "better tuple": "larger",
            "tied symbols": "[D]",
            "tied sequences": "(D,), (C,)",
            "reached by blank": ">",
            "reached by other": ">=",
            "when tied": "late",
            "tied rows": "[2, 2]",
        },
    },
    "value": {
        "log-probability": {
            "sign": "",
            "value": "ln P",
            "values": "log_probs",
            "called": "log_prob",
            "best": "largest",
        },
        "cost": {
            "sign": "-",
            "value": "-ln P",
            "values": "costs",
            "called": "cost",
            "best": "smallest",
        },
    },
    "rows": {
        "from 0": {
            "rows of ab": "[1, 3]",
            "rows of aabb": "[0, 0, 2, 2]",
            "first row": "0",
            "plus first": "",
            "rows ended": "(rows[ends] + 1)",
            "end of row": "(row + 1) * row_ms",
        },
        "from 1": {
            "rows of ab": "[2, 4]",
            "rows of aabb": "[1, 1, 3, 3]",
            "first row": "1",
            "plus first": " + 1",
            "rows ended": "rows[ends]",
            "end of row": "row * row_ms",
        },
    },
}


# --- inputs ---------------------------------------------------------------------------------------------------------

V = 5


def blank_of(dialect):
    return 0 if dialect["blank"] == "first" else V - 1


def labels_of(dialect):
    """The four symbols that are no blank."""
    return np.delete(np.arange(V), blank_of(dialect))


def model(rng, dialect, T, blank=1.0, scale=1.5):
    """enc (T, V) and table (V, V, V) of a model that is fond of blank."""
    enc = scale * rng.standard_normal((T, V))
    enc[:, blank_of(dialect)] += blank
    return enc, scale * rng.standard_normal((V, V, V))


def whole(rng, T):
    """Whole scores, so that symbols tie to the last bit."""
    return rng.integers(0, 2, (T, V)).astype(np.float64), rng.integers(0, 2, (V, V, V)).astype(np.float64)


def talkative(rng, dialect, T):
    """A model that never says blank of its own accord."""
    enc, table = model(rng, dialect, T, blank=-40.0)
    return enc, table


def twins(rng, dialect, T):
    """Two pairs of labels that nothing tells apart: sequences that exchange them tie to the last bit."""
    enc, table = model(rng, dialect, T)
    a, b, c, d = labels_of(dialect)
    for one, other in ((a, b), (c, d)):
        enc[:, other] = enc[:, one]
        for axis in range(3):
            np.moveaxis(table, axis, 0)[other] = np.moveaxis(table, axis, 0)[one]
    return enc, table


class PackageModel:
    """The toy transducer as mini_pkd wants its models: blank is symbol 0, then the labels, the winner of a tie first.

    In mini_pkd blank wins every tie; `greedy` lowers or raises it by a hair where this class sees it differently.
    """

    def __init__(self, dialect, table, greedy=False):
        labels = labels_of(dialect)
        self.order = np.array([blank_of(dialect), *(labels if dialect["ties"] == "lower" else labels[::-1])])
        self.table = table[np.ix_(self.order, self.order, self.order)].copy()
        blank_wins = (dialect["blank"] == "first") == (dialect["ties"] == "lower")
        self.table[..., 0] += 0.0 if not greedy else 1e-9 if blank_wins else -1e-9

    def enc(self, enc):
        return enc[:, self.order]

    def predictor_start(self, N):
        return self.predictor_step(np.zeros(N, dtype=np.int64), (np.zeros(N, dtype=np.int64),) * 2)

    def predictor_step(self, symbols, state):
        return self.table[state[1], symbols], (state[1], symbols)

    def joint_logits(self, enc_rows, pred_rows):
        return enc_rows + pred_rows


def package_greedy(dialect, enc, table, max_symbols):
    """(labels, rows counted from 0), both (U,), by mini_pkd's stream, one row at a time."""
    from mini_pkd.decode import GreedyStream

    toy = PackageModel(dialect, table, greedy=True)
    stream, rows = GreedyStream(toy, max_symbols), []
    for t, row in enumerate(toy.enc(enc)):
        rows += [t] * (len(stream.push(row[None])) - len(rows))
    return toy.order[np.array(stream.finish(), dtype=np.int64)], np.array(rows, dtype=np.int64)


def lattice(enc, table, blank, labels):
    """log_probs (T, U + 1, V) of a transcript, in the class's own symbols."""
    said = [blank, blank, *labels]
    logits = enc[:, None] + np.array([table[said[u], said[u + 1]] for u in range(len(labels) + 1)])
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def sign(dialect):
    return 1 if dialect["value"] == "log-probability" else -1


def packed(pairs):
    """[(labels, value), ...] as lengths, all labels one after another, and values."""
    flat = np.array([label for labels, _ in pairs for label in labels], dtype=np.int64)
    return np.array([len(labels) for labels, _ in pairs]), flat, np.array([float(value) for _, value in pairs])


PACKED = """
import numpy as np


def drive(student, *inputs):
    pairs = student.{function}(*inputs)
    flat = np.array([int(label) for labels, _ in pairs for label in labels], dtype=np.int64)
    lengths = np.array([len(labels) for labels, _ in pairs], dtype=np.int64)
    return lengths, flat, np.array([float(value) for _, value in pairs])
"""


# --- 1 --------------------------------------------------------------------------------------------------------------


def greedy_cases(rng, dialect, solution):
    return {
        CORE: [
            *((*model(rng, dialect, 15), 3) for _ in range(4)),
            (*talkative(rng, dialect, 4), 3),
            *((*whole(rng, 15), 4) for _ in range(3)),
        ],
        "no rows, one row": [(*model(rng, dialect, T), 3) for T in (0, 1, 1)],
        "silence only": [(*model(rng, dialect, 10, blank=40.0), 3)],
        "the cap is reached": [(*talkative(rng, dialect, 6), cap) for cap in (1, 2, 7)],
        "ties": [(*whole(rng, 20), 5), (np.zeros((4, V)), np.zeros((V, V, V)), 3)],
    }


def greedy_oracle(dialect, enc, table, max_symbols):
    labels, rows = package_greedy(dialect, enc, table, max_symbols)
    blank = blank_of(dialect)
    log_probs = lattice(enc, table, blank, labels).astype(np.longdouble)
    total = sum(log_probs[t, u, label] for u, (t, label) in enumerate(zip(rows, labels, strict=True)))
    for t in range(len(enc)):
        if (rows == t).sum() < max_symbols:
            total += log_probs[t, (rows <= t).sum(), blank]
    return labels, float(sign(dialect) * total)


GREEDY = Task(
    name="Greedy search",
    points=15,
    hours=1.0,
    function="greedy",
    outputs=(Output("labels", "int64", 1), Output("«called»", "float64", 0)),
    tolerance=1e-9,
    code='''
def greedy(enc, table, max_symbols):
    """Follow the most probable symbol at every step.

    enc          (T, V) float64: the encoder's rows; T >= 0
    table        (V, V, V) float64: the predictor, for `next_log_probs`
    max_symbols  how many labels a row may say at most, >= 1; then the next row follows without a blank

    Where symbols tie, the «winner» number wins.
    Returns (labels, value): labels (U,) int64, without blanks; «value» of the path in nats, a float: of all its steps,
    the blanks included.  Without rows: no labels, and 0.
    """
    labels, total, state = [], 0.0, START
    for row in enc:
        for _ in range(max_symbols):
            log_probs = next_log_probs(row, state, table)
            «pick»
            total += log_probs[symbol]
            if symbol == BLANK:
                break
            labels.append(symbol)
            state = predictor_step(state, symbol)
    return np.array(labels, dtype=np.int64), «sign»total
''',
    mutants=(
        Mutant(
            "no cap",
            "as if a row could say labels without end: where blank never wins, the search hangs in this row",
            [("for _ in range(max_symbols):", "while True:")],
            ends="time",
        ),
        Mutant(
            "frame after label",
            "as if a label led to the next row: only blank does, or max_symbols labels",
            [
                ("state = predictor_step(state, symbol)", "state = predictor_step(state, symbol)\n            break"),
            ],
        ),
        Mutant(
            "blank fed",
            "as if the predictor were told of blanks: its state changes with labels only",
            [
                (
                    "            if symbol == BLANK:\n                break\n",
                    "            if symbol == BLANK:\n"
                    "                state = predictor_step(state, symbol)\n                break\n",
                )
            ],
        ),
        Mutant(
            "ties",
            "as if the other symbol won a tie",
            [("«pick»", "«other pick»")],
        ),
    ),
    cases=greedy_cases,
    oracle=greedy_oracle,
    handout=r"""
In row $t$, after the labels $y_1 \dots y_u$, the model gives $P(k \mid t, y_1 \dots y_u)$ for each symbol $k$. Greedy
search takes the most probable one:

- a label is said; the predictor takes a step, and the **same** row is asked again;
- blank leads to the next row, and the predictor stays as it is;
- after `max_symbols` labels the row is over, too, **without** a blank. Otherwise a model that always prefers some label
  would never leave its first row.

Where symbols tie, the one with the **«winner»** number wins. Return the labels and **«value»** of the path, a sum over
all steps that were taken, the blanks included:

$$\ln P = \sum_{\text{steps}} \ln P(\text{symbol of the step} \mid t, y_1 \dots y_u).$$
""",
    tests="""
def test_greedy_follows_one_path():
    labels, value = greedy(*two_rows(), 3)  # a in the first row (0.4), then blank for certain, twice
    assert labels.dtype == np.int64 and list(labels) == [A]
    assert abs(value - («sign»np.log(0.4))) < 1e-6


def test_greedy_asks_the_same_row_again():
    table = np.zeros((V, V, V))
    table[BLANK, A] = scores_of([0.1, 0.0, 0.9, 0.0, 0.0])  # after a: b
    table[A, B] = scores_of([1.0, 0.0, 0.0, 0.0, 0.0])  # after a b: blank
    table[BLANK, BLANK] = scores_of([0.2, 0.8, 0.0, 0.0, 0.0])  # at the start: a
    labels, value = greedy(np.zeros((1, V)), table, 5)
    assert list(labels) == [A, B]
    assert abs(value - («sign»np.log(0.8 * 0.9))) < 1e-6


def test_greedy_cap():
    enc = scores_of([0.1, 0.0, 0.0, 0.9, 0.0], [0.7, 0.1, 0.1, 0.1, 0.0])
    labels, value = greedy(enc, np.zeros((V, V, V)), 3)
    assert list(labels) == [C, C, C]  # the first row ends without a blank, the second with one
    assert abs(value - («sign»np.log(0.9**3 * 0.7))) < 1e-6


def test_greedy_ties():
    enc = scores_of([0.2, 0.2, 0.2, 0.2, 0.2])
    enc[0, BLANK] -= 1  # the four labels tie
    assert list(greedy(enc, np.zeros((V, V, V)), 1)[0]) == «tied symbols»


def test_greedy_without_rows():
    labels, value = greedy(np.zeros((0, V)), np.zeros((V, V, V)), 3)
    assert len(labels) == 0 and value == 0
""",
    notebook=r"""
# %% [markdown]
# ## The path that your greedy search takes
# The heat shows P(symbol) in each row after the labels that greedy search has said before this row; the title is what
# it says in all.

# %%
labels, value = a6.greedy(enc, table, 4)
shown = []
for t, row in enumerate(enc):
    before = a6.greedy(enc[:t], table, 4)[0]
    state = (a6.START + tuple(int(label) for label in before))[-2:]
    shown.append(np.exp(a6.next_log_probs(row, state, table)))
plt.imshow(np.array(shown).T, aspect="auto")
plt.yticks(range(a6.V), a6.SYMBOLS)
plt.xlabel("row")
plt.title(f"greedy says {spell(labels)}, «value» = {value:.2f}")
plt.colorbar(label="P(symbol)")
plt.show()
""",
)


# --- 2 --------------------------------------------------------------------------------------------------------------


def beam_cases(rng, dialect, solution):
    return {
        CORE: [
            *((*model(rng, dialect, 8), beam, 3, beam) for beam in (2, 3, 4, 3, 2, 4)),
            (*twins(rng, dialect, 6), 3, 2, 3),
            (*twins(rng, dialect, 5), 5, 2, 5),
        ],
        "no rows, one row": [(*model(rng, dialect, T), 4, 3, 4) for T in (0, 1)],
        "silence only": [(*model(rng, dialect, 6, blank=20.0), 4, 3, 4)],
        "the cap is reached": [(*talkative(rng, dialect, 4), 3, cap, 3) for cap in (1, 2)],
        "ties": [(*twins(rng, dialect, 6), beam, 3, beam) for beam in (2, 4)],
        "a beam of one": [(*model(rng, dialect, 10), 1, 4, 1)],
        "a beam wider than the search": [(*model(rng, dialect, 2), 500, 2, 12)],
    }


def beam_oracle(dialect, enc, table, beam, max_symbols, n_best):
    from mini_pkd.decode import beam_search_readable

    toy = PackageModel(dialect, table)
    found = beam_search_readable(toy, toy.enc(enc), beam, max_symbols, n_best)
    return packed([([toy.order[k] for k in labels], sign(dialect) * score) for labels, score in found])


BEAM = Task(
    name="Beam search",
    points=35,
    hours=3.0,
    function="beam_search",
    outputs=(Output("lengths", "int64", 1), Output("labels", "int64", 1), Output("«values»", "float64", 1)),
    tolerance=1e-9,
    drive=PACKED.format(function="beam_search"),
    code='''
def beam_search(enc, table, beam, max_symbols, n_best):
    """Look for the most probable labels: the sum over their paths.

    enc          (T, V) float64: the encoder's rows; T >= 0
    table        (V, V, V) float64: the predictor, for `next_log_probs`
    beam         how many hypotheses survive a row, >= 1
    max_symbols  how many labels a row may say at most, >= 1; then it must say blank
    n_best       how many hypotheses are wanted, 1 <= n_best <= beam

    Of hypotheses that tie (equal scores when rounded to 9 decimals) the one whose labels are the «better tuple» tuple
    is the better one.
    Returns a list of (labels, value), the most probable first, n_best of them or all there are: labels, a tuple of
    ints without blanks; «value», a float, in nats.  Without rows: [((), 0.0)].
    """
    hypotheses = [((), 0.0)]
    for row in enc:
        level, finished = hypotheses, []
        for _ in range(max_symbols + 1):
            extended = []
            for labels, score in level:
                log_probs = next_log_probs(row, (START + labels)[-2:], table)
                finished.append((labels, score + log_probs[BLANK]))
                for symbol in range(V):
                    if symbol != BLANK:
                        extended.append((labels + (symbol,), score + log_probs[symbol]))
            kept = _beam_best(_beam_merged(finished), beam)
            cutoff = kept[-1][1] if len(kept) == beam else -np.inf
            level = _beam_best([pair for pair in extended if pair[1] > cutoff], beam)
        hypotheses = kept
    return [(labels, «sign»score) for labels, score in hypotheses[:n_best]]


def _beam_merged(pairs):
    """(labels, score) of all different labels: probabilities of equal ones are added."""
    totals = {}
    for labels, score in pairs:
        totals[labels] = np.logaddexp(totals.get(labels, -np.inf), score)
    return list(totals.items())


def _beam_best(pairs, beam):
    """The best ones, best first."""
    return sorted(pairs, «ranking»)[:beam]
''',
    mutants=(
        Mutant(
            "no merge",
            "as if equal labels that come from different paths stayed apart: they are one hypothesis, add them",
            [("_beam_best(_beam_merged(finished), beam)", "_beam_best(finished, beam)")],
        ),
        Mutant(
            "max",
            "as if of equal labels only the better path counted: their probabilities must be added",
            [("np.logaddexp(totals.get(labels, -np.inf), score)", "max(totals.get(labels, -np.inf), score)")],
        ),
        Mutant(
            "counted twice",
            "as if paths were counted twice: labels that say one more symbol and are in the beam already must not take "
            "the beam's probability with them again",
            [
                (
                    "            level = _beam_best([pair for pair in extended if pair[1] > cutoff], beam)",
                    "            extended += [old for old in hypotheses if old[0] in dict(extended)]\n"
                    "            extended = _beam_merged(extended)\n"
                    "            level = _beam_best([pair for pair in extended if pair[1] > cutoff], beam)",
                )
            ],
        ),
        Mutant(
            "cut before blank",
            "as if a row's hypotheses were cut before they were complete: each says blank first, then the best survive",
            [
                ("finished.append((labels, score + log_probs[BLANK]))", "finished.append((labels, score))"),
                (
                    "        hypotheses = kept\n",
                    "        kept = [(k, s + next_log_probs(row, (START + k)[-2:], table)[BLANK]) for k, s in kept]\n"
                    "        hypotheses = _beam_best(kept, beam)\n",
                ),
            ],
        ),
    ),
    cases=beam_cases,
    oracle=beam_oracle,
    handout=r"""
Many paths spell the same labels: in three rows, one label a can be said as `a _ _ _`, `_ a _ _` or `_ _ a _`. What we
want are the most probable *labels*, $P(\text{labels}) = \sum_{\text{paths}} P(\text{path})$. A hypothesis is a pair
(labels, score); before the first row there is one, `()` with $\ln 1 = 0$. Each row makes new ones from those that
survived the row before (the *beam*):

1. *Level 0* is the beam. No label has been said in this row yet.
2. Each hypothesis of the level says blank: its score plus $\ln P(\text{blank})$ goes to the *finished* ones. Where the
   same labels are there already (from another level), their probabilities are added:
   $\ln(e^a + e^b)$, `np.logaddexp`.
3. Each hypothesis of the level is extended by each label: labels and one more, score plus $\ln P(\text{label})$. The
   *cutoff* is the score of the `beam`-th best finished hypothesis so far, after merging, or $-\infty$ while there are
   fewer. The next level are the `beam` best extensions of those whose score is **greater than** the cutoff.
4. Repeat 2 and 3 for levels 1, 2, ..., `max_symbols`; hypotheses of the last level say blank and are not extended.
5. The `beam` best finished hypotheses are the beam of the next row.

A path says a definite number of labels in each row, so it is in one level only, and no path is counted twice. Scores
only fall, so an extension below the cutoff could not survive by itself; this ends most rows early. The state of the
predictor is the last two labels, and START has what is missing at the beginning: `(START + labels)[-2:]`.

Inside the search scores are always log-probabilities; what you return is **«value»**, the most probable first, which
is the «best» value. Hypotheses whose scores are equal after `round(score, 9)` tie. The better one is then the one
whose labels are the **«better tuple»** tuple, as Python compares tuples: (0, 3) < (1,) < (1, 0). That decides who
survives (in steps 3 and 5) as well as the order of the result.
""",
    tests="""
def test_beam_adds_paths():
    (best, value), (second, other) = beam_search(*two_rows(), 8, 3, 2)
    assert best == (B,) and second == (A,)
    assert abs(value - («sign»np.log(0.3 + 0.3 * 0.9))) < 1e-6  # greedy search says a: 0.4 in the first row
    assert abs(other - («sign»np.log(0.4 + 0.3 * 0.1))) < 1e-6


def test_beam_of_coins():
    enc = scores_of([0.6, 0.4, 0.0, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0, 0.0])  # the same in both rows, whatever was said
    found = dict(beam_search(enc, np.zeros((V, V, V)), 10, 2, 3))
    assert abs(found[()] - («sign»np.log(0.6**2))) < 1e-6
    assert abs(found[(A,)] - («sign»np.log(2 * 0.4 * 0.6**2))) < 1e-6  # a _ _ and _ a _
    assert abs(found[(A, A)] - («sign»np.log(3 * 0.4**2 * 0.6**2))) < 1e-6  # a a _ _, a _ a _ and _ a a _


def test_beam_cap():
    enc = scores_of([0.1, 0.9, 0.0, 0.0, 0.0])
    found = beam_search(enc, np.zeros((V, V, V)), 4, 2, 1)  # _ has 0.1, a _ 0.09, a a _ 0.081; a a a _ is too long
    assert [labels for labels, _ in found] == [()]
    assert max(len(labels) for labels, _ in beam_search(enc, np.zeros((V, V, V)), 4, 2, 4)) == 2


def test_beam_ties():
    enc = scores_of([0.6, 0.1, 0.1, 0.1, 0.1])
    found = beam_search(enc, np.zeros((V, V, V)), 3, 1, 3)
    assert [labels for labels, _ in found] == [(), «tied sequences»]


def test_beam_without_rows():
    assert beam_search(np.zeros((0, V)), np.zeros((V, V, V)), 4, 3, 2) == [((), 0.0)]
""",
    notebook=r"""
# %% [markdown]
# ## How wide must a beam be?
# A wider beam keeps more paths, so the probability that it finds for its best labels approaches the exact sum.

# %%
widths = [1, 2, 3, 4, 6, 8, 12, 16]
found = [a6.beam_search(enc, table, width, 4, 1)[0] for width in widths]
plt.plot(widths, [value for _, value in found], "o-")
for width, (labels, value) in zip(widths, found):
    plt.annotate(spell(labels), (width, value))
plt.xlabel("beam")
plt.ylabel("«value» of the best labels")
plt.show()
for labels, value in a6.beam_search(enc, table, 8, 4, 5):
    print(f"{spell(labels):10s} «value» = {value:.3f}")
""",
)


# --- 3 --------------------------------------------------------------------------------------------------------------


def exhaustive_cases(rng, dialect, solution):
    return {
        CORE: [
            (*model(rng, dialect, 3), 3, 6),
            (*model(rng, dialect, 4, blank=0.0), 3, 10),
            (*twins(rng, dialect, 3), 2, 7),
            (np.zeros((2, V)), np.zeros((V, V, V)), 2, 9),
        ],
        "no rows, one row": [(*model(rng, dialect, T), 2, 4) for T in (0, 1)],
        "silence only": [(*model(rng, dialect, 5, blank=20.0), 2, 5)],
        "no labels allowed": [(*model(rng, dialect, 4), 0, 3)],
        "more wanted than there are": [(*model(rng, dialect, 3), 2, 100)],
        "ties": [(*twins(rng, dialect, 4), 2, n) for n in (3, 8)],
    }


def exhaustive_oracle(dialect, enc, table, max_length, n):
    """All paths of all sequences, one at a time, by mini_pkd."""
    from itertools import product

    from mini_pkd.rnnt_loss import brute_force

    if not len(enc):
        return packed([((), 0.0)])
    blank, found = blank_of(dialect), []
    for length in range(max_length + 1):
        for labels in product(labels_of(dialect), repeat=length):
            log_probs = lattice(enc, table, blank, labels)
            if dialect["blank"] == "last":
                log_probs = np.roll(log_probs, 1, axis=-1)
            said = [label + (dialect["blank"] == "last") for label in labels]
            found.append((labels, -brute_force(log_probs, said)))
    ahead = 1 if dialect["ties"] == "higher" else -1
    found.sort(key=lambda pair: (ahead * round(float(pair[1]), 9), pair[0]), reverse=ahead > 0)
    return packed([(labels, sign(dialect) * total) for labels, total in found[:n]])


EXHAUSTIVE = Task(
    name="The exact n best",
    points=15,
    hours=1.5,
    function="exhaustive_n_best",
    outputs=(Output("lengths", "int64", 1), Output("labels", "int64", 1), Output("«values»", "float64", 1)),
    tolerance=1e-9,
    drive=PACKED.format(function="exhaustive_n_best"),
    code='''
def exhaustive_n_best(enc, table, max_length, n):
    """The n most probable label sequences, of all that have at most max_length labels.

    enc         (T, V) float64: the encoder's rows; T >= 0
    table       (V, V, V) float64: the predictor, for `next_log_probs`
    max_length  >= 0; a row may say as many labels as it likes
    n           >= 1

    Of sequences that tie (equal ln P when rounded to 9 decimals) the «better tuple» tuple is the better one.
    Returns a list of (labels, value), the most probable first, n of them or all there are: labels, a tuple of ints
    without blanks; «value», a float, in nats: of the sum over all of their paths.  Sequences of probability 0 are left
    out: without rows there is only ((), 0.0).
    """
    found = []
    for length in range(max_length + 1):
        for labels in itertools.product([symbol for symbol in range(V) if symbol != BLANK], repeat=length):
            total = _sequence_log_prob(enc, table, labels)
            if total > -np.inf:
                found.append((labels, total))
    found.sort(«ranking»)
    return [(labels, «sign»total) for labels, total in found[:n]]


def _sequence_log_prob(enc, table, labels):
    """ln P(labels)."""
    states = [START]
    for label in labels:
        states.append(predictor_step(states[-1], label))
    alpha = np.full(len(labels) + 1, -np.inf)  # ln P(u labels are said, and a path is in this row)
    alpha[0] = 0.0
    for row in enc:
        log_probs = [next_log_probs(row, state, table) for state in states]
        for u in range(len(labels)):
            alpha[u + 1] = np.logaddexp(alpha[u + 1], alpha[u] + log_probs[u][labels[u]])
        for u in range(len(labels) + 1):
            alpha[u] += log_probs[u][BLANK]
    return float(alpha[-1])
''',
    mutants=(
        Mutant(
            "max",
            "as if only the best path of each sequence counted: the probabilities of all its paths must be added",
            [("np.logaddexp(alpha[u + 1], alpha[u]", "max(alpha[u + 1], alpha[u]")],
        ),
        Mutant(
            "length norm",
            "as if ln P were divided by the number of labels, which favours long sequences: no such norm is asked for",
            [("return float(alpha[-1])", "return float(alpha[-1]) / max(len(labels), 1)")],
        ),
        Mutant(
            "float32",
            "as if sums were kept in float32: the last digits are lost",
            [("np.full(len(labels) + 1, -np.inf)", "np.full(len(labels) + 1, -np.inf, dtype=np.float32)")],
            margin=10.0,
        ),
        Mutant(
            "last blank",
            "as if the blank of the last row were forgotten",
            [
                (
                    "    return float(alpha[-1])",
                    "    return float(alpha[-1] - log_probs[-1][BLANK] if len(enc) else alpha[-1])",
                )
            ],
        ),
    ),
    cases=exhaustive_cases,
    oracle=exhaustive_oracle,
    handout=r"""
A judge for the beam: on a toy, all label sequences can be tried (`itertools.product`), each with its exact
probability. Let $\alpha(t, u)$ be the probability that a path comes to row t with u labels said:

$$\alpha(t, u) = \alpha(t-1, u)\,P(\text{blank} \mid t-1, u) + \alpha(t, u-1)\,P(y_u \mid t, u-1), \qquad
\alpha(0, 0) = 1,$$

$$P(y_1 \dots y_U) = \alpha(T-1, U)\,P(\text{blank} \mid T-1, U),$$

where t counts the rows of `enc` from 0, and $P(\cdot \mid t, u)$ is the model's answer in row t with the state after
$y_1 \dots y_u$. Terms outside of the lattice are zero. There is no cap on the labels of a row here. Add in log space
and in float64. With no rows at all nothing can be said: P(()) = 1, and every other sequence has probability 0.

Return the n best with **«value»** of each, the most probable first, which is the «best» value. Sequences whose
$\ln P$ are equal after rounding to 9 decimals tie; the better one is then the **«better tuple»** tuple, as Python
compares tuples: (0, 3) < (1,) < (1, 0).
""",
    tests="""
def test_exact_two_rows():
    found = exhaustive_n_best(*two_rows(), 2, 2)
    assert [labels for labels, _ in found] == [(B,), (A,)]
    assert np.allclose([value for _, value in found], [«sign»np.log(0.57), «sign»np.log(0.43)], rtol=0, atol=1e-6)


def test_exact_coins():
    enc = scores_of([0.6, 0.4, 0.0, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0, 0.0])
    found = exhaustive_n_best(enc, np.zeros((V, V, V)), 3, 4)
    assert [labels for labels, _ in found] == [(), (A,), (A, A), (A, A, A)]
    P = [0.36, 2 * 0.4 * 0.36, 3 * 0.16 * 0.36, 4 * 0.064 * 0.36]  # paths: 1, 2, 3, 4
    assert np.allclose([value for _, value in found], «sign»np.log(P), rtol=0, atol=1e-6)


def test_exact_ties_and_counts():
    enc = scores_of([0.6, 0.1, 0.1, 0.1, 0.1])
    assert [labels for labels, _ in exhaustive_n_best(enc, np.zeros((V, V, V)), 1, 3)] == [(), «tied sequences»]
    assert len(exhaustive_n_best(enc, np.zeros((V, V, V)), 2, 100)) == 1 + 4 + 16


def test_exact_without_rows():
    assert exhaustive_n_best(np.zeros((0, V)), np.zeros((V, V, V)), 2, 5) == [((), 0.0)]
""",
    notebook=r"""
# %% [markdown]
# ## What does the beam miss?
# The first five rows of the utterance: exact sums, and what beams of 2 and of 8 find of them.

# %%
exact = a6.exhaustive_n_best(enc[:5], table, 4, 8)
names = [spell(labels) for labels, _ in exact]
places = np.arange(len(exact))
plt.bar(places - 0.3, [abs(value) for _, value in exact], 0.3, label="exact")
for k, width in enumerate((2, 8)):
    found = dict(a6.beam_search(enc[:5], table, width, 4, width))
    plt.bar(places + 0.3 * k, [abs(found.get(labels, np.nan)) for labels, _ in exact], 0.3, label=f"beam {width}")
plt.xticks(places, names, rotation=45)
plt.ylabel("-ln P (less is better)")
plt.legend()
plt.show()
""",
)


# --- 4 --------------------------------------------------------------------------------------------------------------


def cut(rng, enc, pieces):
    """Rows in so many pieces, some of them empty."""
    places = np.sort(rng.integers(0, len(enc) + 1, pieces - 1))
    return [piece.copy() for piece in np.split(enc, places)]


def stream_cases(rng, dialect, solution):
    def case(encs_and_table, cap, pieces):
        enc, table = encs_and_table
        return table, cap, [cut(rng, enc, pieces)]

    def two(T, cap, pieces):
        (one, table), (other, _) = model(rng, dialect, T), model(rng, dialect, T)
        return table, cap, [cut(rng, one, pieces), cut(rng, other, pieces)]

    silent, table = model(rng, dialect, 8, blank=40.0)
    return {
        CORE: [
            *(case(model(rng, dialect, 16), 3, 5) for _ in range(4)),
            *(case(whole(rng, 16), 3, 4) for _ in range(3)),
            two(16, 3, 5),
        ],
        "empty pieces": [case(model(rng, dialect, 5), 3, 12), (table, 3, [[np.zeros((0, V))] * 3])],
        "row by row": [(table, 3, [list(np.split(model(rng, dialect, 9)[0], 9))])],
        "silence only": [(table, 3, [cut(rng, silent, 3)])],
        "the cap is reached": [case(talkative(rng, dialect, 7), cap, 4) for cap in (1, 3)],
        "ties": [case(whole(rng, 20), 4, 6)],
        "two streams at once": [two(14, 3, 6)],
    }


def stream_oracle(dialect, table, max_symbols, utterances):
    """Every call by a search from the first row on: there are no pieces and no state."""
    heard = [np.zeros((0, V)) for _ in utterances]
    counts, labels, rows = [], [], []
    for pieces in zip(*utterances, strict=True):
        for k, piece in enumerate(pieces):
            for enc in (np.concatenate([heard[k], piece[::-1]]), np.concatenate([heard[k], piece])):
                said, at = package_greedy(dialect, enc, table, max_symbols)
                counts.append(len(said))
                labels.append(said)
                rows.append(at + (dialect["rows"] == "from 1"))
            heard[k] = enc
    return np.array(counts), np.concatenate(labels), np.concatenate(rows)


STREAM = Task(
    name="Greedy search on a stream",
    points=20,
    hours=2.0,
    function="GreedyStream",
    outputs=(Output("counts", "int64", 1), Output("labels", "int64", 1), Output("rows", "int64", 1)),
    tolerance=0.5,
    drive='''
import numpy as np


def drive(student, table, max_symbols, utterances):
    """Streams take turns: each peeks at its next piece with the rows in reverse, then gets it."""
    streams = [student.GreedyStream(table, max_symbols) for _ in utterances]
    counts, labels, rows = [], [], []
    for pieces in zip(*utterances):
        for stream, piece in zip(streams, pieces):
            for call, enc in ((stream.peek, piece[::-1].copy()), (stream.push, piece)):
                found = call(enc)
                counts.append(len(found[0]))
                labels.extend(found[0])
                rows.extend(found[1])
                enc[:] = 0.0  # a buffer that is filled again
                for own in found:
                    if isinstance(own, list):
                        own.append(0)  # the caller's own, to do with as it likes
    return np.array(counts), np.array(labels, dtype=np.int64), np.array(rows, dtype=np.int64)
''',
    code='''
class GreedyStream:
    """Greedy search on one utterance whose encoder rows arrive in pieces.

    However the rows are cut, the labels are those of all rows at once.  Where symbols tie, the «winner» number wins;
    a row says at most max_symbols labels, and then the next row follows without a blank.
    """

    def __init__(self, table, max_symbols):
        """table (V, V, V) float64: the predictor, for `next_log_probs`; max_symbols >= 1."""
        self.table, self.max_symbols = table, max_symbols
        self.state, self.row = START, «first row»
        self.labels, self.rows = [], []

    def push(self, enc):
        """Take the next rows, (n, V) float64, n >= 0; the caller will write other rows into this array afterwards.

        Returns (labels, rows), two lists of ints of the same length: all labels said since the stream began, and for
        each its row, counted from «first row» at the first row of the utterance.  The lists are the caller's: changing
        them changes nothing in the stream.
        """
        for row in enc:
            said = 0
            while said < self.max_symbols:
                log_probs = next_log_probs(row, self.state, self.table)
                «pick»
                if symbol == BLANK:
                    break
                self.state = predictor_step(self.state, symbol)
                self.labels.append(symbol)
                self.rows.append(self.row)
                said += 1
            self.row += 1
        return list(self.labels), list(self.rows)

    def peek(self, enc):
        """What `push` would return for these rows, but the stream stays as it is, as if it had not been asked."""
        trial = GreedyStream(self.table, self.max_symbols)
        trial.state, trial.row = self.state, self.row
        trial.labels, trial.rows = list(self.labels), list(self.rows)
        return trial.push(enc)
''',
    mutants=(
        Mutant(
            "state reset",
            "as if the predictor began anew at each piece: its state must outlive the piece",
            [("        for row in enc:\n", "        self.state = START\n        for row in enc:\n")],
        ),
        Mutant(
            "counter kept",
            "as if max_symbols were a limit for the utterance: each row begins to count at 0",
            [
                ("said = 0\n", "said = len(self.labels)\n"),
            ],
        ),
        Mutant(
            "aliasing",
            "as if the stream gave out its own lists, and the caller's changes came back into it: give out copies",
            [("return list(self.labels), list(self.rows)", "return self.labels, self.rows")],
        ),
        Mutant(
            "buffer kept",
            "as if the stream kept the caller's array, which holds other rows by now: copy what must outlive a call",
            [
                (
                    "        for row in enc:\n",
                    "        self.heard = [*getattr(self, 'heard', []), *enc]\n"
                    "        self.state, self.row, self.labels, self.rows = START, «first row», [], []\n"
                    "        for row in self.heard:\n",
                ),
                (
                    "        return trial.push(enc)\n",
                    "        trial.heard = list(getattr(self, 'heard', []))\n        return trial.push(enc)\n",
                ),
            ],
        ),
        Mutant(
            "peek shares lists",
            "as if a look ahead left its labels in the stream: the trial has to have lists of its own",
            [
                (
                    "trial.labels, trial.rows = list(self.labels), list(self.rows)",
                    "trial.labels, trial.rows = self.labels, self.rows",
                )
            ],
        ),
        Mutant(
            "row restarts",
            "as if the rows of each piece were counted from its beginning: count those of the whole utterance",
            [("        for row in enc:\n", "        self.row = «first row»\n        for row in enc:\n")],
        ),
    ),
    cases=stream_cases,
    oracle=stream_oracle,
    handout=r"""
A recogniser that listens does not have all rows yet. The class is greedy search as in task 1, but it is fed pieces of
rows, and however an utterance is cut, the labels after the last piece must be the same. Think about what has to outlive
a piece (the state of the predictor, the number of the row, the labels) and what has to begin anew with each row.

- `push(enc)` takes rows, perhaps none, and returns all labels so far and their rows. Rows are counted through the whole
  utterance, the first one is row **«first row»**.
- `peek(enc)` returns what `push(enc)` would return and forgets everything at once. A screen shows such a provisional
  end while the encoder may still change its newest rows.
- The caller uses its buffer for the next rows as soon as a call has returned, and may change the two lists.
- Several streams can be open at once: nothing may be kept in the class itself or in a global.
""",
    tests="""
def test_stream_pieces():
    enc = np.concatenate([two_rows()[0]] * 2)  # a, certain silence after it, whatever follows
    table = two_rows()[1]
    stream = GreedyStream(table, 3)
    assert stream.push(enc[:0]) == ([], [])
    assert stream.push(enc[:1]) == ([A], [«first row»])
    assert stream.push(enc[1:]) == ([A], [«first row»])


def test_stream_counts_rows_and_caps_each():
    enc = scores_of([0.1, 0.9, 0.0, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0, 0.0], [0.1, 0.0, 0.9, 0.0, 0.0])
    stream = GreedyStream(np.zeros((V, V, V)), 2)
    labels, rows = stream.push(enc[:2])
    assert labels == [A, A] and rows == [«first row»] * 2
    labels, rows = stream.push(enc[2:])
    assert labels == [A, A, B, B] and rows == «rows of aabb»


def test_stream_keeps_its_own():
    enc = scores_of([0.1, 0.9, 0.0, 0.0, 0.0])
    stream = GreedyStream(np.zeros((V, V, V)), 1)
    labels, rows = stream.push(enc)
    labels.append(D)
    rows.clear()
    enc[:] = 0
    assert stream.push(scores_of([0.1, 0.0, 0.9, 0.0, 0.0]))[0] == [A, B]


def test_stream_peek_changes_nothing():
    enc = scores_of([0.1, 0.9, 0.0, 0.0, 0.0])
    stream = GreedyStream(np.zeros((V, V, V)), 1)
    assert stream.peek(enc)[0] == [A]
    assert stream.peek(enc)[0] == [A]
    assert stream.push(enc)[0] == [A]


def test_stream_ties():
    enc = np.zeros((1, V))
    enc[0, BLANK] = -1
    assert GreedyStream(np.zeros((V, V, V)), 1).push(enc)[0] == «tied symbols»
""",
    notebook=r"""
# %% [markdown]
# ## Labels as they appear
# The utterance in pieces of three rows. A dot is a label that your stream says, at the row that it gives for it; the
# dotted lines are ends of pieces. No label is ever taken back.

# %%
stream = a6.GreedyStream(table, 4)
for start in range(0, len(enc), 3):
    labels, rows = stream.push(enc[start : start + 3].copy())
    print(f"after {min(start + 3, len(enc)):2d} rows: {spell(labels)}")
    plt.axvline(start + 2.5 + «first row», linestyle=":", color="gray")
plt.plot(rows, np.arange(len(rows)) + 1, "o")
for row, k, label in zip(rows, range(len(rows)), labels):
    plt.annotate(spell([label]), (row, k + 1), textcoords="offset points", xytext=(6, -4))
plt.xlabel("row, counted from «first row»")
plt.ylabel("labels said")
plt.show()
""",
)


# --- 5 --------------------------------------------------------------------------------------------------------------


def times_cases(rng, dialect, solution):
    def spoken(words, step=2, noise=0.3):
        """A model that hears label u in row step * u, and that hears blank everywhere else."""
        labels = rng.choice(labels_of(dialect), sum(words))
        enc, table = model(rng, dialect, step * sum(words) + 1, blank=4.0, scale=noise)
        for u, label in enumerate(labels):
            enc[step * u, label] += 8.0
        return enc, table, labels, np.array(words, dtype=np.int64), 80.0

    def drawn(T, words, row_ms=40.0):
        labels = rng.choice(labels_of(dialect), sum(words))
        return *model(rng, dialect, T), labels, np.array(words, dtype=np.int64), row_ms

    def level(T, words):
        labels = rng.choice(labels_of(dialect), sum(words))
        return np.zeros((T, V)), np.zeros((V, V, V)), labels, np.array(words, dtype=np.int64), 80.0

    return {
        CORE: [spoken([2, 1, 3]), spoken([3, 2], step=3), level(4, [2, 1]), drawn(9, [2, 3])],
        "nothing said": [drawn(1, []), drawn(6, [])],
        "one row": [drawn(1, [2, 1]), drawn(1, [1])],
        "words of one label": [spoken([1, 1, 1]), drawn(8, [1, 1, 1, 1])],
        "ties": [level(6, [3]), level(3, [1, 2, 2])],
        "long": [drawn(50, [4, 1, 3, 5, 2], row_ms=62.5)],
    }


def times_oracle(dialect, enc, table, labels, words, row_ms):
    """mini_pkd's best path; labels in later rows cost or gain a hair, which decides ties and nothing else."""
    from mini_pkd.rnnt_loss import best_path

    log_probs = lattice(enc, table, blank_of(dialect), labels)
    hair = 1e-9 if dialect["ties"] == "higher" else -1e-9
    log_probs[..., labels_of(dialect)] += hair * np.arange(len(enc))[:, None, None]
    if dialect["blank"] == "last":
        log_probs, labels = np.roll(log_probs, 1, axis=-1), labels + 1
    path, _ = best_path(log_probs, labels)
    rows = np.array([t for t, _, says_label in path if says_label], dtype=np.int64)
    ms = [(group[-1] + 1) * row_ms for group in np.split(rows, np.cumsum(words)[:-1]) if len(group)]
    return rows + (dialect["rows"] == "from 1"), np.array(ms, dtype=np.float64)


TIMES = Task(
    name="When was it said?",
    points=15,
    hours=1.5,
    function="emission_times",
    outputs=(Output("rows", "int64", 1), Output("ms", "float64", 1)),
    tolerance=1e-9,
    code='''
def emission_times(enc, table, labels, words, row_ms):
    """When the best path of a transcript says each label, and when each word is complete.

    enc     (T, V) float64: the encoder's rows; T >= 1
    table   (V, V, V) float64: the predictor, for `next_log_probs`
    labels  (U,) int64: the transcript, without blanks; U >= 0
    words   (W,) int64: how many labels each word has, 1 or more each, U in all
    row_ms  how long a row lasts, in milliseconds; row after row, the first begins at 0 ms

    A row may say any number of labels.  Of paths that tie, the one with its labels as «when tied» as possible wins.
    Returns (rows, ms): rows (U,) int64, the row of each label on the most probable path, counted from «first row»;
    ms (W,) float64, for each word the end of the row that says its last label.
    """
    T, U = len(enc), len(labels)
    states = [START]
    for label in labels:
        states.append(predictor_step(states[-1], label))
    best = np.full((T, U + 1), -np.inf)
    best[0, 0] = 0.0
    by_blank = np.zeros((T, U + 1), dtype=bool)
    for t in range(T):
        for u in range(U + 1):
            by_label = -np.inf
            if u > 0:
                by_label = best[t, u - 1] + next_log_probs(enc[t], states[u - 1], table)[labels[u - 1]]
            if t > 0:
                score = best[t - 1, u] + next_log_probs(enc[t - 1], states[u], table)[BLANK]
                by_blank[t, u] = score «reached by blank» by_label
                best[t, u] = max(score, by_label)
            elif u > 0:
                best[t, u] = by_label
    steps = []  # the rows of the path's labels, from its end
    t, u = T - 1, U
    while u > 0:
        if by_blank[t, u]:
            t -= 1
        else:
            u -= 1
            steps.append(t)
    rows = np.array(steps[::-1], dtype=np.int64)«plus first»
    ends = np.cumsum(words) - 1
    return rows, «rows ended» * float(row_ms)
''',
    mutants=(
        Mutant(
            "first for last",
            "as if a word were complete with its first label: it is with its last",
            [("ends = np.cumsum(words) - 1", "ends = np.cumsum(words) - words")],
        ),
        Mutant(
            "row off by one",
            "as if each label were said one row later than it is",
            [("steps.append(t)", "steps.append(t + 1)")],
        ),
        Mutant(
            "blank included",
            "as if blanks were labels: rows has an entry for each label of the transcript and for no blank",
            [("            t -= 1\n", "            t -= 1\n            steps.append(t)\n")],
        ),
        Mutant(
            "ties",
            "as if the other step won where both reach a node equally well",
            [("score «reached by blank» by_label", "score «reached by other» by_label")],
        ),
    ),
    cases=times_cases,
    oracle=times_oracle,
    handout=r"""
How long after a word was spoken does it stand on the screen? For that we ask when a transcript is said on its most
probable path. With max in place of the sum,

$$b(t, u) = \max\bigl(b(t-1, u)\,P(\text{blank} \mid t-1, u),\; b(t, u-1)\,P(y_u \mid t, u-1)\bigr), \qquad
b(0, 0) = 1,$$

is the probability of the best path to row t (an index of `enc`, from 0) with u labels said. Keep by which step it came.
From (T - 1, U) walk back: by a blank to the row before, by a label to u - 1 in the same row. A label's row is the t
**in which it is said**. There is no cap on the labels of a row. Where both steps reach a node equally well, choose so
that labels are said as **«when tied»** as possible.

The rows that you return are counted from **«first row»**. A word is complete with its **last** label, and the
recogniser has this label when the row that says it has ended. With rows of 80 ms, a word that ends in the very first
row is complete at 80 ms: `«end of row»` for the row as you count it.
""",
    tests="""
def test_times_of_a_word():
    silence = [0.9, 0.025, 0.025, 0.025, 0.025]
    enc = scores_of(silence, [0.1, 0.9, 0.0, 0.0, 0.0], silence, [0.1, 0.0, 0.9, 0.0, 0.0], silence)
    rows, ms = emission_times(enc, np.zeros((V, V, V)), np.array([A, B]), np.array([2]), 80.0)
    assert list(rows) == «rows of ab»
    assert list(ms) == [320.0]  # b is said in the fourth row, which ends after 4 x 80 ms
    rows, ms = emission_times(enc, np.zeros((V, V, V)), np.array([A, B]), np.array([1, 1]), 80.0)
    assert list(ms) == [160.0, 320.0]


def test_times_when_all_paths_tie():
    rows, ms = emission_times(np.zeros((3, V)), np.zeros((V, V, V)), np.array([A, B]), np.array([1, 1]), 10.0)
    assert list(rows - «first row») == «tied rows»
    assert rows.dtype == np.int64 and ms.dtype == np.float64


def test_times_of_nothing():
    nothing = np.array([], dtype=np.int64)
    rows, ms = emission_times(np.zeros((4, V)), np.zeros((V, V, V)), nothing, nothing, 80.0)
    assert rows.shape == (0,) and ms.shape == (0,)
""",
    notebook=r"""
# %% [markdown]
# ## When was it said?
# Your path through the utterance, and when its words are complete. The crosses are the rows in which the toy was made
# to hear each label.

# %%
words = np.array([len(word) for word in TEXT.split()])
labels = np.array([a6.SYMBOLS.index(unit) for unit in TEXT if unit != " "])
rows, ms = a6.emission_times(enc, table, labels, words, 80.0)
plt.step(np.append(rows, rows[-1]), np.arange(len(rows) + 1), where="pre", label="your path")
plt.plot(HEARD + «first row», np.arange(len(HEARD)) + 0.5, "x", label="heard")
plt.xlabel("row, counted from «first row»")
plt.ylabel("labels said")
plt.legend()
plt.show()
for word, end in zip(TEXT.split(), ms):
    print(f"{word} is complete after {end:.0f} ms")
""",
)


ASSIGNMENT = Assignment(
    name="a6",
    title="Decoding",
    conventions=CONVENTIONS,
    tasks=(GREEDY, BEAM, EXHAUSTIVE, STREAM, TIMES),
    package_files=("decode.py", "rnnt_loss.py"),
    given='''
"""Assignment 6: decoding.  Replace each NotImplementedError; numpy is all you need."""

import itertools

import numpy as np

# --- a toy transducer, which you are given; leave it as it is ---

V = 5  # symbols: blank and four labels
BLANK = «blank»  # «where blank is»
SYMBOLS = "«symbols»"  # to print them; _ is blank
START = (BLANK, BLANK)  # the predictor's state before anything is said


def predictor_step(state, label):
    """The predictor's state after one more label; it is a pair, the last two labels."""
    return (state[1], int(label))


def next_log_probs(row, state, table):
    """ln P(next symbol), (V,) float64, of an encoder row (V,) and a predictor state; table (V, V, V) float64.

    The joint network adds the encoder's scores and the predictor's, and log-softmax makes them log-probabilities.
    """
    logits = row + table[state]  # table[before last, last]: (V,)
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
''',
    test_helpers='''
import numpy as np
from a6 import BLANK, GreedyStream, V, beam_search, emission_times, exhaustive_n_best, greedy

A, B, C, D = «A, B, C, D»


def scores_of(*rows):
    """(T, V) scores: ln of probabilities, given as those of blank, a, b, c, d; 0 becomes 1e-12."""
    scores = np.log(np.maximum(np.array(rows), 1e-12))
    «example blank»
    return scores


def two_rows():
    """enc, table to do by hand: before any label, P of blank, a, b is 0.3, 0.4, 0.3 in the first row and 0, 0.1, 0.9 in
    the second; after a label, blank is certain."""
    table = np.zeros((V, V, V))
    table[:, [A, B, C, D], BLANK] = 100.0
    return scores_of([0.3, 0.4, 0.3, 0.0, 0.0], [0.0, 0.1, 0.9, 0.0, 0.0]), table
''',
    motivation=r"""
A trained transducer gives P(next symbol) in every row of its encoder, and somebody has to choose. A row may say
labels, as many as it likes, and then **blank**, which leads to the next row. One way of doing so is a *path*; its
labels are its symbols without the blanks, and many paths spell the same labels. Greedy search follows one path and is
fast. Beam search adds up paths and finds better labels. On a toy, the exact answer can be had, and judges both. Then
the rows arrive one piece at a time, as they do from a microphone, and somebody wants to know when each word was said.

You are given a toy transducer, at the top of `a6.py`: V = 5 symbols, of which blank is **«where blank is»**. Its
encoder is an array `enc` of (T, V) scores; its predictor remembers the last two labels and looks up V more scores in
`table`; `next_log_probs(row, state, table)` adds both and normalises. `START` is the predictor's state at the
beginning, and `predictor_step(state, label)` its state after one more **label**. All scores are finite.

In this class, where something ties the **«winner»** number wins (the «winner» symbol, and so on, as the tasks say);
results are **«value»** in nats; and rows, where you return them, are counted from **«first row»**.
""",
    debugging=r"""
- `table = np.zeros((V, V, V))` takes the predictor away: then P(symbol) depends on the row alone, and everything can be
  done by hand.
- On small inputs `exhaustive_n_best` is the judge: with a beam of 1000 and a large `max_symbols`, `beam_search` must
  agree with it to many digits. Sums that are too large count a path twice; sums that are too small lose one.
- P of all label sequences that a wide beam finds can never exceed 1. Look at `sum(np.exp(...))`.
- A beam of 1 is not greedy search: it compares the row's hypotheses after their blank.
- Cut the same rows in all ways: at every place, row by row, with empty pieces. If the labels differ, something did not
  outlive its piece.
- If a test hangs: which row, and how many labels has it said?
""",
    question=r"""
A colleague wants to make beam search faster by leaving out the merging of equal labels: "the best path usually spells
the best labels anyway". Explain in at most ten sentences when the best path and the most probable labels differ, what a
beam without merging is full of, why greedy search on a stream can show its labels at once while beam search has to take
some back, and what you would measure before you decide.
""",
    rubric=r"""
- 2 points: they differ where the probability of labels is spread over many paths (uncertain times, many rows for each
  label), while a rival has few but stronger paths; with a number or an example such as 0.4 against 0.3 + 0.27.
- 1 point: without merging the beam fills with copies of the same labels at other times, so it is narrower than it says.
- 1 point: greedy search never changes what it said; in a beam the best hypothesis after more rows may have another
  beginning, so what was shown has to be changed, or one waits until all hypotheses share the beginning.
- 2 points: a measurement that can decide: word errors on held-out speech (paired, with an interval) and time at the
  same beam, or errors at the same time; also how often the best labels change.
""",
    notebook=r"""
# %% [markdown]
# # Assignment 6: decoding
# Write your functions in `a6.py`, next to this notebook; the handout has the formulas. Here you see what your functions
# do. A cell that ends in `NotImplementedError` waits for a task that you have not solved yet.

# %%
# %load_ext autoreload
# %autoreload 2
import a6
import matplotlib.pyplot as plt
import numpy as np

# %% [markdown]
# ## A toy utterance
# An encoder that hears the letters of TEXT, one every third row, not too clearly, and a predictor that has an opinion
# of its own about what follows two letters, and does not like to say a letter twice. Change the text
# (letters a to d), the seed, and how clearly it hears.

# %%
TEXT, CLEARLY = "bad cab", 3.0
rng = np.random.default_rng(0)
units = TEXT.replace(" ", "")
HEARD = 3 * np.arange(len(units)) + 1  # in which row each unit is heard, counted from 0
enc = 0.7 * rng.standard_normal((3 * len(units) + 1, a6.V))
enc[:, a6.BLANK] += 2.0
enc[HEARD, [a6.SYMBOLS.index(unit) for unit in units]] += 2 * CLEARLY
table = 0.7 * rng.standard_normal((a6.V, a6.V, a6.V))
table[..., a6.BLANK] += 0.5
for letter in set(range(a6.V)) - {a6.BLANK}:
    table[:, letter, letter] -= 5.0


def spell(labels):
    return "".join(a6.SYMBOLS[label] for label in labels) or "()"


plt.imshow(enc.T, aspect="auto")
plt.yticks(range(a6.V), a6.SYMBOLS)
plt.xlabel("row, counted from 0")
plt.title("what the encoder hears")
plt.colorbar(label="score")
plt.show()
""",
)
